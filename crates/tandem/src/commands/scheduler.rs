//! `tandem scheduler`: the service.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_ipc::Address;
use tandem_ipc::protocol::TextSide;
use tandem_ipc::server::{ModelInfo, Server, ServerOptions, Service as Served};

use crate::interrupt;
use crate::service::{Service, ServiceOptions};

/// Serve several clients at a time over ZeroMQ: texts, and single operations (docs/protocol.md)
#[derive(Args)]
pub(crate) struct SchedulerArgs {
    /// Where to listen: tcp://HOST:PORT (port 0: any that is free) or ipc://PATH
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "TANDEM_BIND",
        default_value = "tcp://127.0.0.1:5555"
    )]
    bind: Address,

    /// Listen where other machines can reach it as well. Nothing protects the scheduler then: whoever reaches it may use it
    #[arg(long, env = "TANDEM_ALLOW_REMOTE", value_parser = FalseyValueParser::new())]
    allow_remote: bool,

    #[command(flatten)]
    service: ServiceOptions,
}

pub(crate) fn scheduler(args: &SchedulerArgs) -> anyhow::Result<ExitCode> {
    let options = ServerOptions { address: args.bind.clone(), allow_remote: args.allow_remote };
    // Before the model is loaded, which may take a while.
    options.check()?;
    let service = Service::start(&args.service)?;
    let engine = service.engine.clone();
    let (description, load_time) = (service.description.clone(), service.load_time);
    let config_file = args.service.place.config.clone();
    let server = Server::bind(&options, served(service, config_file))?;
    let stopper = server.stopper();
    interrupt::install_with(move || stopper.stop())?;
    let mut out = std::io::stdout();
    writeln!(out, "{description}")?;
    for device in engine.devices() {
        writeln!(out, "{}: {}, {}", device.device.name(), device.name, device.details)?;
    }
    if !args.bind.is_local() {
        note!(
            "{} can be reached from other machines, and neither keys nor passwords protect it: whoever reaches it may have \
             texts written",
            server.address()
        );
    }
    writeln!(out, "loaded in {:.2} s", load_time.as_secs_f64())?;
    writeln!(out, "ready: {}", server.address())?;
    out.flush()?;
    server.run()?;
    engine.shutdown(false)?;
    note!("the scheduler has ended");
    Ok(ExitCode::SUCCESS)
}

/// What the server needs of the service.
fn served(service: Service, config_file: Option<std::path::PathBuf>) -> Served {
    let Service { engine, tokenizer, template, model, .. } = service;
    let stem = model.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut names = vec![model.name.clone(), stem];
    names.dedup();
    Served {
        engine,
        text: TextSide { tokenizer, template, stop_ids: model.stop_ids },
        model: ModelInfo { name: model.name, config: model.config, context: model.context, names },
        config_file,
    }
}

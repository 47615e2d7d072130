//! `tandem scheduler`: the service.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_ipc::Address;
use tandem_ipc::protocol::TextSide;
use tandem_ipc::server::{ModelInfo, Server, ServerOptions, Service as Served, Stopper};

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
    let server = Server::bind(&options, served(&service, config_file))?;
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
fn served(service: &Service, config_file: Option<PathBuf>) -> Served {
    let Service { engine, tokenizer, template, model, .. } = service;
    let stem = model.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut names = vec![model.name.clone(), stem];
    names.dedup();
    let text = TextSide::new(
        Arc::clone(tokenizer),
        template.clone(),
        model.config.vocab_size,
        model.stop_ids.clone(),
    );
    let (name, config) = (model.name.clone(), model.config.clone());
    let model = ModelInfo { name, config, context: model.context, names };
    Served { engine: Arc::clone(engine), text, model, config_file }
}

/// The service beside something else, on a thread of its own.
pub(crate) struct Scheduler {
    stopper: Stopper,
    thread: JoinHandle<tandem_ipc::Result<()>>,
}

impl Scheduler {
    /// Serves at an address of this machine.
    pub(crate) fn start(
        address: Address,
        service: &Service,
        config_file: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let options = ServerOptions { address, allow_remote: false };
        options.check()?;
        let server = Server::bind(&options, served(service, config_file))?;
        note!("the scheduler's clients are served at {}", server.address());
        let stopper = server.stopper();
        let thread = std::thread::Builder::new().name("tandem-scheduler".into());
        let thread = thread.spawn(move || server.run()).context("no thread for the scheduler")?;
        Ok(Self { stopper, thread })
    }

    /// Ends it.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.stopper.stop();
        // If it panicked, that has been printed.
        self.thread.join().map_or(Ok(()), |served| served.map_err(Into::into))
    }
}

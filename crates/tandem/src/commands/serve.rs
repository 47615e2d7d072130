//! `tandem serve`: the HTTP server.

mod remote;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_ipc::Address;
use tandem_runtime::{Engine, EngineLoad};
use tandem_serve::{Backend, Limits, Local, Server, ServerOptions};

use crate::commands::scheduler::Scheduler;
use crate::engine::open;
use crate::interrupt;
use crate::options::at_least_one;
use crate::service::{Service, ServiceOptions};
use remote::Remote;

/// Threads that handle connections: hardly any work, compared with the model's.
const WORKERS: usize = 2;
/// Threads for what takes more than a moment: templates, tokenizing, grammars, figures.
const ASIDE: usize = 16;

/// Answer HTTP: the OpenAI API, figures for Prometheus, and a dashboard (docs/server.md)
#[derive(Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    service: ServiceOptions,

    /// Answer with a scheduler that runs already (`tandem scheduler`), at tcp://HOST:PORT or ipc://PATH. Of the model only
    /// the tokenizer and the chat template are read here
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_CONNECT", conflicts_with = "zmq")]
    connect: Option<Address>,

    /// Serve the scheduler's clients too, at this address of this machine
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_ZMQ")]
    zmq: Option<Address>,

    /// Address to listen at; 0.0.0.0 is all of this machine's
    #[arg(long, value_name = "HOST", env = "TANDEM_HOST", default_value = "127.0.0.1")]
    host: String,

    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "PORT", env = "TANDEM_PORT", default_value_t = 8080)]
    port: u16,

    /// Key that clients must send (may be given several times). Others on this machine can read a command line: better
    /// set TANDEM_API_KEY or use --api-key-file
    #[arg(long, value_name = "KEY", env = "TANDEM_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,

    /// File with such keys, one a line
    #[arg(long, value_name = "FILE", env = "TANDEM_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,

    /// Name of the model for clients [default: the file's or folder's]
    #[arg(long, value_name = "NAME", env = "TANDEM_MODEL_NAME")]
    model_name: Option<String>,

    /// Origin whose pages may call from a browser, as https://example.org, or * for all (may be given several times)
    #[arg(long, value_name = "ORIGIN", env = "TANDEM_CORS")]
    cors: Vec<String>,

    /// Name by which this server is called, where it listens on this machine only and wants no key (may be given several
    /// times). localhost and addresses need not be told
    #[arg(long, value_name = "NAME", env = "TANDEM_ALLOW_HOST")]
    allow_host: Vec<String>,

    /// Note each request on stderr
    #[arg(long, env = "TANDEM_LOG_REQUESTS", value_parser = FalseyValueParser::new())]
    log_requests: bool,

    #[command(flatten)]
    limits: LimitOptions,
}

/// What clients may use up.
#[derive(Args, Clone, Copy)]
struct LimitOptions {
    /// Bytes that a request's body may have
    #[arg(long, value_name = "BYTES", env = "TANDEM_MAX_BODY", default_value_t = Limits::default().body_bytes,
          value_parser = at_least_one)]
    max_body: usize,

    /// Connections at a time; more wait
    #[arg(long, value_name = "N", env = "TANDEM_MAX_CONNECTIONS", default_value_t = Limits::default().connections,
          value_parser = at_least_one)]
    max_connections: usize,

    /// Seconds that a connection may take for a request's head, or be idle
    #[arg(long, value_name = "SECONDS", env = "TANDEM_IDLE_TIMEOUT",
          default_value_t = Limits::default().header_timeout.as_secs(), value_parser = seconds)]
    idle_timeout: u64,

    /// Seconds that a request's body may take
    #[arg(long, value_name = "SECONDS", env = "TANDEM_BODY_TIMEOUT",
          default_value_t = Limits::default().body_timeout.as_secs(), value_parser = seconds)]
    body_timeout: u64,

    /// Seconds in which a client must take more of an answer that is there
    #[arg(long, value_name = "SECONDS", env = "TANDEM_WRITE_TIMEOUT",
          default_value_t = Limits::default().write_timeout.as_secs(), value_parser = seconds)]
    write_timeout: u64,

    /// Seconds that an answer may take, waiting included
    #[arg(long, value_name = "SECONDS", env = "TANDEM_GENERATION_TIMEOUT",
          default_value_t = Limits::default().generation_timeout.as_secs(), value_parser = seconds)]
    generation_timeout: u64,

    /// Seconds that answers get to come to their end after the server was told to stop
    #[arg(long, value_name = "SECONDS", env = "TANDEM_DRAIN_TIMEOUT",
          default_value_t = Limits::default().drain_timeout.as_secs())]
    drain_timeout: u64,
}

impl LimitOptions {
    fn limits(self) -> Limits {
        Limits {
            body_bytes: self.max_body,
            connections: self.max_connections,
            header_timeout: Duration::from_secs(self.idle_timeout),
            body_timeout: Duration::from_secs(self.body_timeout),
            write_timeout: Duration::from_secs(self.write_timeout),
            generation_timeout: Duration::from_secs(self.generation_timeout),
            drain_timeout: Duration::from_secs(self.drain_timeout),
        }
    }
}

/// A day at most, and a second at least.
fn seconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(seconds),
        Ok(_) => Err("expected 1 to 86400".to_owned()),
        Err(e) => Err(format!("{e}")),
    }
}

pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let options = options(args)?;
    let stop = interrupt::stop_signal()?;
    let Doors { backend, engine, scheduler } = Doors::open(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(ASIDE)
        .thread_name("tandem-http")
        .enable_all()
        .build()
        .context("the HTTP server's threads cannot be started")?;
    let served = runtime.block_on(listen(options, backend, stop));
    // What has not come to its end by now never will.
    runtime.shutdown_background();
    let ended = scheduler.map_or(Ok(()), Scheduler::end);
    if let Some(engine) = engine {
        engine.shutdown(false)?;
    }
    ended?;
    served.map(|()| ExitCode::SUCCESS)
}

async fn listen(
    options: ServerOptions,
    backend: Arc<dyn Backend>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let at = format!("{}:{}", options.host, options.port);
    let model = backend.model().id.clone();
    let server = Server::bind(options, backend).await;
    let server = server.with_context(|| format!("cannot listen at {at}"))?;
    let address = server.address();
    note!("{model} answers at http://{address} (dashboard there, API at http://{address}/v1)");
    if server.is_open() {
        note!("warning: {}", without_key(address));
    }
    server.run(stop).await;
    note!("stopped");
    Ok(())
}

fn without_key(address: SocketAddr) -> String {
    format!(
        "everybody who reaches {address} over the network can use this server: --api-key-file lets in only those \
         who have a key, --host 127.0.0.1 only this machine"
    )
}

/// What answers, and who else uses it.
struct Doors {
    backend: Arc<dyn Backend>,
    /// None where it is somewhere else.
    engine: Option<Arc<Engine>>,
    /// The other door.
    scheduler: Option<Scheduler>,
}

impl Doors {
    fn open(args: &ServeArgs) -> anyhow::Result<Self> {
        let name = args.model_name.clone();
        if let Some(address) = &args.connect {
            let ServiceOptions { model, compute, max_sequences, max_waiting, .. } = &args.service;
            let checkpoint = open(model.model.as_deref(), compute)?;
            let most = EngineLoad { running: *max_sequences, waiting: *max_waiting };
            let remote = Remote::connect(address.clone(), &checkpoint, name, most)?;
            note!("{} at {address}", checkpoint.name());
            return Ok(Self { backend: Arc::new(remote), engine: None, scheduler: None });
        }
        let service = Service::start(&args.service)?;
        note!("{}", service.description);
        let config = args.service.place.config.clone();
        let scheduler = match &args.zmq {
            Some(address) => Some(Scheduler::start(address.clone(), &service, config)?),
            None => None,
        };
        let Service { engine, tokenizer, template, model, .. } = service;
        let (id, stop_ids) = (name.unwrap_or(model.name), model.stop_ids);
        let local = Local::new(Arc::clone(&engine), id, stop_ids, tokenizer, template);
        Ok(Self { backend: Arc::new(local), engine: Some(engine), scheduler })
    }
}

fn options(args: &ServeArgs) -> anyhow::Result<ServerOptions> {
    let mut api_keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--api-key-file {}", path.display()))?;
        let keys = text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned);
        let before = api_keys.len();
        api_keys.extend(keys);
        if api_keys.len() == before {
            bail!("--api-key-file {}: expected a key, found none", path.display());
        }
    }
    if api_keys.iter().any(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
        bail!("--api-key: expected letters, digits and signs of ASCII, without spaces");
    }
    Ok(ServerOptions {
        host: args.host.clone(),
        port: args.port,
        api_keys,
        cors_origins: args.cors.clone(),
        allowed_hosts: args.allow_host.clone(),
        log_requests: args.log_requests,
        limits: args.limits.limits(),
    })
}

//! The HTTP server: the OpenAI API over an engine, its figures, and a dashboard. `docs/server.md` is the users' view.
//!
//! Handlers are asynchronous and never compute: the engine tells each text's events to a channel ([`Backend::submit`]), and
//! what takes more than a moment (templates, tokenizing, grammars, figures) runs on threads for such work. A connection
//! costs a task and no thread; one that goes away drops its request, and that cancels its texts.
#![forbid(unsafe_code)]

mod access;
mod answers;
mod app;
mod backend;
mod body;
mod dashboard;
mod error;
mod errors;
mod health;
mod listen;
mod local;
mod memory;
mod metrics;
mod openai;
mod openapi;
mod options;
mod telemetry;
mod words;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use app::App;
pub use backend::{Backend, Listener, ModelInfo, Ticket};
pub use local::Local;
pub use options::{Limits, ServerOptions};

/// File descriptors besides those of connections.
const OTHER_FILES: u64 = 256;

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Begins to listen. Connections wait until [`Self::run`].
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub async fn bind(options: ServerOptions, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let wanted = options.limits.connections as u64 + OTHER_FILES;
        // With fewer, fewer connections are taken up at a time.
        let _ = rlimit::increase_nofile_limit(wanted);
        let listener = TcpListener::bind((&*options.host, options.port)).await?;
        let address = listener.local_addr()?;
        let checks_host = address.ip().is_loopback() && options.api_keys.is_empty();
        let (stopping, listened) = watch::channel(false);
        let app = Arc::new(App::new(backend, options, checks_host, listened));
        Ok(Self { listener, address, app, stopping })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether anybody who reaches this machine over a network can use it.
    pub fn is_open(&self) -> bool {
        !self.address.ip().is_loopback() && self.app.options.api_keys.is_empty()
    }

    /// Answers until `stop`, then takes no more connections and brings the answers that run to their end, in so much time as
    /// [`Limits::drain_timeout`].
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, app, stopping, .. } = self;
        let (limits, metrics) = (app.options.limits, Arc::clone(&app.metrics));
        let record = tokio::spawn(dashboard::record(Arc::clone(&app)));
        let router = app::router(app);
        let stop = async move {
            stop.await;
            // Who listens to figures is told too, lest nothing ever ends.
            let _ = stopping.send(true);
        };
        listen::serve(listener, router, limits, metrics, stop).await;
        record.abort();
    }
}

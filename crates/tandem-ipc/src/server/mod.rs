//! The service: one thread owns the sockets and everything that is on its way to clients; what takes time is done by
//! others, who hand in what comes of it.
//!
//! - The sockets' thread reads messages, answers `health_check`, `cancel` and `shutdown`, and sends all answers.
//! - A *clerk* turns prompts into ids and hands them to the engine, reads telemetry, and changes policy and config.
//! - A *runner* hands work packets to the engine, the most urgent first.
//! - The engine's thread tells of tokens as it writes them.

mod clerk;
mod clients;
mod runner;
mod service;
mod sockets;
mod works;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::error::{IpcError, Result};
use crate::protocol::{Answer, Code, Fault, MAX_FRAMES, Message, Request};
use crate::wake::{Inbox, Outlet, inbox};
use clerk::{Clerk, Errand};
use clients::{Clients, Queued, Took};
use runner::{Parcel, Runner};
pub use service::{ModelInfo, Service};
use sockets::{ClientId, Incoming, Route, Sockets};
use works::{Kind, News, Report, Works};

/// How often answers that a slow reader has not taken are tried anew.
const RETRY: Duration = Duration::from_millis(10);
/// Messages that are read in a row, at most.
const MESSAGES: usize = 64;
/// How long texts may take to end, and answers to leave, when the scheduler does.
const LEAVE_TAKING: Duration = Duration::from_secs(5);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens.
    pub address: Address,
    /// Whether other machines may reach it.
    pub allow_remote: bool,
}

impl ServerOptions {
    /// Whether it may and can listen there.
    ///
    /// # Errors
    /// Where the address is taken, or is not this machine's alone and nobody allowed that.
    pub fn check(&self) -> Result<()> {
        if !self.address.is_local() && !self.allow_remote {
            return Err(IpcError::Remote(self.address.to_string()));
        }
        self.address.check_free()
    }
}

/// The scheduler service.
pub struct Server {
    // Before the context, which waits for its sockets.
    sockets: Sockets,
    service: Arc<Service>,
    clients: Clients,
    works: Works,
    inbox: Inbox<Report>,
    outlet: Outlet<Report>,
    clerk: Clerk,
    runner: Runner,
    started: Instant,
    leaving: Option<Instant>,
    _context: zmq::Context,
}

/// Ends a server from another thread, or from a handler of signals.
#[derive(Clone)]
pub struct Stopper(Outlet<Report>);

impl Stopper {
    /// Texts end, clients get what is left for them, and [`Server::run`] returns.
    pub fn stop(&self) {
        self.0.send(Report::Stop);
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// Where the address is taken, cannot be had, or is not this machine's alone and nobody allowed that.
    pub fn bind(options: &ServerOptions, service: Service) -> Result<Self> {
        options.check()?;
        let context = zmq::Context::new();
        let sockets = Sockets::bind(&context, &options.address)?;
        let io = |source| IpcError::Io { what: "cannot start the service", source };
        let (inbox, outlet) = inbox().map_err(io)?;
        let service = Arc::new(service);
        let clerk = Clerk::start(Arc::clone(&service), outlet.clone()).map_err(io)?;
        let runner = Runner::start(Arc::clone(&service), outlet.clone()).map_err(io)?;
        Ok(Self {
            sockets,
            service,
            clients: Clients::default(),
            works: Works::default(),
            inbox,
            outlet,
            clerk,
            runner,
            started: Instant::now(),
            leaving: None,
            _context: context,
        })
    }

    /// Where it listens, with the port where any was asked for.
    pub fn address(&self) -> &str {
        self.sockets.bound()
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.outlet.clone())
    }

    /// Serves until somebody ends it.
    ///
    /// # Errors
    /// Where ZeroMQ fails.
    pub fn run(mut self) -> Result<()> {
        while !self.has_left() {
            self.wait()?;
            self.part();
            // Not all that there are: answers shall leave in between.
            for _ in 0..MESSAGES {
                let Some(incoming) = self.sockets.receive() else { break };
                self.part();
                if self.sockets.is_open(&incoming) {
                    self.receive(incoming);
                }
            }
            for report in self.inbox.take() {
                self.report(report);
            }
            for client in self.clients.retry(&self.sockets) {
                self.forget(&client);
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let most = match self.leaving {
            Some(_) => RETRY.as_millis() as i64,
            None if self.clients.any_waits() => RETRY.as_millis() as i64,
            None => -1,
        };
        let [router, monitor] = self.sockets.poll_items();
        let mut items = [router, monitor, zmq::PollItem::from_fd(self.inbox.fd(), zmq::POLLIN)];
        match zmq::poll(&mut items, most) {
            // Signals have handlers of their own.
            Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
            Err(error) => Err(IpcError::zmq("ZeroMQ cannot wait for messages")(error)),
        }
    }

    /// Whether all that was begun has come to its end, or there is no more time for it.
    fn has_left(&self) -> bool {
        let idle = self.works.is_empty() && !self.clients.any_waits();
        self.leaving.is_some_and(|since| idle || since.elapsed() > LEAVE_TAKING)
    }

    fn leave(&mut self) {
        self.leaving.get_or_insert_with(Instant::now);
        self.works.cancel_all();
    }

    fn part(&mut self) {
        for client in self.sockets.departed() {
            self.forget(&client);
        }
    }

    /// Nobody waits for this client's answers any more.
    fn forget(&mut self, client: &ClientId) {
        self.clients.forget(client);
        self.works.forget(client);
    }

    fn receive(&mut self, incoming: Incoming) {
        let Incoming { client, route, mut frames, too_many, local, .. } = incoming;
        if frames.is_empty() || too_many {
            let found = if too_many { "more" } else { "none" };
            let message = format!(
                "frames: expected 1 of JSON and at most {} of a tensor, found {found}",
                MAX_FRAMES - 1
            );
            return self.refuse(&client, route, &Fault::request(message), None);
        }
        let json = frames.remove(0);
        match Message::parse(&json) {
            Ok(message) => self.handle(client, route, message, frames.pop(), local),
            Err((id, fault)) => self.refuse(&client, route, &fault, id.as_ref()),
        }
    }

    fn handle(
        &mut self,
        client: ClientId,
        route: Route,
        message: Message,
        tensor: Option<Vec<u8>>,
        local: bool,
    ) {
        let Message { id, request } = message;
        let name = request.name();
        if let Err(fault) = self.admit(&request, tensor.is_some(), local) {
            return self.refuse(&client, route, &fault, id.as_ref());
        }
        let errand = match request {
            Request::HealthCheck => {
                let answer = self.service.health(self.started.elapsed(), self.works.len());
                return self.answer(&client, route, answer.to(id.as_ref()));
            }
            Request::Cancel(cancel) => {
                let ended = self.works.cancel(&client, cancel.target.as_ref());
                let answer = Answer::new("success", name).with("cancelled", ended);
                return self.answer(&client, route, answer.to(id.as_ref()));
            }
            Request::Shutdown => {
                self.answer(&client, route, Answer::new("success", name).to(id.as_ref()));
                return self.leave();
            }
            Request::WorkPacket(packet) => {
                let work = self.works.begin(client, route, id, Kind::Other);
                let parcel = Parcel { work, packet: *packet, tensor };
                if let Err(fault) = self.runner.take(parcel) {
                    self.end(work, Answer::error(&fault));
                }
                return;
            }
            Request::Generate(generate) => Errand::Generate(generate),
            Request::GetTelemetry => Errand::GetTelemetry,
            Request::GetBandwidthStats => Errand::GetBandwidthStats,
            Request::GetState => Errand::GetState,
            Request::GetTrace => Errand::GetTrace,
            Request::SetPolicy(policy) => Errand::SetPolicy(policy),
            Request::ReloadConfig(reload) => Errand::ReloadConfig(reload),
        };
        let kind = match &errand {
            Errand::Generate(generate) if generate.stream && !route.single => Kind::Stream,
            Errand::Generate(_) => Kind::Text,
            _ => Kind::Other,
        };
        let work = self.works.begin(client, route, id, kind);
        if let Err(fault) = self.clerk.take(work, errand) {
            self.end(work, Answer::error(&fault));
        }
    }

    /// Whether something is to be done at all.
    fn admit(&self, request: &Request, has_tensor: bool, local: bool) -> Result<(), Fault> {
        if has_tensor && !matches!(request, Request::WorkPacket(_)) {
            let name = request.name();
            return Err(Fault::request(format!("frames: expected 1 for {name}, found a tensor")));
        }
        let steers =
            matches!(request, Request::SetPolicy(_) | Request::ReloadConfig(_) | Request::Shutdown);
        if steers && !local {
            let message =
                format!("{} is for clients on the scheduler's own machine", request.name());
            return Err(Fault { code: Code::Forbidden, message });
        }
        if self.leaving.is_some() && !matches!(request, Request::HealthCheck | Request::Shutdown) {
            let message = "the scheduler is about to end".to_owned();
            return Err(Fault { code: Code::ShuttingDown, message });
        }
        if self.works.len() >= works::MAX_WORKS {
            let message = format!("{} requests wait already: try again later", self.works.len());
            return Err(Fault { code: Code::QueueFull, message });
        }
        Ok(())
    }

    /// What others tell.
    fn report(&mut self, report: Report) {
        let Report::Of { work, news } = report else { return self.leave() };
        if let Some((client, queued)) = self.works.hear(work, news) {
            queued.into_iter().for_each(|queued| self.send(&client, queued));
        }
    }

    fn end(&mut self, work: u64, answer: Answer) {
        self.report(Report::Of { work, news: News::Done(Box::new(answer)) });
    }

    fn refuse(
        &mut self,
        client: &ClientId,
        route: Route,
        fault: &Fault,
        id: Option<&serde_json::Value>,
    ) {
        self.answer(client, route, Answer::error(fault).to(id));
    }

    fn answer(&mut self, client: &ClientId, route: Route, answer: Answer) {
        self.send(client, Queued::Answer(route, answer));
    }

    fn send(&mut self, client: &ClientId, queued: Queued) {
        match self.clients.send(&self.sockets, client, queued) {
            Took::Yes => {}
            Took::Gone => self.forget(client),
            // What it is told of that waits for it; what it asked for ends.
            Took::TooSlow => self.works.forget(client),
        }
    }
}

//! The sockets: messages in, answers out, and who has gone.

use std::collections::{HashMap, HashSet};

use zmq::{Context, DONTWAIT, Message, SNDMORE, Socket, SocketEvent};

use crate::address::{Address, is_loopback};
use crate::error::{IpcError, Result};
use crate::protocol::{MAX_FRAMES, MAX_TENSOR_BYTES};

/// Answers that wait in ZeroMQ for a client to read them, at most.
const SEND_HIGH_WATER: i32 = 16;
/// Bytes of answers that wait in the kernel, about: left to itself it would take megabytes for each client.
const SEND_BUFFER: i32 = 64 << 10;
/// Messages of a client that wait to be read, at most.
const RECEIVE_HIGH_WATER: i32 = 16;
/// A frame that is longer ends the connection. Frames longer than a tensor may be, but not than that, get an answer.
const MAX_FRAME_BYTES: i64 = 4 * MAX_TENSOR_BYTES as i64;
/// A client that says nothing to a heartbeat for so long is gone.
const HEARTBEAT_MS: i32 = 2_000;
const HEARTBEAT_TIMEOUT_MS: i32 = 10_000;
/// Time for the last answers when the scheduler ends.
const LINGER_MS: i32 = 1_000;

/// What ZeroMQ calls a client.
pub(super) type ClientId = Vec<u8>;

/// A message as it came.
pub(super) struct Incoming {
    pub(super) client: ClientId,
    /// The connection that it came by, where ZeroMQ tells.
    fd: Option<i32>,
    /// How the answer gets back.
    pub(super) route: Route,
    /// All frames after the delimiter.
    pub(super) frames: Vec<Vec<u8>>,
    /// Frames beyond those, which were thrown away.
    pub(super) too_many: bool,
    /// Whether the client runs on this machine.
    pub(super) local: bool,
}

/// How an answer gets back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// Whether an empty frame comes before the others.
    pub(super) delimited: bool,
    /// Whether the client takes one answer only to each message.
    pub(super) single: bool,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way.
    Yes,
    /// As many wait for this client as may.
    Full,
    /// There is no such client any more.
    Gone,
}

/// The sockets that clients connect to, and that tells of connections.
pub(super) struct Sockets {
    router: Socket,
    monitor: Socket,
    bound: String,
    /// Connections that are there, and whose they are.
    open: HashSet<i32>,
    clients: HashMap<i32, ClientId>,
}

impl Sockets {
    pub(super) fn bind(context: &Context, address: &Address) -> Result<Self> {
        let failed = || IpcError::zmq("ZeroMQ cannot make a socket");
        let router = context.socket(zmq::ROUTER).map_err(failed())?;
        configure(&router, address).map_err(failed())?;
        let monitor = context.socket(zmq::PAIR).map_err(failed())?;
        let events = SocketEvent::ACCEPTED.to_raw() | SocketEvent::DISCONNECTED.to_raw();
        router.monitor("inproc://connections", i32::from(events)).map_err(failed())?;
        monitor.connect("inproc://connections").map_err(failed())?;
        router.bind(&address.to_bind()).map_err(|error| match error {
            zmq::Error::EADDRINUSE => address.taken(),
            other => IpcError::Zmq { what: format!("cannot listen at {address}"), source: other },
        })?;
        let bound = router.get_last_endpoint().ok().and_then(Result::ok);
        let bound = bound.unwrap_or_else(|| address.to_string());
        Ok(Self { router, monitor, bound, open: HashSet::new(), clients: HashMap::new() })
    }

    /// The address with its port, where any was asked for.
    pub(super) fn bound(&self) -> &str {
        &self.bound
    }

    /// What is to be waited for.
    pub(super) fn poll_items(&self) -> [zmq::PollItem<'_>; 2] {
        [self.router.as_poll_item(zmq::POLLIN), self.monitor.as_poll_item(zmq::POLLIN)]
    }

    /// Clients whose connections are no more.
    pub(super) fn departed(&mut self) -> Vec<ClientId> {
        let mut departed = Vec::new();
        while let Some((event, fd)) = self.event() {
            if event == SocketEvent::ACCEPTED {
                self.open.insert(fd);
            } else if event == SocketEvent::DISCONNECTED {
                self.open.remove(&fd);
                departed.extend(self.clients.remove(&fd));
            }
        }
        departed
    }

    fn event(&self) -> Option<(SocketEvent, i32)> {
        let first = self.monitor.recv_bytes(DONTWAIT).ok()?;
        // The address comes in a frame of its own.
        let _ = self.monitor.recv_bytes(DONTWAIT);
        let (event, value) = first.split_first_chunk::<2>()?;
        let value = i32::from_ne_bytes(value.try_into().ok()?);
        Some((SocketEvent::from_raw(u16::from_ne_bytes(*event)), value))
    }

    /// The next message, if there is one.
    pub(super) fn receive(&mut self) -> Option<Incoming> {
        let client = self.router.recv_bytes(DONTWAIT).ok()?;
        let mut frames = Vec::new();
        let (mut route, mut local, mut fd) = (Route::default(), true, None);
        let (mut first, mut too_many) = (true, false);
        while self.router.get_rcvmore().unwrap_or(false) {
            let Ok(mut frame) = self.router.recv_msg(DONTWAIT) else { break };
            if first {
                fd = frame.gets("__fd").and_then(|fd| fd.parse().ok());
                route.single = frame.gets("Socket-Type") == Some("REQ");
                // Sockets in the file system have no address.
                local = frame.gets("Peer-Address").is_none_or(|peer| {
                    !peer.contains('.') && !peer.contains("::") || is_loopback(peer)
                });
                route.delimited = frame.is_empty() && frame.get_more();
            }
            match std::mem::take(&mut first) && route.delimited {
                true => {}
                false if frames.len() < MAX_FRAMES => frames.push(frame.to_vec()),
                false => too_many = true,
            }
        }
        Some(Incoming { client, fd, route, frames, too_many, local })
    }

    /// Whether the connection that a message came by is still there. To be asked after [`Self::departed`]: connections that
    /// ended before the message came have been told of then, so that a new one is not taken for an old one with its number.
    pub(super) fn is_open(&mut self, incoming: &Incoming) -> bool {
        let Some(fd) = incoming.fd else { return true };
        let open = self.open.contains(&fd);
        if open {
            self.clients.insert(fd, incoming.client.clone());
        }
        open
    }

    /// Hands an answer to ZeroMQ.
    pub(super) fn send(&self, client: &[u8], route: Route, frames: &[Vec<u8>]) -> Sent {
        match self.router.send(client, DONTWAIT | SNDMORE) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => return Sent::Full,
            Err(_) => return Sent::Gone,
        }
        // Once the client's frame is taken, the others are.
        let delimiter = route.delimited.then(Message::new);
        let frames = frames.iter().map(|frame| Message::from(&frame[..]));
        let all: Vec<Message> = delimiter.into_iter().chain(frames).collect();
        match self.router.send_multipart(all, DONTWAIT) {
            Ok(()) => Sent::Yes,
            Err(_) => Sent::Gone,
        }
    }
}

fn configure(router: &Socket, address: &Address) -> zmq::Result<()> {
    // So that we hear where an answer cannot be sent.
    router.set_router_mandatory(true)?;
    router.set_ipv6(address.is_ipv6())?;
    router.set_sndhwm(SEND_HIGH_WATER)?;
    router.set_rcvhwm(RECEIVE_HIGH_WATER)?;
    router.set_sndbuf(SEND_BUFFER)?;
    router.set_maxmsgsize(MAX_FRAME_BYTES)?;
    router.set_heartbeat_ivl(HEARTBEAT_MS)?;
    router.set_heartbeat_timeout(HEARTBEAT_TIMEOUT_MS)?;
    router.set_linger(LINGER_MS)
}

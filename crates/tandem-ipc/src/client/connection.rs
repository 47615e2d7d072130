//! A client's socket, which tells when the other end is gone.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use zmq::{Context, DONTWAIT, PollItem, Socket, SocketEvent};

use super::Reply;
use crate::address::Address;
use crate::error::{IpcError, Result};

/// A scheduler that says nothing to a heartbeat for so long is gone, also where its machine is.
const HEARTBEAT_MS: i32 = 1_000;
const HEARTBEAT_TIMEOUT_MS: i32 = 5_000;
/// Tokens that wait to be read: the scheduler merges what does not fit.
const RECEIVE_HIGH_WATER: i32 = 1_000;

pub(super) struct Connection {
    // Before the context, which waits for its sockets.
    dealer: Socket,
    monitor: Socket,
    address: String,
    _context: Context,
}

impl Connection {
    pub(super) fn open(address: &Address) -> Result<Self> {
        let failed = || IpcError::zmq("ZeroMQ cannot make a socket");
        let context = Context::new();
        let dealer = context.socket(zmq::DEALER).map_err(failed())?;
        configure(&dealer).map_err(failed())?;
        let monitor = context.socket(zmq::PAIR).map_err(failed())?;
        let events = SocketEvent::CONNECTED.to_raw()
            | SocketEvent::DISCONNECTED.to_raw()
            | SocketEvent::CONNECT_RETRIED.to_raw();
        dealer.monitor("inproc://connection", i32::from(events)).map_err(failed())?;
        monitor.connect("inproc://connection").map_err(failed())?;
        dealer
            .connect(&address.to_string())
            .map_err(IpcError::zmq(format!("cannot connect to {address}")))?;
        Ok(Self { dealer, monitor, address: address.to_string(), _context: context })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn send(&self, json: Vec<u8>, tensor: Option<&[u8]>) -> Result<()> {
        let frames = std::iter::once(json).chain(tensor.map(<[u8]>::to_vec));
        self.dealer
            .send_multipart(frames, 0)
            .map_err(IpcError::zmq(format!("cannot send to {}", self.address)))
    }

    /// The next message; `None` where none has come by then.
    ///
    /// # Errors
    /// Where the connection ends, or cannot be made.
    pub(super) fn receive(&self, by: Instant) -> Result<Option<Reply>> {
        loop {
            // First what has come: the scheduler may have ended after it.
            if let Some(frames) = self.frames()? {
                return self.reply(frames).map(Some);
            }
            if self.is_gone() {
                return Err(IpcError::Gone(self.address.clone()));
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // A millisecond more than less, lest the last one be polled away.
            let wait = (left + Duration::from_millis(1)).as_millis() as i64;
            let mut items: [PollItem<'_>; 2] =
                [self.dealer.as_poll_item(zmq::POLLIN), self.monitor.as_poll_item(zmq::POLLIN)];
            match zmq::poll(&mut items, wait) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(IpcError::zmq("ZeroMQ cannot wait for messages")(error)),
            }
        }
    }

    fn frames(&self) -> Result<Option<Vec<Vec<u8>>>> {
        match self.dealer.recv_multipart(DONTWAIT) {
            Ok(frames) => Ok(Some(frames)),
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => Ok(None),
            Err(error) => Err(IpcError::zmq(format!("cannot hear {}", self.address))(error)),
        }
    }

    fn reply(&self, frames: Vec<Vec<u8>>) -> Result<Reply> {
        let mut frames = frames.into_iter();
        let json = frames.next().unwrap_or_default();
        let fields: Map<String, Value> = serde_json::from_slice(&json).map_err(|error| {
            IpcError::Answer { address: self.address.clone(), what: error.to_string() }
        })?;
        Ok(Reply { fields, tensor: frames.next() })
    }

    /// Whether the newest of what has happened to the connection is that it ended, or could not be made.
    fn is_gone(&self) -> bool {
        let mut gone = false;
        while let Ok(event) = self.monitor.recv_bytes(DONTWAIT) {
            // The address comes in a frame of its own.
            let _ = self.monitor.recv_bytes(DONTWAIT);
            let event = event.first_chunk().map(|event| u16::from_ne_bytes(*event));
            gone = event != Some(SocketEvent::CONNECTED.to_raw());
        }
        gone
    }
}

fn configure(dealer: &Socket) -> zmq::Result<()> {
    dealer.set_ipv6(true)?;
    dealer.set_rcvhwm(RECEIVE_HIGH_WATER)?;
    dealer.set_heartbeat_ivl(HEARTBEAT_MS)?;
    dealer.set_heartbeat_timeout(HEARTBEAT_TIMEOUT_MS)?;
    dealer.set_linger(0)
}

//! Messages to the thread that owns the sockets, which sleeps in a poll of ZeroMQ's.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The sleeper's end.
pub(crate) struct Inbox<T> {
    messages: Receiver<T>,
    bell: UnixStream,
    rung: Arc<AtomicBool>,
}

/// Anybody's end.
pub(crate) struct Outlet<T> {
    messages: Sender<T>,
    bell: Arc<UnixStream>,
    rung: Arc<AtomicBool>,
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self {
            messages: self.messages.clone(),
            bell: Arc::clone(&self.bell),
            rung: Arc::clone(&self.rung),
        }
    }
}

/// Both ends.
///
/// # Errors
/// When the system has no more file descriptors.
pub(crate) fn inbox<T>() -> std::io::Result<(Inbox<T>, Outlet<T>)> {
    let (sender, messages) = channel();
    let (bell, button) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    button.set_nonblocking(true)?;
    let rung = Arc::new(AtomicBool::new(false));
    let outlet = Outlet { messages: sender, bell: Arc::new(button), rung: Arc::clone(&rung) };
    Ok((Inbox { messages, bell, rung }, outlet))
}

impl<T> Outlet<T> {
    /// Hands a message over, and wakes the sleeper. Where it is no more, nothing happens.
    pub(crate) fn send(&self, message: T) {
        // One ring is enough for all messages that come before it is answered.
        if self.messages.send(message).is_ok() && !self.rung.swap(true, Ordering::AcqRel) {
            // It cannot be full: at most one byte is in it.
            let _ = (&*self.bell).write(&[1]);
        }
    }
}

impl<T> Inbox<T> {
    /// What becomes readable when there are messages.
    pub(crate) fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// All messages that are there.
    pub(crate) fn take(&mut self) -> Vec<T> {
        let mut rings = [0; 8];
        while match self.bell.read(&mut rings) {
            Ok(read) => read == rings.len(),
            Err(error) => error.kind() == ErrorKind::Interrupted,
        } {}
        // First this: a message that comes from now on rings anew.
        self.rung.store(false, Ordering::Release);
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nothing_is_lost_and_every_message_rings() {
        let (mut inbox, outlet) = inbox::<usize>().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let outlet = outlet.clone();
                std::thread::spawn(move || (0..5000).for_each(|number| outlet.send(number)))
            })
            .collect();
        let mut sum = 0;
        let mut count = 0;
        while count < 20_000 {
            let mut items = [zmq::PollItem::from_fd(inbox.fd(), zmq::POLLIN)];
            let ready = zmq::poll(&mut items, Duration::from_secs(20).as_millis() as i64).unwrap();
            assert_eq!(ready, 1, "asleep with {count} messages taken");
            let messages = inbox.take();
            count += messages.len();
            sum += messages.iter().sum::<usize>();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((count, sum), (20_000, 4 * (4999 * 5000 / 2)));
        // Nobody rings any more.
        let mut items = [zmq::PollItem::from_fd(inbox.fd(), zmq::POLLIN)];
        let _ = inbox.take();
        assert_eq!(zmq::poll(&mut items, 10).unwrap(), 0);
    }
}

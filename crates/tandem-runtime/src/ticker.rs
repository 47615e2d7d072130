//! A thread that does something at regular times.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Calls a function every so often, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    /// Taken, and so closed, when the thread is to end.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Calls `tick` every `interval` in a thread of that name. Times that passed while `tick` ran, or while the thread
    /// did not get to run, are left out.
    pub(crate) fn start(
        name: &str,
        interval: Duration,
        mut tick: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (running, ended) = channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut next = Instant::now() + interval;
            loop {
                let wait = next.saturating_duration_since(Instant::now());
                if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                tick();
                next = (next + interval).max(Instant::now());
            }
        })?;
        Ok(Self { running: Some(running), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(thread) = self.thread.take() {
            // A panic in `tick` has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_until_dropped() {
        let (sender, ticks) = channel();
        let ticker = Ticker::start("test", Duration::from_millis(1), move || {
            let _ = sender.send(());
        });
        let ticker = ticker.unwrap();
        for _ in 0..3 {
            ticks.recv().unwrap();
        }
        drop(ticker);
        // The thread and its sender are gone.
        assert_eq!(ticks.iter().count(), ticks.try_iter().count());
    }
}

//! A thread that uses the memory, as another program would.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Words that are copied to and fro: more than caches hold.
const WORDS: usize = (128 << 20) / size_of::<u64>();

/// Copies memory until it is dropped.
pub(super) struct Hog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hog {
    pub(super) fn start() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("hog".into()).spawn(move || {
            let (mut from, mut to) = (vec![1u64; WORDS], vec![2u64; WORDS]);
            while !stopped.load(Ordering::Relaxed) {
                to.copy_from_slice(&from);
                std::mem::swap(&mut from, &mut to);
                std::hint::black_box(&mut to);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot fail but by lack of memory, which would have ended the program.
            let _ = thread.join();
        }
    }
}

//! Ctrl-C (and SIGTERM, SIGHUP): the first one asks the work to stop, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit code of a program ended by Ctrl-C, as shells have it.
pub(crate) const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from now on.
pub(crate) fn install() -> anyhow::Result<()> {
    if INSTALLED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_CODE));
        }
    })
    .context("cannot catch Ctrl-C")
}

/// Whether Ctrl-C came.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Forgets a Ctrl-C that has been acted on.
pub(crate) fn reset() {
    REQUESTED.store(false, Ordering::Relaxed);
}

//! Ctrl-C (and SIGTERM, SIGHUP): the first one asks the work to stop, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// The exit code of a program ended by Ctrl-C, as shells have it.
pub(crate) const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from now on.
pub(crate) fn install() -> anyhow::Result<()> {
    if INSTALLED.load(Ordering::Relaxed) {
        return Ok(());
    }
    install_with(|| {})
}

/// As [`install`], and calls `stop` the first time. Nothing may have been installed before.
pub(crate) fn install_with(mut stop: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        stop();
    })
    .context("cannot catch Ctrl-C")?;
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Catches Ctrl-C from now on; what this returns is ready once it comes.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (sender, mut requested) = tokio::sync::watch::channel(false);
    install_with(move || {
        let _ = sender.send(true);
    })?;
    Ok(async move {
        let _ = requested.wait_for(|&requested| requested).await;
    })
}

/// Whether Ctrl-C came.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Forgets a Ctrl-C that has been acted on.
pub(crate) fn reset() {
    REQUESTED.store(false, Ordering::Relaxed);
}

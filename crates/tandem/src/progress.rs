//! Progress bars on stderr, shown only to a person at a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes.
pub(crate) fn bytes(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A bar that counts things.
pub(crate) fn count(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:30}] {human_pos}/{human_len} {eta}")
}

/// What is being done, of something that has no end to count to.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

/// indicatif draws to stderr, and draws nothing where stderr is no terminal.
fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what.to_owned())
}

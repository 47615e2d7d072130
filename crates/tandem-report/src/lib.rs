//! A telemetry session in pictures, without a browser: SVG and PNG files, and one HTML page that has them all.
//!
//! ```text
//!  SESSION.json ──> Session ──┐
//!                             ├──> plots ──> figures (SVG, PNG) ──> page ──> files
//!  trace or rows ─> LastPass ─┘
//! ```
//!
//! Everything is made in memory before the first file is written, and files come from strangers: a session is checked as a
//! whole before anything is drawn from it.
#![forbid(unsafe_code)]

mod figure;
mod last_pass;
mod page;
mod plots;
mod rows;
mod session;
mod trace;
mod write;

pub use figure::{Figure, PlotError};
pub use last_pass::{LastPass, Slice};
pub use session::{Bubbles, DeviceUse, LayerTime, OperationTime, Overlap, Session};
pub use write::{Report, ReportError};

//! One text: what is asked for, how it is read and written, and what comes of it.

mod foreign;
mod generation;
mod output;
mod request;
mod session;

pub use foreign::{ForeignError, ForeignModel, ForeignSession};
pub(crate) use generation::{Context, Generation, Step, Turn, advance, check_prompt};
pub use output::{Listener, Output};
pub use request::{FinishReason, Generated, Request};
pub use session::Session;

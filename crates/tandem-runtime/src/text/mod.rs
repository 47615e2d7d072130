//! One text: what is asked for, how it is read and written, and what comes of it.

mod context;
mod foreign;
mod generation;
mod output;
mod request;
mod session;

pub(crate) use context::{Cache, Context, common};
pub use foreign::{ForeignError, ForeignModel, ForeignSession};
pub(crate) use generation::{Generation, Step, Turn, advance, check_prompt};
pub use output::{Listener, Output};
pub use request::{FinishReason, Generated, Request};
pub use session::Session;

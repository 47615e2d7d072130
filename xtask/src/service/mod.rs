//! The scheduler service under load, and what it costs: `cargo xtask soak`, `cargo xtask service-cost`.

mod cost;
mod process;
mod soak;

pub(crate) use cost::{CostArgs, cost};
pub(crate) use soak::{SoakArgs, soak};

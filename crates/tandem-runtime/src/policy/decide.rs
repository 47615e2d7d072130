//! What a policy is asked, and what it answers.

use std::fmt;
use std::time::Duration;

use super::PolicyKind;
use crate::plan::{PassSize, Plan};

/// A pass that is about to be computed, and what goes on meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Situation {
    /// Its size.
    pub pass: PassSize,
    /// Whether it has tokens of prompts.
    pub reads: bool,
    /// Whether it has the newest token of a text, for whose next one somebody waits.
    pub writes: bool,
    /// Texts that wait for their turn.
    pub waiting: usize,
    /// Share of the memory's bandwidth that is in use, over the moving window; `None` where nobody knows.
    pub utilization: Option<f64>,
    /// Whether there is a GPU to compute on.
    pub has_igpu: bool,
}

/// Decides, pass after pass, where steps are computed, and how many tokens of prompts a pass may have.
pub trait Policy: Send + fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> PolicyKind;

    /// Where the steps of a pass are computed for which the partition's table has this plan.
    fn place(&mut self, table: &Plan, situation: &Situation) -> Plan;

    /// How long the pass is to wait before it begins. Asked once, before [`Self::place`].
    fn pause(&mut self, _situation: &Situation) -> Duration {
        Duration::ZERO
    }

    /// The pass that was placed last took so long.
    fn took(&mut self, _time: Duration) {}

    /// Tokens of prompts that a pass may have, where the executor takes `batch`.
    fn prefill_limit(&self, batch: usize) -> usize {
        batch
    }
}

/// The table as it is.
#[derive(Clone, Copy, Debug)]
pub struct Static;

impl Policy for Static {
    fn kind(&self) -> PolicyKind {
        PolicyKind::Static
    }

    fn place(&mut self, table: &Plan, _situation: &Situation) -> Plan {
        table.clone()
    }
}

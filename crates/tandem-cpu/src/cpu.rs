//! The context of every operation.

use std::sync::Arc;

use crate::isa::{AttentionKernels, GENERIC, Isa, IsaUnavailable, Kernels, Loops, PackedKernels};
use crate::onednn::OneDnn;
use crate::team::ThreadTeam;

/// A thread team, perhaps shared with others, and the instruction set that it computes with.
pub struct Cpu {
    team: Arc<ThreadTeam>,
    isa: Isa,
    loops: Loops,
    onednn: Option<Arc<OneDnn>>,
}

impl Cpu {
    /// A context with the best instruction set of this machine.
    pub fn new(team: impl Into<Arc<ThreadTeam>>) -> Self {
        let isa = Isa::detect();
        Self { team: team.into(), isa, loops: isa.loops().unwrap_or(GENERIC), onednn: None }
    }

    /// A context with a given instruction set: for tests and comparisons.
    ///
    /// # Errors
    /// When this machine lacks the instruction set.
    pub fn with_isa(team: impl Into<Arc<ThreadTeam>>, isa: Isa) -> Result<Self, IsaUnavailable> {
        let loops = isa.loops().ok_or(IsaUnavailable(isa))?;
        Ok(Self { team: team.into(), isa, loops, onednn: None })
    }

    /// Has oneDNN compute products of many tokens from now on, or not any more. It computes with f32, whatever the
    /// weights: see [`crate::onednn`].
    pub fn set_onednn(&mut self, onednn: Option<Arc<OneDnn>>) {
        self.onednn = onednn;
    }

    /// oneDNN, where it computes products of many tokens.
    pub fn onednn(&self) -> Option<&OneDnn> {
        self.onednn.as_deref()
    }

    /// The thread team.
    pub fn team(&self) -> &Arc<ThreadTeam> {
        &self.team
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The inner loops on floats of that instruction set.
    pub(crate) fn kernels(&self) -> &'static dyn Kernels {
        self.loops.kernels
    }

    /// The inner loops on packed weights of that instruction set.
    pub(crate) fn packed(&self) -> &'static dyn PackedKernels {
        self.loops.packed
    }

    /// The inner loops on keys and values of that instruction set.
    pub(crate) fn attention(&self) -> &'static dyn AttentionKernels {
        self.loops.attention
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.team.size()).field("isa", &self.isa).finish()
    }
}

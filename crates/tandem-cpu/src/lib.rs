//! The CPU's share of the work: the operations of a forward pass, and the thread team that runs them.
//!
//! - [`ThreadTeam`]: threads that live as long as the model and hand out work in a microsecond.
//! - [`Topology`]: the cores of this machine, and how many threads suit them.
//! - [`Cpu`]: a team and the instruction set to use; the context that every operation takes.
//! - [`ops`]: the operations, with their shapes checked. They are the same for every instruction set.
//! - [`Isa`]: the instruction sets. `isa/` holds one folder or file per set, each an implementation of the same
//!   few inner loops. One conformance suite (`tests/conformance`) runs against every one of them.
//!
//! Weights as they are in files are multiplied in f32, whatever they are encoded in: this is the exact path, the one
//! that is compared with the reference implementation. Packed weights (q4_0, q8_0) are multiplied in whole numbers
//! with activations in 8 bits: the fast path. Which of them a product takes is decided by its [`Weights`].
//!
//! Results do not depend on the number of threads: work is cut into pieces by its shape alone wherever the cut
//! changes the order of a sum.

mod affinity;
mod cpu;
mod disjoint;
mod isa;
pub mod libraries;
pub mod measure;
pub mod onednn;
pub mod ops;
mod prefetch;
mod scratch;
mod shares;
mod team;
mod topology;

pub use cpu::Cpu;
pub use isa::{Isa, IsaUnavailable};
pub use ops::{MatrixRef, Weights};
pub use team::ThreadTeam;
pub use topology::{Core, CoreClass, Topology, cpu_list};

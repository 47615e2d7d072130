//! oneDNN as another way to multiply matrices where many tokens go through the model together.
//!
//! Its `dnnl_sgemm` multiplies f32 by f32. Weights are decoded to f32 a tile at a time, as each thread of the team comes to
//! it, so nothing is stored twice; activations are not rounded, packed weights or not. So what comes out is the product of
//! the very weights with the very activations, but for the rounding of f32 sums. Which products it takes and how they are
//! cut is in `ops/matmul/library.rs`.
//!
//! The functions that are used are the same in versions 1.2 to 3 of the library: `apt-get install libdnnl2` brings 2.6, the
//! registry's package `onednn-cpu-gomp` 3.2. Of builds with TBB or SYCL (the package `onednn`) there is no telling their
//! threads to keep out of the team's way, so they are refused.

#[cfg_attr(feature = "onednn", path = "library.rs")]
#[cfg_attr(not(feature = "onednn"), path = "absent.rs")]
mod library;

use std::path::PathBuf;

pub use library::OneDnn;

use crate::libraries::{LibraryMissing, SharedLibrary};

/// oneDNN, built for OpenMP or for one thread.
pub const LIBRARY: SharedLibrary = SharedLibrary {
    name: "oneDNN",
    file: "libdnnl.so",
    variable: "TANDEM_ONEDNN",
    in_packages: None,
    advice: "`apt-get install libdnnl2` or `pip install onednn-cpu-gomp` brings it",
};

/// Why oneDNN cannot be used. Messages are one line.
#[derive(Debug, thiserror::Error)]
pub enum OneDnnError {
    /// There is no library.
    #[error(transparent)]
    Missing(#[from] LibraryMissing),
    /// The library cannot be opened, or is another one.
    #[error("oneDNN: {path}: {message}")]
    Library {
        /// The library's file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The program cannot open it.
    #[error("this program was built without the feature `onednn`")]
    NotBuilt,
}

/// `C = A B`, or `C += A B`: shapes and distances of row-major matrices of f32.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "onednn"), expect(dead_code, reason = "nothing calls the library"))]
pub(crate) struct Gemm {
    /// Rows of A and C.
    pub(crate) m: usize,
    /// Columns of B and C.
    pub(crate) n: usize,
    /// Columns of A, rows of B.
    pub(crate) k: usize,
    /// Numbers from a row of A to the next.
    pub(crate) a_stride: usize,
    /// Whether B is given transposed, `n x k`.
    pub(crate) b_transposed: bool,
    /// Whether the product is added to what is in C.
    pub(crate) accumulate: bool,
}

//! Helpers for tests: where the test data lies, the Python environment whose packages serve as oracles, and oracles
//! that are loops of our own.
//!
//! Depends on no other crate of the workspace, so that every one of them can use it in its tests. Everything here
//! panics instead of returning errors: a test that cannot get its data or its oracle has failed.
#![forbid(unsafe_code)]

mod artifact;
mod fuzz;
mod opencl;
pub mod oracle;
pub mod packed;
mod programs;
mod python;
mod rng;

use std::path::{Path, PathBuf};

pub use artifact::{Scratch, build_once, scratch};
pub use fuzz::fuzz_inputs;
pub use opencl::{OPENCL_EXPECTED, OpenClRuntimes};
pub use programs::{PROGRAMS, PROGRAMS_EXPECTED, has_program, program_is_installed};
pub use python::{
    client_python, onednn_library, onnx_python, onnxruntime_library, openai_python, python,
    python_environment, run_python, run_python_in, web_python,
};
pub use rng::Rng;

/// A file or folder under the workspace's `testdata`.
///
/// # Panics
/// When it does not exist.
pub fn testdata(rel: &str) -> PathBuf {
    let path = workspace_root().join("testdata").join(rel);
    assert!(path.exists(), "no test data at {}", path.display());
    path
}

/// The workspace this crate was compiled in.
pub fn workspace_root() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("the crate lies in crates/tandem-testkit")
}

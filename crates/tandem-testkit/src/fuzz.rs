//! The inputs of the fuzz targets that are under version control.

use std::fs;
use std::path::PathBuf;

use crate::workspace_root;

/// Every seed of a fuzz target, and every input that ever made it fail, with its path.
///
/// # Panics
/// When there are no seeds or a file cannot be read.
pub fn fuzz_inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let fuzz = workspace_root().join("fuzz");
    let mut inputs = Vec::new();
    for folder in ["corpus", "regressions"] {
        let folder = fuzz.join(folder).join(target);
        match fs::read_dir(&folder) {
            Ok(entries) => inputs.extend(entries.map(|entry| {
                let path = entry.expect("a folder's entry").path();
                let bytes = fs::read(&path).expect("an input is readable");
                (path, bytes)
            })),
            // Git keeps no empty folders: a target without regressions has none.
            Err(e) => assert!(folder.ends_with(format!("regressions/{target}")), "{folder:?}: {e}"),
        }
    }
    inputs
}

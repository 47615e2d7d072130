//! Files that tests make from test data, once.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// A folder under `target/test-data`, filled by `build` where it has not been made from these very inputs before.
///
/// Test processes wait for each other; a build that fails leaves nothing that a later one would take for whole.
///
/// # Panics
/// Where the folder cannot be made.
pub fn build_once(name: &str, inputs: &[PathBuf], build: impl FnOnce(&Path)) -> PathBuf {
    let base = crate::workspace_root().join("target/test-data");
    fs::create_dir_all(&base).expect("target/test-data");
    let lock = File::create(base.join(format!("{name}.lock"))).expect("a lock file");
    lock.lock().expect("the lock");
    let folder = base.join(name);
    let stamp_file = folder.join(".made-from");
    let stamp = stamp(inputs);
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return folder;
    }
    fs::remove_dir_all(&folder).or_else(ignore_missing).expect("removing what is out of date");
    fs::create_dir_all(&folder).expect("the folder");
    build(&folder);
    fs::write(stamp_file, stamp).expect("the stamp");
    folder
}

fn stamp(inputs: &[PathBuf]) -> String {
    let mut hasher = DefaultHasher::new();
    for input in inputs {
        fs::read(input).unwrap_or_else(|e| panic!("{}: {e}", input.display())).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn ignore_missing(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// An empty folder of a test's own, removed when dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A new [`Scratch`] folder with `name` in its name.
///
/// # Panics
/// Where it cannot be made.
pub fn scratch(name: &str) -> Scratch {
    let folder = tempfile::Builder::new().prefix(&format!("tandem-{name}-")).tempdir();
    Scratch(folder.expect("a temporary folder"))
}

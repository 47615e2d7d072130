//! The demo model, which makes the first command work with nothing downloaded.
//!
//! It is part of the program, so that `cargo install` needs no second step. A file next to the program (or in the
//! source tree the program was built from) is preferred: it can be exchanged.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_formats::AtomicFile;

/// Place of the file in the source tree, and below the program's folder in a package.
const RELATIVE: &str = "models/stories/stories-17m.gguf";

/// The same file, carried in the program.
static EMBEDDED: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stories/stories-17m.gguf"));

/// A path to the demo model; written to the user's cache folder where the program finds no file of its own.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(RELATIVE)));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(RELATIVE);
    for candidate in beside.into_iter().chain([source]) {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    unpack()
}

/// The embedded model as a file: in the user's cache folder, or where that cannot be written in the system's folder for
/// temporary files.
fn unpack() -> anyhow::Result<PathBuf> {
    use etcetera::BaseStrategy;
    let cache = etcetera::choose_base_strategy().map(|base| base.cache_dir().join("tandem"));
    let folders = cache.into_iter().chain([std::env::temp_dir().join("tandem")]);
    let mut failed = None;
    for folder in folders {
        match unpack_into(&folder) {
            Ok(path) => return Ok(path),
            Err(e) => failed = Some(e),
        }
    }
    failed.map_or_else(|| unreachable!("there is a folder to try"), Err).context(
        "cannot unpack the demo model; set XDG_CACHE_HOME to a folder you can write to, or give a model with -m",
    )
}

/// What is there already is used only where it is the same to the byte.
fn unpack_into(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("stories-17m.gguf");
    if !std::fs::read(&path).is_ok_and(|found| found == EMBEDDED) {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut file = AtomicFile::create(&path)?;
        file.append(EMBEDDED)?;
        file.commit()?;
    }
    Ok(path)
}

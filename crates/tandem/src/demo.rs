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

/// The embedded model as a file. Its name has its length and a sum of its bytes, so that another version of the
/// program does not take it for its own.
fn unpack() -> anyhow::Result<PathBuf> {
    use etcetera::BaseStrategy;
    let base = etcetera::choose_base_strategy().context("cannot find your cache folder")?;
    let folder = base.cache_dir().join("tandem");
    let path = folder.join(format!("stories-17m-{:016x}.gguf", fingerprint(EMBEDDED)));
    let whole = std::fs::metadata(&path).is_ok_and(|m| m.len() == EMBEDDED.len() as u64);
    if !whole {
        std::fs::create_dir_all(&folder)
            .with_context(|| {
                format!(
                    "cannot make the folder {} for the demo model; set XDG_CACHE_HOME to a folder you can write to, \
                     or give a model of your own with -m",
                    folder.display()
                )
            })?;
        let mut file = AtomicFile::create(&path)?;
        file.append(EMBEDDED)?;
        file.commit()?;
    }
    Ok(path)
}

/// FNV-1a, taken eight bytes at a time: tells versions apart, nothing more.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

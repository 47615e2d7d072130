//! Compiling kernels, and keeping what was compiled.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tandem_formats::AtomicFile;

use crate::cl::{Context, Program};
use crate::device::Device;
use crate::error::{GpuError, Result};

/// Lines of a compiler's log that an error repeats.
const LOG_LINES: usize = 12;
/// Bytes of compiled kernels that are kept, all devices together.
const CACHE_BYTES: u64 = 64 << 20;
/// What entries of the cache begin with; another number makes all older ones void.
const MAGIC: &[u8; 8] = b"tandem1\n";

/// The source of one or more kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Name of the file.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What every source begins with.
pub(crate) const COMMON: &str = include_str!("../kernels/common.cl");

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct ProgramCache {
    folder: PathBuf,
    limit: u64,
}

impl ProgramCache {
    /// The user's (`$XDG_CACHE_HOME/tandem/kernels`, usually under `~/.cache`); none where there is no home.
    pub fn of_user() -> Option<Self> {
        use etcetera::BaseStrategy;
        let base = etcetera::choose_base_strategy().ok()?;
        Some(Self::in_folder(base.cache_dir().join("tandem/kernels"), CACHE_BYTES))
    }

    /// One in a folder, which is made when something is stored, of up to `limit` bytes.
    pub fn in_folder(folder: PathBuf, limit: u64) -> Self {
        Self { folder, limit }
    }

    fn load(&self, key: u64) -> Option<Vec<u8>> {
        let entry = fs::read(self.file(key)).ok()?;
        let (head, binary) = entry.split_at_checked(MAGIC.len() + 8)?;
        let sound = head[..MAGIC.len()] == *MAGIC && head[MAGIC.len()..] == checksum(binary);
        sound.then(|| binary.to_vec())
    }

    /// Stores a binary. A cache that cannot be written is no cache, and no error.
    fn store(&self, key: u64, binary: &[u8]) {
        let entry = [&MAGIC[..], &checksum(binary), binary].concat();
        let written = fs::create_dir_all(&self.folder)
            .map_err(|_e| ())
            .and_then(|()| write_whole(&self.file(key), &entry).map_err(|_e| ()));
        if written.is_ok() {
            self.shrink();
        }
    }

    /// Removes the oldest entries beyond the limit.
    fn shrink(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let data = entry.metadata().ok()?;
                Some((data.modified().ok()?, data.len(), entry.path()))
            })
            .collect();
        files.sort_by(|a, b| b.cmp(a));
        let mut total = 0;
        for (_, bytes, path) in files {
            total += bytes;
            if total > self.limit {
                // Another process may have been faster.
                let _gone = fs::remove_file(path);
            }
        }
    }

    fn file(&self, key: u64) -> PathBuf {
        self.folder.join(format!("{key:016x}.bin"))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Writes a file that appears under its name whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> tandem_formats::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.append(bytes)?;
    file.commit()
}

fn checksum(binary: &[u8]) -> [u8; 8] {
    hash(&binary).to_le_bytes()
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Compiles a source for a device, or takes it from the cache.
///
/// # Errors
/// When it does not compile; with the first lines of the compiler's log.
pub(crate) fn build(
    context: &Context,
    device: &Device,
    cache: Option<&ProgramCache>,
    source: Source,
    options: &str,
) -> Result<Program> {
    let key = key(device, source, options);
    if let Some(binary) = cache.and_then(|cache| cache.load(key)) {
        // A binary that the driver does not take after all is compiled anew, and replaced.
        if let Ok(program) = Program::from_binary(context, device.id, &binary)
            && program.build(device.id, options).is_ok()
        {
            return Ok(program);
        }
    }
    let program = Program::from_source(context, &format!("{COMMON}\n{}", source.text))?;
    program.build(device.id, options).map_err(|_code| GpuError::Build {
        file: source.file,
        device: device.info().full_name(),
        log: first_lines(&program.build_log(device.id)),
    })?;
    if let (Some(cache), Some(binary)) = (cache, program.binary()) {
        cache.store(key, &binary);
    }
    Ok(program)
}

/// The name of a compiled source: another driver, source or option makes it another.
fn key(device: &Device, source: Source, options: &str) -> u64 {
    let info = device.info();
    let names = (&info.platform, &info.name, &info.driver, &info.opencl);
    hash(&(names, COMMON, source.text, options))
}

/// The lines of a log that say something, the first few of them, on one line.
fn first_lines(log: &str) -> String {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(LOG_LINES).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_testkit::scratch;

    #[test]
    fn what_is_stored_comes_back_unless_it_was_damaged() {
        let folder = scratch("kernels");
        let cache = ProgramCache::in_folder(folder.path().join("a/b"), 1000);
        assert_eq!(cache.load(1), None);
        cache.store(1, b"binary");
        assert_eq!(cache.load(1).as_deref(), Some(&b"binary"[..]));
        assert_eq!(cache.load(2), None);
        let file = cache.file(1);
        let mut entry = fs::read(&file).unwrap();
        for damage in [3, 12, entry.len() - 1] {
            entry[damage] ^= 1;
            fs::write(&file, &entry).unwrap();
            assert_eq!(cache.load(1), None, "byte {damage}");
            entry[damage] ^= 1;
        }
        fs::write(&file, &entry[..10]).unwrap();
        assert_eq!(cache.load(1), None);
    }

    #[test]
    fn the_oldest_go_first() {
        let folder = scratch("kernels");
        let cache = ProgramCache::in_folder(folder.path().to_owned(), 300);
        for key in 0..4 {
            cache.store(key, &[7; 84]);
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + key);
            fs::File::open(cache.file(key)).unwrap().set_modified(time).unwrap();
        }
        cache.store(9, &[7; 84]);
        let kept: Vec<_> = (0..10).filter(|key| cache.load(*key).is_some()).collect();
        assert_eq!(kept, [2, 3, 9]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_does_no_harm() {
        let cache = ProgramCache::in_folder(PathBuf::from("/proc/nowhere"), 10);
        cache.store(1, b"x");
        assert_eq!(cache.load(1), None);
    }

    #[test]
    fn logs_are_cut() {
        let log = format!("\n  error: x\n{}", "note\n".repeat(100));
        let cut = first_lines(&log);
        assert!(cut.starts_with("error: x | note") && cut.matches('|').count() == LOG_LINES - 1);
    }

    const SQUARE: Source = Source {
        file: "square.cl",
        text: "KERNEL square(OUT(x)) { OUT_PTR(float, x); x[0] *= x[0]; }",
    };

    /// Every device of this machine; none where there is no OpenCL, which the conformance suite reports.
    fn on_every_device(check: impl Fn(&Device, &Context)) {
        for device in crate::device::devices().unwrap_or_default() {
            check(&device, &Context::new(device.id).unwrap());
        }
    }

    #[test]
    fn what_does_not_compile_is_an_error_with_the_compilers_words() {
        on_every_device(|device, context| {
            let broken = Source {
                file: "broken.cl",
                text: "KERNEL broken(OUT(x)) { no_such_thing(x_at); }",
            };
            let options = crate::path::Path::Portable.options(device.info());
            let message = build(context, device, None, broken, &options).unwrap_err().to_string();
            assert!(message.contains("broken.cl does not compile for"), "{message}");
            assert!(message.contains("no_such_thing") && !message.contains('\n'), "{message}");
        });
    }

    #[test]
    fn binaries_are_kept_and_damaged_ones_compiled_anew() {
        on_every_device(|device, context| {
            let folder = scratch("kernels");
            let cache = ProgramCache::in_folder(folder.path().to_owned(), 1 << 20);
            let options = crate::path::Path::Portable.options(device.info());
            let compile = || build(context, device, Some(&cache), SQUARE, &options).unwrap();
            compile();
            let entry = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
            let whole = fs::read(&entry).unwrap();
            // One that is damaged, and one whose checksum is right but which is no binary.
            let nonsense = [&MAGIC[..], &checksum(b"nonsense"), b"nonsense"].concat();
            for bad in [whole[..whole.len() / 2].to_vec(), nonsense] {
                fs::write(&entry, bad).unwrap();
                crate::cl::Kernel::new(&compile(), "square").unwrap();
                assert!(fs::read(&entry).unwrap().len() > 100, "{}", device.info().name);
            }
            // What is kept is used: this source would not compile.
            let binary = cache.load(key_of(&entry)).unwrap();
            let broken = Source { file: "square.cl", text: "nonsense" };
            cache.store(key(device, broken, &options), &binary);
            crate::cl::Kernel::new(
                &build(context, device, Some(&cache), broken, &options).unwrap(),
                "square",
            )
            .unwrap();
        });
    }

    fn key_of(entry: &Path) -> u64 {
        let name = entry.file_stem().unwrap().to_str().unwrap();
        u64::from_str_radix(name, 16).unwrap()
    }
}

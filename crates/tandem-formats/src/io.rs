//! Reading files by position, and writing them all or not at all.
//!
//! Weights are read with `pread` rather than mapped: a mapped file that somebody truncates kills the process with
//! a signal, a failed `pread` is an error with a name. Positional reads also need no shared cursor, so any number
//! of threads read one [`InputFile`] at once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{FormatError, Result};

/// A file opened for reading by position.
#[derive(Debug)]
pub struct InputFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl InputFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// When the file cannot be opened, or is a directory, a pipe or a device.
    pub fn open(path: &Path) -> Result<Self> {
        let no_access = |e| FormatError::io(path, "cannot open", e);
        // Asked before opening: opening a named pipe would wait for somebody to write to it.
        require_regular(path, &fs::metadata(path).map_err(no_access)?)?;
        let file = File::open(path).map_err(no_access)?;
        let len = file.metadata().map_err(no_access)?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file had no bytes when it was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from byte `offset` on.
    ///
    /// # Errors
    /// When the operating system fails, or the file ends before `buf` is full.
    pub fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|e| {
            FormatError::io(
                &self.path,
                format_args!("cannot read {} bytes at offset {offset}", buf.len()),
                e,
            )
        })
    }

    /// The whole file, for small ones such as configurations.
    ///
    /// # Errors
    /// When the file is longer than `limit` bytes, or cannot be read.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>> {
        if self.len > limit {
            return Err(FormatError::invalid(
                &self.path,
                "file size",
                format_args!("at most {limit} bytes"),
                format_args!("{} bytes", self.len),
            ));
        }
        self.read_vec(0, self.len)
    }

    /// `n` bytes from `offset` on; the range is checked against the file before memory is asked for.
    pub(crate) fn read_vec(&self, offset: u64, n: u64) -> Result<Vec<u8>> {
        let fits = offset.checked_add(n).is_some_and(|end| end <= self.len);
        let len = usize::try_from(n).ok().filter(|_| fits).ok_or_else(|| {
            FormatError::invalid(
                &self.path,
                format_args!("{n} bytes at offset {offset}"),
                "a range within the file",
                format_args!("a file of {} bytes", self.len),
            )
        })?;
        let mut bytes = vec![0; len];
        self.read_exact_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// A cursor over the file from its first byte; any number of them may be in use.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor { file: &self.file, pos: 0 }
    }
}

/// [`Read`] over an [`InputFile`], with a position of its own.
pub(crate) struct Cursor<'a> {
    file: &'a File,
    pos: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.pos)?;
        self.pos += n as u64;
        Ok(n)
    }
}

/// A file that appears under its name complete, or not at all.
///
/// Bytes go to a temporary file `.NAME.*.partial` in the same folder, which [`commit`](Self::commit) renames.
/// Dropped without a commit, it leaves nothing behind and an earlier file of that name stays as it was.
#[derive(Debug)]
pub struct AtomicFile {
    final_path: PathBuf,
    temp: BufWriter<NamedTempFile>,
    /// A write failed: bytes are missing, whatever succeeds later.
    incomplete: bool,
}

impl AtomicFile {
    /// Starts a file that will be called `final_path`, with the permissions the umask gives to new files.
    ///
    /// # Errors
    /// When the folder does not exist or is not writable, or `final_path` is something other than a regular file,
    /// which the rename would destroy.
    pub fn create(final_path: &Path) -> Result<Self> {
        if let Ok(existing) = fs::metadata(final_path) {
            require_regular(final_path, &existing)?;
        }
        let name = final_path.file_name().ok_or_else(|| {
            FormatError::invalid(final_path, "path", "the name of a file to write", "no file name")
        })?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let temp = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            // tempfile's own choice is 0600; the kernel takes the umask off this.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder_of(final_path))
            .map_err(|e| FormatError::io(final_path, "cannot create", e))?;
        Ok(Self {
            final_path: final_path.to_owned(),
            temp: BufWriter::with_capacity(1 << 20, temp),
            incomplete: false,
        })
    }

    /// The name the file will have.
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Appends bytes; as [`Write::write_all`], with an error that names the file.
    ///
    /// # Errors
    /// When the operating system fails, as on a full disk.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| FormatError::io(&self.final_path, "cannot write", e))
    }

    /// Brings everything to the disk and gives the file its name, replacing an earlier one.
    ///
    /// # Errors
    /// When the operating system fails or did so in an earlier write; then nothing is left behind.
    pub fn commit(self) -> Result<()> {
        let path = self.final_path;
        let cannot_write = |e| FormatError::io(&path, "cannot write", e);
        if self.incomplete {
            return Err(cannot_write(io::Error::other("an earlier write failed")));
        }
        let temp = self.temp.into_inner().map_err(|e| cannot_write(e.into_error()))?;
        temp.as_file().sync_all().map_err(cannot_write)?;
        temp.persist(&path).map_err(|e| FormatError::io(&path, "cannot rename", e.error))?;
        // The rename itself is only durable once the folder is.
        File::open(folder_of(&path)).and_then(|d| d.sync_all()).map_err(cannot_write)
    }
}

impl AtomicFile {
    /// Remembers a failure. An interrupted call is none: the caller repeats it.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            self.incomplete |= e.kind() != io::ErrorKind::Interrupted;
        }
        result
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = self.temp.write(buf);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.temp.flush();
        self.note(result)
    }
}

/// The folder that a file lies in, or would.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn require_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a directory" } else { "a device, pipe or socket" };
    Err(FormatError::invalid(path, "path", "a regular file", found))
}

//! Input and output files: what they refuse, and that an interrupted write leaves nothing behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tandem_formats::{AtomicFile, FormatError, InputFile};
use tempfile::{TempDir, tempdir};

fn file_with(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn message(result: Result<impl Sized, FormatError>) -> String {
    let Err(error) = result else { panic!("should have failed") };
    let message = error.to_string();
    assert!(!message.contains('\n'), "not one line: {message}");
    message
}

#[test]
fn reads_by_position() {
    let (_dir, path) = file_with(b"0123456789");
    let file = InputFile::open(&path).unwrap();
    let mut buf = [0; 4];
    file.read_exact_at(3, &mut buf).unwrap();
    assert_eq!(&buf, b"3456");
    file.read_exact_at(0, &mut buf).unwrap();
    assert_eq!(&buf, b"0123");
    assert_eq!((file.len(), file.is_empty(), file.path()), (10, false, path.as_path()));
    assert_eq!(file.read_all(10).unwrap(), b"0123456789");
}

#[test]
fn reading_past_the_end_names_file_and_range() {
    let (_dir, path) = file_with(b"0123456789");
    let file = InputFile::open(&path).unwrap();
    let error = message(file.read_exact_at(8, &mut [0; 4]));
    assert!(
        error.starts_with(&format!("{}: cannot read 4 bytes at offset 8: ", path.display())),
        "{error}"
    );
    assert_eq!(
        message(file.read_all(9)),
        format!("{}: file size: expected at most 9 bytes, found 10 bytes", path.display())
    );
}

#[test]
fn a_file_cut_short_while_open_is_an_error() {
    let (_dir, path) = file_with(&[7; 5000]);
    let file = InputFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(message(file.read_all(5000)).contains("cannot read 5000 bytes at offset 0"));
}

#[test]
fn only_regular_files_are_opened() {
    let dir = tempdir().unwrap();
    assert_eq!(
        message(InputFile::open(dir.path())),
        format!("{}: path: expected a regular file, found a directory", dir.path().display())
    );
    assert_eq!(
        message(InputFile::open(Path::new("/dev/null"))),
        "/dev/null: path: expected a regular file, found a device, pipe or socket"
    );
    let missing = dir.path().join("missing");
    let error = message(InputFile::open(&missing));
    assert!(error.starts_with(&format!("{}: cannot open: ", missing.display())), "{error}");
}

#[test]
fn commit_replaces_the_old_file() {
    let (dir, path) = file_with(b"old");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new ").unwrap();
    file.append(b"content").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(dir.path()).len(), 2);
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new content");
    assert_eq!(names_in(dir.path()), ["weights.bin"]);
}

#[test]
fn permissions_are_those_of_any_new_file() {
    let (dir, ordinary) = file_with(b"");
    let path = dir.path().join("atomic.bin");
    AtomicFile::create(&path).unwrap().commit().unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&ordinary));
}

#[test]
fn dropped_without_commit_leaves_nothing() {
    let (dir, path) = file_with(b"old");
    let mut file = AtomicFile::create(&path).unwrap();
    file.append(&[1; 3 << 20]).unwrap();
    drop(file);
    assert_eq!(names_in(dir.path()), ["weights.bin"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn a_bare_file_name_means_the_current_folder() {
    // Nothing is committed, so nothing appears there.
    let file = AtomicFile::create(Path::new("bare-name-of-a-test.bin")).unwrap();
    assert_eq!(file.final_path(), Path::new("bare-name-of-a-test.bin"));
}

#[test]
fn targets_that_are_no_files_are_refused() {
    let dir = tempdir().unwrap();
    assert!(
        message(AtomicFile::create(dir.path()))
            .ends_with("expected a regular file, found a directory")
    );
    assert!(message(AtomicFile::create(Path::new("/dev/null"))).contains("found a device"));
    assert!(message(AtomicFile::create(Path::new("/"))).contains("found a directory"));
    let nowhere = dir.path().join("no/such/folder/file");
    let error = message(AtomicFile::create(&nowhere));
    assert!(error.starts_with(&format!("{}: cannot create: ", nowhere.display())), "{error}");
}

#[test]
fn a_failed_rename_leaves_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    let file = AtomicFile::create(&path).unwrap();
    fs::create_dir(&path).unwrap(); // somebody else takes the name
    let error = message(file.commit());
    assert!(error.starts_with(&format!("{}: cannot rename: ", path.display())), "{error}");
    assert_eq!(names_in(dir.path()), ["weights.bin"]);
}

/// A full disk needs a disk. A limit on file sizes fails the same `write` call and is open to every user.
#[test]
fn a_write_that_the_system_refuses_leaves_nothing() {
    const TARGET: &str = "TANDEM_TEST_LIMITED_TARGET";
    if let Some(target) = std::env::var_os(TARGET) {
        write_beyond_the_limit(Path::new(&target));
        return;
    }
    let (dir, path) = file_with(b"old");
    // 2048 blocks of 512 bytes. With the signal ignored, the write itself fails.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --exact \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg("a_write_that_the_system_refuses_leaves_nothing")
        .env(TARGET, &path)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("1 passed"), "{stdout}");
    assert_eq!(names_in(dir.path()), ["weights.bin"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

/// Runs in a child process that may write 1 MiB per file.
fn write_beyond_the_limit(path: &Path) {
    let mut file = AtomicFile::create(path).unwrap();
    let error = message(file.append(&[1; 4 << 20]));
    assert!(
        error.starts_with(&format!("{}: cannot write: File too large", path.display())),
        "{error}"
    );
    let error = message(file.commit());
    assert_eq!(error, format!("{}: cannot write: an earlier write failed", path.display()));

    let mut buffered = AtomicFile::create(path).unwrap();
    for _ in 0..(1 << 20) + 1 {
        buffered.append(&[1]).unwrap(); // the last byte waits in the buffer
    }
    let error = message(buffered.commit());
    assert!(
        error.starts_with(&format!("{}: cannot write: File too large", path.display())),
        "{error}"
    );
}

//! A virtual environment with pinned packages, made when the first test asks for it.
//!
//! Tests run as parallel processes, so whoever comes first makes the environment while the others wait on a file lock.
//! A stamp with the requirements' text says that it is complete; another text makes it anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::{testdata, workspace_root};

/// The interpreter of a virtual environment that holds the packages of `testdata/python-requirements.txt`.
///
/// # Panics
/// When there is no Python with `venv`, or the packages cannot be installed.
pub fn python() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> = LazyLock::new(prepare);
    INTERPRETER.clone()
}

/// Runs a script in [`python()`] and returns what it printed. `args` are its `sys.argv[1:]`.
///
/// # Panics
/// When the script fails; the message holds what it wrote to stderr.
pub fn run_python(script: &str, args: &[&str]) -> String {
    run(Command::new(python()).arg("-c").arg(script).args(args))
}

fn prepare() -> PathBuf {
    environment("test-python", &testdata("python-requirements.txt")).join("bin").join("python")
}

/// The virtual environment `target/<name>`, with the packages that a requirements file lists.
///
/// # Panics
/// When there is no Python with `venv`, or the packages cannot be installed.
pub(crate) fn environment(name: &str, requirements_file: &Path) -> PathBuf {
    let requirements = fs::read_to_string(requirements_file).expect("requirements are readable");
    let target = workspace_root().join("target");
    let venv = target.join(name);
    let stamp = venv.join("complete");

    fs::create_dir_all(&target).expect("target folder can be made");
    let lock = File::create(target.join(format!("{name}.lock"))).expect("lock file can be made");
    lock.lock().expect("lock can be taken"); // released when `lock` is dropped, also by a crash
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == requirements) {
        return venv;
    }
    if venv.exists() {
        fs::remove_dir_all(&venv).expect("outdated environment can be removed");
    }
    create(&venv);
    run(Command::new(venv.join("bin").join("python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(requirements_file));
    fs::write(&stamp, requirements).expect("stamp can be written");
    venv
}

fn create(venv: &Path) {
    let made = Command::new("python3").args(["-m", "venv"]).arg(venv).output();
    let advice = "these tests compare with Python packages: install python3 with its venv module \
                  (on Debian and Ubuntu: apt-get install python3-venv)";
    match made {
        Err(e) => panic!("cannot run python3: {e}; {advice}"),
        Ok(output) if !output.status.success() => panic!(
            "python3 -m venv failed: {}{}; {advice}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Ok(_) => {}
    }
}

/// Standard output of a command that must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the script prints UTF-8")
}

//! Virtual environments with pinned packages, made when somebody first asks for them.
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
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-python", "python-requirements.txt"));
    INTERPRETER.clone()
}

/// As [`python()`], with the packages of `testdata/onnx-requirements.txt`.
///
/// # Panics
/// As [`python()`].
pub fn onnx_python() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-onnx", "onnx-requirements.txt"));
    INTERPRETER.clone()
}

/// The folder with ONNX Runtime's library, as its package brings it into the environment of [`onnx_python()`].
///
/// # Panics
/// As [`python()`], and where the package has no library.
pub fn onnxruntime_library() -> PathBuf {
    let lib = onnx_python().with_file_name("../lib");
    let pythons = fs::read_dir(lib).expect("an environment has lib").map(|e| e.unwrap().path());
    let mut capi = pythons.map(|python| python.join("site-packages/onnxruntime/capi"));
    capi.find(|folder| folder.is_dir()).expect("the package has capi")
}

/// The folder with oneDNN's library, in an environment with the packages of `testdata/onednn-requirements.txt`.
///
/// # Panics
/// As [`python()`].
pub fn onednn_library() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-onednn", "onednn-requirements.txt"));
    INTERPRETER.with_file_name("../lib")
}

/// As [`python()`], with the packages of `testdata/web-requirements.txt`.
///
/// # Panics
/// As [`python()`].
pub fn web_python() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-web", "web-requirements.txt"));
    INTERPRETER.clone()
}

/// As [`python()`], with the packages of `testdata/openai-requirements.txt`.
///
/// # Panics
/// As [`python()`].
pub fn openai_python() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-openai", "openai-requirements.txt"));
    INTERPRETER.clone()
}

/// As [`python()`], with the packages of `testdata/client-requirements.txt`: what the Python client needs.
///
/// # Panics
/// As [`python()`].
pub fn client_python() -> PathBuf {
    static INTERPRETER: LazyLock<PathBuf> =
        LazyLock::new(|| prepare("test-client", "client-requirements.txt"));
    INTERPRETER.clone()
}

/// Runs a script in [`python()`] and returns what it printed. `args` are its `sys.argv[1:]`.
///
/// # Panics
/// When the script fails; the message holds what it wrote to stderr.
pub fn run_python(script: &str, args: &[&str]) -> String {
    run_python_in(&python(), script, args)
}

/// As [`run_python`], with another interpreter.
///
/// # Panics
/// As [`run_python`].
pub fn run_python_in(interpreter: &Path, script: &str, args: &[&str]) -> String {
    run(Command::new(interpreter).arg("-c").arg(script).args(args))
}

fn prepare(venv: &str, requirements: &str) -> PathBuf {
    let venv = workspace_root().join("target").join(venv);
    python_environment(&venv, &testdata(requirements), &[])
}

/// The interpreter of a virtual environment at `venv` that holds the packages of a requirements file. `variables` are
/// environment variables for building the packages.
///
/// # Panics
/// When there is no Python with `venv`, or the packages cannot be installed.
pub fn python_environment(
    venv: &Path,
    requirements_file: &Path,
    variables: &[(&str, &str)],
) -> PathBuf {
    let requirements = fs::read_to_string(requirements_file).expect("requirements are readable");
    let made_from = variables
        .iter()
        .fold(requirements, |text, (key, value)| text + &format!("# {key}={value}\n"));
    let stamp = venv.join("complete");
    let interpreter = venv.join("bin").join("python");

    fs::create_dir_all(venv.parent().expect("not the root folder")).expect("folder can be made");
    let lock = File::create(venv.with_extension("lock")).expect("lock file can be made");
    lock.lock().expect("lock can be taken"); // released when `lock` is dropped, also by a crash
    if fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        return interpreter;
    }
    if venv.exists() {
        fs::remove_dir_all(venv).expect("outdated environment can be removed");
    }
    create(venv);
    let mut install = Command::new(&interpreter);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
    ]);
    run(install.arg(requirements_file).envs(variables.iter().copied()));
    fs::write(&stamp, made_from).expect("stamp can be written");
    interpreter
}

fn create(venv: &Path) {
    let made = Command::new("python3").args(["-m", "venv"]).arg(venv).output();
    let advice = "Python packages serve as oracles and as peers: install python3 with its venv module \
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

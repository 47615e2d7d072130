//! `cargo xtask test`: all tests, on a machine that has nothing but Rust and Python.

use std::process::Command;

use clap::Args;

use tandem_testkit::{OpenClRuntimes, PROGRAMS, PROGRAMS_EXPECTED, program_is_installed};

use crate::shell::{output, root, run};

#[derive(Args)]
pub(crate) struct TestArgs {
    /// What to test instead of everything, passed on to cargo, as in `cargo xtask test -- -p tandem-model`
    #[arg(last = true)]
    cargo: Vec<String>,
}

pub(crate) fn test(args: &TestArgs) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    install_python()?;
    install_pocl()?;
    let has_programs = install_programs()?;
    let mut tests = Command::new(&cargo);
    tests.current_dir(root()).envs(OpenClRuntimes::install().environment());
    if has_programs {
        tests.env(PROGRAMS_EXPECTED, "1");
    }
    // nextest runs tests of all crates side by side; cargo's own runner does without a further program.
    if output(Command::new(&cargo).args(["nextest", "--version"])).is_ok() {
        tests.args(["nextest", "run", "--no-fail-fast"]);
    } else {
        tests.args(["test", "--no-fail-fast"]);
    }
    if args.cargo.is_empty() {
        tests.arg("--workspace");
    }
    run(tests.args(&args.cargo))
}

/// The tests make a virtual environment under `target/` by themselves; here the system gets what that needs.
fn install_python() -> anyhow::Result<()> {
    let works = || output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok();
    if works() {
        return Ok(());
    }
    eprintln!("installing python3-venv, which the cross-checks against Python libraries need");
    apt_install(&["python3", "python3-venv"])?;
    anyhow::ensure!(works(), "python3 with venv is needed: apt-get install python3 python3-venv");
    Ok(())
}

/// PoCL is what the portable kernels are tested on: it has neither subgroups nor integer dot products. Only machines
/// that cannot have it may go without.
fn install_pocl() -> anyhow::Result<()> {
    if OpenClRuntimes::pocl_is_installed() {
        return Ok(());
    }
    eprintln!("installing PoCL, which the portable GPU kernels are tested on");
    let packages = ["pocl-opencl-icd", "ocl-icd-libopencl1"];
    match apt_install(&packages) {
        Ok(()) => Ok(()),
        Err(e) if std::env::var_os("CI").is_some() => Err(e),
        Err(e) => {
            eprintln!("\nNOT TESTED: GPU kernels on PoCL, which cannot be installed here: {e:#}\n");
            Ok(())
        }
    }
}

/// The browser and the proxies that tests of the server run; whether they are there. Only machines that cannot have them
/// may go without.
fn install_programs() -> anyhow::Result<bool> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !program_is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(true);
    }
    eprintln!("installing {}, which tests of the server run", missing.join(", "));
    match apt_install(&missing) {
        Ok(()) => Ok(true),
        Err(e) if std::env::var_os("CI").is_some() => Err(e),
        Err(e) => {
            eprintln!("\nNOT TESTED: what is before and on top of the server: {e:#}\n");
            Ok(false)
        }
    }
}

/// Installs Debian packages, as root or through sudo.
pub(crate) fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let root_user = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let apt_get = |args: &[&str], packages: &[&str]| {
        let mut command = Command::new(if root_user { "apt-get" } else { "sudo" });
        if !root_user {
            command.arg("apt-get");
        }
        run(command.args(args).args(packages))
    };
    apt_get(&["update", "-qq"], &[])?;
    apt_get(&["install", "-y", "-qq"], packages)
}

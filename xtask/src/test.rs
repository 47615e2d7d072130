//! `cargo xtask test`: all tests, on a machine that has nothing but Rust and Python.

use std::process::Command;

use clap::Args;

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
    let mut tests = Command::new(&cargo);
    tests.current_dir(root());
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
    let root_user = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let apt = |args: &[&str]| {
        let mut command = if root_user {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        run(command.args(args))
    };
    apt(&["update", "-qq"])?;
    apt(&["install", "-y", "-qq", "python3", "python3-venv"])?;
    anyhow::ensure!(works(), "python3 with venv is needed: apt-get install python3 python3-venv");
    Ok(())
}

//! `cargo xtask device-bundle`: what a machine needs that has a GPU, and neither the sources nor a network.
//!
//! Programs are built here, for machines with as old a C library, and packed with `bench/gpu/run.sh`, which measures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::shell::{output, root, run, tandem};

/// What makes a full-size model there.
const DATA: [&str; 2] = ["testdata/fullsize/make_fullsize.py", "testdata/phi-tiny-moe"];
const EXAMPLES: [&str; 2] = ["kernel_speed", "expert_cache_speed"];

#[derive(Args)]
pub(crate) struct BundleArgs {
    /// Folder that is made anew, and packed beside itself as .tar.xz
    #[arg(long, default_value = "target/device-bundle")]
    dir: PathBuf,
}

pub(crate) fn bundle(args: &BundleArgs) -> anyhow::Result<()> {
    let dir = root().join(&args.dir);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let mut programs = vec![(tandem()?, "tandem")];
    let conformance = conformance()?;
    programs.push((conformance, "conformance"));
    for example in EXAMPLES {
        programs.push((root().join("target/release/examples").join(example), example));
    }
    for (program, name) in programs {
        let to = dir.join(name);
        run(Command::new("strip").arg("-o").arg(&to).arg(&program))?;
    }
    fs::copy(root().join("bench/gpu/run.sh"), dir.join("run.sh"))?;
    for data in DATA {
        copy(&root().join(data), &dir.join(data))?;
    }
    let packed = dir.with_extension("tar.xz");
    let (folder, name) = (dir.parent(), dir.file_name());
    let mut tar = Command::new("tar");
    tar.arg("-cJf").arg(&packed).arg("-C").arg(folder.context("--dir: expected a folder's name")?);
    run(tar.arg(name.context("--dir: expected a folder's name")?))?;
    println!("{}: {} bytes", packed.display(), fs::metadata(&packed)?.len());
    Ok(())
}

/// Builds the examples and the conformance suite; answers where cargo says that the suite is.
fn conformance() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root()).args(["build", "--release", "--package", "tandem-gpu", "--examples"]);
    let messages = output(build.args([
        "--test",
        "conformance",
        "--message-format",
        "json-render-diagnostics",
    ]))?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "conformance").then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.context("cargo built no conformance suite")
}

/// Copies a file, or a folder's files.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

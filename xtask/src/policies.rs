//! `cargo xtask policies`: `tandem policies` on the OpenCL that tests use, recorded in `bench/results`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tandem_testkit::OpenClRuntimes;

use crate::record::{commit, date, machine, results_folder};
use crate::shell::{output, root, tandem};

#[derive(Args)]
pub(crate) struct PoliciesArgs {
    /// The model: a GGUF file or a folder [default: the demo model]
    #[arg(short, long)]
    model: Option<PathBuf>,

    /// What distinguishes this record from others of the day
    #[arg(long, default_value = "policies")]
    name: String,

    /// Options of `tandem policies`, as in `cargo xtask policies -- -p 64 --hog`
    #[arg(last = true)]
    options: Vec<String>,
}

pub(crate) fn policies(args: &PoliciesArgs) -> anyhow::Result<()> {
    let program = tandem()?;
    let json_file = root().join("target/policies.json");
    let mut command = Command::new(program);
    command.envs(OpenClRuntimes::install().environment()).arg("policies").arg("--json");
    command.arg(&json_file).args(&args.options);
    if let Some(model) = &args.model {
        command.arg("-m").arg(model);
    }
    let markdown = output(&mut command)?;
    let measured: Value =
        serde_json::from_slice(&fs::read(&json_file)?).context("tandem policies writes JSON")?;
    let (date, commit, machine) = (date()?, commit()?, machine());
    let path = results_folder()?.join(format!("{}-{date}", args.name));
    let title = format!(
        "# Policies compared, {date}\n\n`cargo xtask policies -- {}`, {commit}, {} with {} CPUs\n\n",
        args.options.join(" "),
        machine["cpu"].as_str().unwrap_or_default(),
        machine["cores"],
    );
    fs::write(path.with_extension("md"), title + &markdown)?;
    let record = json!({
        "date": date,
        "commit": commit,
        "machine": machine,
        "options": args.options,
        "measured": measured,
    });
    fs::write(path.with_extension("json"), serde_json::to_string_pretty(&record)? + "\n")?;
    println!("{markdown}\n{}", path.with_extension("md").display());
    Ok(())
}

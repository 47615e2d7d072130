//! OpenVINO GenAI, with the model as `optimum-cli` converts it to 4 bits.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Contest, PeersArgs, Places, script, tests};
use crate::shell::run;

pub(super) fn contests(places: &Places, args: &PeersArgs) -> anyhow::Result<Vec<Contest>> {
    let python = places.python("openvino", &[]);
    let folder = places.work.join("openvino-int4");
    if !folder.exists() {
        convert(&python, &places.tandem_model("bf16")?, &folder)?;
    }
    let mut peer = Command::new(&python);
    peer.arg(script("openvino_driver.py")).arg(&folder);
    Ok(vec![Contest {
        tandem_model: places.tandem_model("q4_0.gguf")?,
        tandem_weights: "q4_0",
        peer,
        peer_takes_options: false,
        peer_weights: "int4, groups of 64".to_owned(),
        peer_bytes_per_token: None,
        threads: args.threads.iter().copied().max().context("--threads: expected a number")?,
        tests: tests(args.quick),
    }])
}

/// Takes 22 GB of memory at its peak.
fn convert(python: &Path, original: &Path, folder: &Path) -> anyhow::Result<()> {
    eprintln!("converting the model for OpenVINO: takes long, and 22 GB of memory");
    let partial = folder.with_extension("partial");
    let mut export = Command::new(python.with_file_name("optimum-cli"));
    export.args(["export", "openvino", "--task", "text-generation-with-past"]);
    export.args(["--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1.0"]);
    // Everything it needs is in the folder.
    run(export.env("HF_HUB_OFFLINE", "1").arg("--model").arg(original).arg(&partial))?;
    Ok(fs::rename(partial, folder)?)
}

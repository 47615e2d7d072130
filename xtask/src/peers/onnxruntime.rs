//! ONNX Runtime with an export of Tandem's model, by `tandem bench --backend onnxruntime`: its own kernels, and OpenVINO's.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Contest, PeersArgs, Places, two_tests};
use crate::shell::run;

/// What a program may map, in KiB: it is to fail by itself before it takes the machine with it.
const MAX_ADDRESS_SPACE: &str = "23068672";

/// ONNX Runtime's packages, by the provider that each is for.
const PROVIDERS: [(&str, &str); 2] = [("cpu", "onnxruntime"), ("openvino", "onnxruntime-openvino")];

pub(super) fn contests(
    places: &Places,
    args: &PeersArgs,
    program: &Path,
) -> anyhow::Result<Vec<Contest>> {
    let (model, name) = if args.quick {
        (places.demo_model(), "onnx-stories-int4")
    } else {
        (places.tandem_model("q4_0.gguf")?, "onnx-int4")
    };
    let export = places.work.join(name);
    if !export.exists() {
        eprintln!("exporting the model for ONNX Runtime");
        fs::create_dir_all(&places.work)?;
        let mut command = Command::new(program);
        command.args(["export-onnx", "--weights", "int4", "--model"]).arg(&model);
        run(command.arg(&export))?;
    }
    let threads = args.threads.iter().copied().max().context("--threads: expected a number")?;
    let contest = |(provider, package): (&str, &str)| -> anyhow::Result<Contest> {
        let library = library(&places.python(package, &[]))?;
        let mut peer = Command::new("sh");
        peer.args(["-c", &format!("ulimit -v {MAX_ADDRESS_SPACE}; exec \"$@\""), "sh"]);
        peer.arg(program).args(["bench", "--stdin", "--backend", "onnxruntime"]);
        peer.args(["--onnx-provider", provider, "--onnxruntime"]).arg(library);
        peer.arg("--model").arg(&export);
        Ok(Contest {
            tandem_model: model.clone(),
            tandem_weights: if args.quick { "q8_0" } else { "q4_0" },
            peer,
            peer_takes_options: true,
            peer_weights: "int4 (lm_head 8 bits)".to_owned(),
            peer_bytes_per_token: None,
            threads,
            tests: two_tests(args.quick),
        })
    };
    PROVIDERS.into_iter().map(contest).collect()
}

/// The folder of the package with the library.
fn library(python: &Path) -> anyhow::Result<std::path::PathBuf> {
    let lib = python.with_file_name("../lib");
    let mut capi = fs::read_dir(&lib)
        .with_context(|| lib.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/onnxruntime/capi")));
    capi.find(|folder| folder.is_dir())
        .with_context(|| format!("{}: no onnxruntime among the packages", lib.display()))
}

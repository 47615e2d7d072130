//! Tandem itself with oneDNN for prompts, beside Tandem with its own kernels: packed weights, and those of bf16.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{Contest, PeersArgs, Places, checkpoint, prefill, two_tests};

pub(super) fn contests(
    places: &Places,
    args: &PeersArgs,
    program: &Path,
) -> anyhow::Result<Vec<Contest>> {
    let library = places.python("onednn", &[]).with_file_name("../lib");
    let threads = args.threads.iter().copied().max().context("--threads: expected a number")?;
    let contest = |model: PathBuf, weights, tests| -> anyhow::Result<Contest> {
        let mut peer = Command::new(program);
        peer.args(["bench", "--stdin", "--no-sliding-window", "--prefill-backend", "onednn"]);
        peer.arg("--onednn").arg(&library).arg("--model").arg(&model);
        if args.avx2 {
            peer.args(["--isa", "avx2"]);
        }
        Ok(Contest {
            peer_bytes_per_token: Some(checkpoint(&model)?.summary().total().bytes_per_token),
            tandem_model: model,
            tandem_weights: weights,
            peer,
            peer_takes_options: true,
            peer_weights: weights.to_owned(),
            threads,
            tests,
        })
    };
    if args.quick {
        return Ok(vec![contest(places.demo_model(), "q8_0", two_tests(true))?]);
    }
    let packed = contest(places.tandem_model("q4_0.gguf")?, "q4_0", two_tests(false))?;
    let exact = contest(places.tandem_model("bf16")?, "bf16", vec![prefill(512)])?;
    Ok(vec![packed, exact])
}

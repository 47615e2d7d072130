//! transformers, with the bf16 original: slow, so two short tests give the scale.

use std::process::Command;

use anyhow::Context;

use super::{Contest, PeersArgs, Places, checkpoint, decode, prefill, script};

pub(super) fn contests(places: &Places, args: &PeersArgs) -> anyhow::Result<Vec<Contest>> {
    let python = places.python("transformers", &[]);
    let original = places.tandem_model("bf16")?;
    let mut peer = Command::new(&python);
    peer.arg(script("transformers_driver.py")).arg(&original);
    Ok(vec![Contest {
        tandem_model: places.tandem_model("q4_0.gguf")?,
        tandem_weights: "q4_0",
        peer,
        peer_takes_options: false,
        peer_weights: "bf16".to_owned(),
        peer_bytes_per_token: Some(checkpoint(&original)?.summary().total().bytes_per_token),
        threads: args.threads.iter().copied().max().context("--threads: expected a number")?,
        tests: if args.quick {
            vec![prefill(16), decode(4, 0)]
        } else {
            vec![prefill(64), decode(16, 0)]
        },
    }])
}

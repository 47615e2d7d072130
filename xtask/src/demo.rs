//! `cargo xtask demo`: the model that ships, made from its original.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::shell::{root, run, tandem};

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Folder of the original: config.json, model.safetensors (bf16), tokenizer
    original: PathBuf,
}

pub(crate) fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let gguf = root().join("models/stories/stories-17m.gguf");
    let program = tandem()?;
    run(Command::new(program)
        .arg("quantize")
        .arg(&args.original)
        .arg(&gguf)
        .args(["--type", "q8_0"]))?;
    let corrections = root().join("testdata/stories/bf16-corrections.z");
    tandem_golden::write_corrections(&args.original.join("model.safetensors"), &gguf, &corrections);
    for file in [gguf, corrections] {
        println!("{}: {} bytes", file.display(), std::fs::metadata(&file)?.len());
    }
    Ok(())
}

//! `cargo xtask fullsize`: the engine against the reference at the size it is for.
//!
//! Makes a checkpoint of Phi-tiny-MoE's shape with random weights (bf16, 7.5 GB), computes the logits of a chat
//! prompt with it, and compares last logits and every router choice with what an f32 reference got from the same
//! weights. Then converts it, to show time and memory of that. The results go to `bench/results`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};
use tandem_formats::safetensors::SafetensorsFile;

use crate::record::{commit, date, machine, results_folder};
use crate::shell::{output, root, run, tandem};

/// Of the largest magnitude of the reference's last logits.
const BOUND: f32 = 1e-3;

#[derive(Args)]
pub(crate) struct FullsizeArgs {
    /// Where the checkpoint is (or will be): needs 8 GB, and 7 GB more for the conversions
    #[arg(long, default_value = "target/fullsize")]
    dir: PathBuf,

    /// Leave out the conversions
    #[arg(long)]
    no_quantize: bool,
}

pub(crate) fn fullsize(args: &FullsizeArgs) -> anyhow::Result<()> {
    let dir = root().join(&args.dir);
    let checkpoint = dir.join("bf16");
    if !checkpoint.join("model.safetensors.index.json").exists() {
        let script = root().join("testdata/fullsize/make_fullsize.py");
        run(Command::new(tandem_testkit::python()).arg(script).arg(&checkpoint))?;
    }
    let program = tandem()?;
    let mut results = vec![agreement(&program, &checkpoint, &dir)?];
    if !args.no_quantize {
        for dtype in ["q8_0", "q4_0"] {
            results.push(quantize(&program, &checkpoint, &dir, dtype)?);
        }
    }
    save(&json!({ "date": date()?, "machine": machine(), "commit": commit()?, "results": results }))
}

/// Last logits, top tokens and router choices against the reference's.
fn agreement(program: &Path, checkpoint: &Path, dir: &Path) -> anyhow::Result<Value> {
    let expected = SafetensorsFile::open(&root().join("testdata/fullsize/golden.safetensors"))?;
    let ids = expected.read_i32("input_ids")?;
    let list: Vec<String> = ids.iter().map(i32::to_string).collect();
    let out = dir.join("logits.safetensors");
    let started = Instant::now();
    let mut logits = Command::new(program);
    logits.args(["logits", "--kv-type", "f32", "--ids", &list.join(",")]);
    run(logits.arg("-m").arg(checkpoint).arg("-o").arg(&out))?;
    let seconds = started.elapsed().as_secs_f64();
    let found = SafetensorsFile::open(&out)?;

    let (want, got) = (expected.read_f32("last_logits")?, found.read_f32("logits")?);
    let last = &got[got.len() - want.len()..];
    let difference = want.iter().zip(last).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let magnitude = want.iter().map(|x| x.abs()).fold(0.0, f32::max);
    let choices = expected.read_i32("router_idx")?;
    let same = choices.iter().zip(found.read_i32("router_idx")?).filter(|(a, b)| **a == *b).count();
    let weights = expected.read_f32("router_w")?.into_iter().zip(found.read_f32("router_w")?);
    let weight_difference = weights.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let first_choices: Vec<i32> =
        expected.read_i32("top10_idx")?.chunks_exact(10).map(|top| top[0]).collect();
    let same_tokens = got
        .chunks_exact(want.len())
        .zip(&first_choices)
        .filter(|(row, best)| argmax(row) == usize::try_from(**best).unwrap_or(usize::MAX))
        .count();

    println!("last logits differ by {difference:e}, {:e} of the largest", difference / magnitude);
    println!(
        "router choices equal: {same} of {}; weights within {weight_difference:e}",
        choices.len()
    );
    println!("most likely tokens equal: {same_tokens} of {}", ids.len());
    ensure!(difference / magnitude <= BOUND, "logits differ by more than {BOUND} of the largest");
    ensure!(same == choices.len(), "router choices differ");
    ensure!(same_tokens == ids.len(), "most likely tokens differ");
    Ok(json!({
        "check": "agreement with the f32 reference, bf16 weights, f32 KV cache",
        "last_logits_max_difference": difference,
        "last_logits_relative": difference / magnitude,
        "router_choices_equal": same,
        "router_choices": choices.len(),
        "router_weights_max_difference": weight_difference,
        "most_likely_tokens_equal": same_tokens,
        "tokens": ids.len(),
        "seconds_with_loading": seconds,
    }))
}

fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (n, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = n;
        }
    }
    best
}

/// Converts, then answers a prompt with the result.
fn quantize(program: &Path, checkpoint: &Path, dir: &Path, dtype: &str) -> anyhow::Result<Value> {
    let gguf = dir.join(format!("{dtype}.gguf"));
    let started = Instant::now();
    let peak = peak_memory(
        Command::new(program).arg("quantize").arg(checkpoint).arg(&gguf).args(["--type", dtype]),
    )?;
    let seconds = started.elapsed().as_secs_f64();
    let mut answer = Command::new(program);
    answer.args([
        "run",
        "--json",
        "--temp",
        "0",
        "-n",
        "32",
        "Write a short poem about the sea.",
        "-m",
    ]);
    let answer: Value = serde_json::from_str(&output(answer.arg(&gguf))?)?;
    let bytes = std::fs::metadata(&gguf)?.len();
    println!("{dtype}: {bytes} bytes in {seconds:.0} s, peak memory {} MiB", peak >> 20);
    ensure!(peak < 2 << 30, "conversion took {peak} bytes of memory; expected less than 2 GiB");
    Ok(json!({
        "check": format!("tandem quantize --type {dtype}, then 32 greedy tokens"),
        "file_bytes": bytes,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "run_statistics": answer["statistics"],
    }))
}

/// Runs a program; answers the most memory it had in RAM, by its own account in /proc while it runs.
fn peak_memory(command: &mut Command) -> anyhow::Result<u64> {
    let mut child = command.spawn()?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let text = std::fs::read_to_string(&status_file).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        peak = peak.max(kib << 10);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    ensure!(status.success(), "{command:?}: {status}");
    Ok(peak)
}

fn save(results: &Value) -> anyhow::Result<()> {
    let name = format!("fullsize-{}.json", results["date"].as_str().unwrap_or("undated"));
    let path = results_folder()?.join(name);
    std::fs::write(&path, serde_json::to_string_pretty(results)? + "\n")?;
    println!("{}", path.display());
    Ok(())
}

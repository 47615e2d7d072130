//! `cargo xtask load`: the HTTP server under load, side by side with llama-cpp-python's.
//!
//! Locust drives both in the same way: so many users at a time, each of which asks for one answer after the other and reads
//! it as a stream. A server's memory is looked at every second. Figures are worth something on a machine that does nothing
//! else.

mod report;
mod servers;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::results_folder;
use crate::shell::{root, run};
use report::Report;
use servers::Running;

#[derive(Args)]
pub(crate) struct LoadArgs {
    /// Users at a time
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16,64")]
    streams: Vec<usize>,

    /// Minutes for each number of users and each server
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0)]
    minutes: f64,

    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,

    /// Servers to load
    #[arg(
        long,
        value_enum,
        value_name = "SERVER",
        value_delimiter = ',',
        default_value = "tandem,llama"
    )]
    servers: Vec<Kind>,

    /// Encoding of both models' weights: q4_0 or q8_0
    #[arg(long, value_name = "TYPE", default_value = "q4_0")]
    weights: String,

    /// Tandem's model, instead of the full-size one; then llama-cpp-python's is not the nearest any more
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,

    /// Texts that Tandem reads and writes at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_sequences: usize,

    /// A few seconds with the demo model and Tandem alone, to see that everything works; the results go to the work folder
    #[arg(long)]
    quick: bool,

    /// Where the environments are, or will be: the peers' one has llama-cpp-python and its model
    #[arg(long, value_name = "FOLDER", default_value = "target/peers")]
    work_dir: PathBuf,

    /// Where `cargo xtask fullsize` has put Tandem's models
    #[arg(long, value_name = "FOLDER", default_value = "target/fullsize")]
    fullsize: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Tandem,
    Llama,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Tandem => "tandem",
            Self::Llama => "llama-cpp-python",
        }
    }
}

/// Quantiles of times in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Times {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What Locust's users saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Seen {
    answers: u64,
    tokens: u64,
    lost: u64,
    refused: u64,
    seconds: f64,
    pieces_per_second: f64,
    answers_per_second: f64,
    first_token_ms: Option<Times>,
    between_tokens_ms: Option<Times>,
    answer_ms: Option<Times>,
    why_lost: Vec<String>,
}

/// One server under one load.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    server: &'static str,
    streams: usize,
    #[serde(flatten)]
    seen: Seen,
    /// Memory of the server's process every ten seconds, in MB.
    resident_mb: Vec<f64>,
}

pub(crate) fn load(args: &LoadArgs) -> anyhow::Result<()> {
    let quick = args.quick.then(|| quick(args));
    let args = quick.as_ref().unwrap_or(args);
    ensure!(!args.streams.contains(&0), "--streams: expected 1 or more, found 0");
    let seconds = args.minutes * 60.0;
    ensure!((1.0..=86_400.0).contains(&seconds), "--minutes: expected 1 second to a day");
    let work = root().join(&args.work_dir);
    let locust = environment(&work, "locust");
    let folder = if args.quick { work.clone() } else { results_folder()? };
    let mut report = Report::new(args)?;
    for &kind in &args.servers {
        let mut server = Running::start(kind, args, &work)?;
        report.server(kind.name(), server.about());
        for &streams in &args.streams {
            eprintln!("{}: {streams} streams for {seconds} s", kind.name());
            let outcome = drive(&locust, &mut server, streams, args)?;
            report.add(outcome);
            // An hour of results must not be lost to what goes wrong at its end.
            report.save(&folder)?;
        }
        server.stop()?;
    }
    report.show(&folder);
    let lost = report.lost();
    ensure!(lost == 0, "{lost} answers were lost");
    Ok(())
}

fn quick(args: &LoadArgs) -> LoadArgs {
    LoadArgs {
        streams: vec![1, 8],
        minutes: 0.1,
        tokens: 16,
        servers: vec![Kind::Tandem],
        weights: args.weights.clone(),
        model: Some(root().join("models/stories/stories-17m.gguf")),
        max_sequences: 8,
        quick: true,
        work_dir: args.work_dir.clone(),
        fullsize: args.fullsize.clone(),
    }
}

/// The interpreter of an environment that holds what `python/NAME-requirements.txt` lists.
fn environment(work: &Path, name: &str) -> PathBuf {
    tandem_testkit::python_environment(
        &work.join(name),
        &script(&format!("{name}-requirements.txt")),
        &[],
    )
}

/// A file of this folder's `python`.
fn script(name: &str) -> PathBuf {
    root().join("xtask/src/load/python").join(name)
}

/// So many users at a time.
fn drive(
    locust: &Path,
    server: &mut Running,
    streams: usize,
    args: &LoadArgs,
) -> anyhow::Result<Outcome> {
    let folder = tandem_testkit::scratch("load");
    let result = folder.path().join("seen.json");
    let stop_ids = serde_json::to_string(server.stop_ids())?;
    let seconds = (args.minutes * 60.0).round().max(1.0);
    let watch = server.watch_memory();
    // The last answers may come to their end: nothing is cut off.
    let arguments = [
        "-m",
        "locust",
        "--headless",
        "--only-summary",
        "--loglevel",
        "WARNING",
        "--stop-timeout",
        "3600",
        "--users",
    ];
    run(Command::new(locust)
        .args(arguments)
        .args([&streams.to_string(), "--spawn-rate", &streams.to_string()])
        .args(["--run-time", &format!("{seconds}s"), "--host", server.url(), "--locustfile"])
        .arg(script("streams.py"))
        .current_dir(folder.path())
        .env("LOAD_TOKENS", args.tokens.to_string())
        .env("LOAD_STOP_IDS", stop_ids)
        .env("LOAD_RESULT", &result)
        // Otherwise it exits with 1 where an answer was lost, which the result says.
        .env("LOCUST_EXIT_CODE_ON_ERROR", "0"))?;
    let resident_mb = watch.stop();
    let text = std::fs::read_to_string(&result).context("Locust left no result")?;
    let seen: Seen = serde_json::from_str(&text)?;
    ensure!(seen.answers > 0, "no answer came in {seconds} s: {:?}", seen.why_lost);
    Ok(Outcome { server: server.name(), streams, seen, resident_mb })
}

/// As JSON has it.
fn described(pairs: &[(&str, Value)]) -> Value {
    Value::Object(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

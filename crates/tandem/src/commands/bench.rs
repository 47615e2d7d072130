//! `tandem bench`: llama-bench's table, with what the memory allows next to it.

mod stdin;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use tandem_model::Checkpoint;
use tandem_runtime::bench::{self, Test, Work, median};
use tandem_runtime::{Executor, Session};

use crate::options::{ComputeOptions, ModelOption};
use crate::{engine, progress};

/// Measure how fast a model runs, as llama-bench does, and what share of the memory's bandwidth it uses
///
/// Bandwidth is measured before and after each test, by reading memory with the same threads. "roofline" is the
/// bytes that a token must read, times tokens per second, as a share of that bandwidth. Rates are medians.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Lengths of prompts; 0 leaves prompts out
    #[arg(
        short = 'p',
        long,
        value_name = "TOKENS",
        env = "TANDEM_BENCH_PROMPT",
        value_delimiter = ',',
        default_value = "512"
    )]
    prompt: Vec<usize>,

    /// Tokens to generate; 0 leaves generation out
    #[arg(
        short = 'n',
        long,
        value_name = "TOKENS",
        env = "TANDEM_BENCH_GENERATE",
        value_delimiter = ',',
        default_value = "128"
    )]
    generate: Vec<usize>,

    /// Tokens that come before
    #[arg(
        short = 'd',
        long,
        value_name = "TOKENS",
        env = "TANDEM_BENCH_DEPTH",
        value_delimiter = ',',
        default_value = "0"
    )]
    depth: Vec<usize>,

    /// Repetitions of each test
    #[arg(short, long, value_name = "N", env = "TANDEM_BENCH_REPETITIONS", default_value_t = 5,
          value_parser = crate::options::at_least_one)]
    repetitions: usize,

    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORM", env = "TANDEM_BENCH_OUTPUT", default_value_t = Form::Md)]
    output: Form,

    /// Take tests from stdin instead, one at a time: how `cargo xtask peers` measures in turns with other programs
    #[arg(long, hide = true)]
    stdin: bool,

    #[command(flatten)]
    compute: ComputeOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Md,
    Csv,
    Json,
}

/// One row.
#[derive(Serialize)]
struct Row {
    model: String,
    size_bytes: u64,
    params: u64,
    backend: String,
    threads: usize,
    test: String,
    tokens_per_second: f64,
    tokens_per_second_all: Vec<f64>,
    read_bandwidth: f64,
    bytes_per_token: Option<f64>,
    roofline: Option<f64>,
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let mut executor = engine::executor(&checkpoint, &args.compute)?;
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    if args.stdin {
        return stdin::serve(&checkpoint, &mut executor, &mut session);
    }
    let tests = tests(args);
    let bar = progress::count(tests.len() as u64, "tests");
    let mut rows = Vec::new();
    for test in tests {
        rows.push(row(args, &checkpoint, &mut executor, &mut session, test)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = match args.output {
        Form::Md => markdown(&rows),
        Form::Csv => csv(&rows),
        Form::Json => serde_json::to_string_pretty(&rows)?,
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn tests(args: &BenchArgs) -> Vec<Test> {
    let works = args
        .prompt
        .iter()
        .map(|&n| Work::Prompt(n))
        .chain(args.generate.iter().map(|&n| Work::Generate(n)));
    let works: Vec<Work> =
        works.filter(|work| !matches!(work, Work::Prompt(0) | Work::Generate(0))).collect();
    args.depth
        .iter()
        .flat_map(|&depth| works.iter().map(move |&work| Test { work, depth }))
        .collect()
}

fn row(
    args: &BenchArgs,
    checkpoint: &Checkpoint,
    executor: &mut Executor,
    session: &mut Session,
    test: Test,
) -> anyhow::Result<Row> {
    let total = checkpoint.summary().total();
    let before = executor.read_bandwidth()?;
    let rates = bench::run(executor, session.kv_mut(), test, args.repetitions)?;
    let after = executor.read_bandwidth()?;
    let bandwidth = f64::midpoint(before, after);
    let rate = median(&rates);
    // A prompt reads the weights once for many tokens: bandwidth is not what bounds it.
    let bytes = match test.work {
        Work::Prompt(_) => None,
        Work::Generate(_) => {
            let kv = test.mean_context() * session.kv_bytes_per_token() as f64;
            Some(total.bytes_per_token as f64 + kv)
        }
    };
    let name = checkpoint.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Row {
        model: name,
        size_bytes: total.bytes,
        params: total.weights,
        backend: format!("CPU {}", executor.isa()),
        threads: executor.threads(),
        test: test.name(),
        tokens_per_second: rate,
        tokens_per_second_all: rates,
        read_bandwidth: bandwidth,
        bytes_per_token: bytes,
        roofline: bytes.map(|bytes| bytes * rate / bandwidth),
    })
}

fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "test",
        "t/s",
        "GB/s read",
        "roofline",
    ]);
    for r in rows {
        let spread = r
            .tokens_per_second_all
            .iter()
            .map(|x| (x - r.tokens_per_second).abs())
            .fold(0.0, f64::max);
        table.add_row([
            r.model.clone(),
            format!("{:.2} GiB", r.size_bytes as f64 / f64::from(1 << 30)),
            format!("{:.2} B", r.params as f64 / 1e9),
            r.backend.clone(),
            r.threads.to_string(),
            r.test.clone(),
            format!("{:.2} ± {spread:.2}", r.tokens_per_second),
            format!("{:.1}", r.read_bandwidth / 1e9),
            r.roofline.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
        ]);
    }
    for column in [1, 2, 4, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn csv(rows: &[Row]) -> String {
    let mut text =
        "model,size_bytes,params,backend,threads,test,tokens_per_second,read_bandwidth,roofline\n"
            .to_owned();
    for r in rows {
        let share = r.roofline.map_or_else(String::new, |share| format!("{share:.4}"));
        // Names of files may have commas.
        let model = format!("\"{}\"", r.model.replace('"', "\"\""));
        text += &format!(
            "{model},{},{},{},{},{},{:.3},{:.0},{share}\n",
            r.size_bytes,
            r.params,
            r.backend,
            r.threads,
            r.test,
            r.tokens_per_second,
            r.read_bandwidth
        );
    }
    text.trim_end().to_owned()
}

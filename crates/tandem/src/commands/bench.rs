//! `tandem bench`: llama-bench's table, with what the machine allows next to it.

mod output;
mod profile;
mod stdin;

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tandem_gpu::CacheStatistics;
use tandem_memory::{KvCache, PAGE_TOKENS};
use tandem_model::Checkpoint;
use tandem_runtime::bench::{self, Test, Work};
use tandem_runtime::{Executor, Session};

use crate::backend::{BackendChoice, BackendOptions};
use crate::onnx_engine::OnnxEngine;
use crate::options::{ComputeOptions, ModelOption, PlacementOptions, TelemetryOptions};
use crate::placement::Placing;
use crate::watch::Watch;
use crate::{engine, progress};

/// Measure how fast a model runs, as llama-bench does, and what share of the memory's bandwidth it uses
///
/// What the machine can do is measured before and after each repetition, with the same threads: how fast it reads memory,
/// and how fast it multiplies 8-bit numbers. "roofline" is the share of it that is used: when generating, of the
/// bandwidth, by the bytes that a token must read; when reading a prompt, of the arithmetic. "barriers" is how often all
/// threads wait for each other to generate a token. Where a GPU takes part, "waits" is how often the CPU waits for it, and
/// "GPU" its share of the bytes that are read; the roofline is that of the CPU alone. Where it has only some of the experts
/// at a time, "hits" is how many of their uses found them there, and "overlap" how much of the time of uploads no kernel
/// waited for. Rates and shares are medians. With --background,
/// "GB/s used" is what operations read, by the time they took with their pauses.
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

    /// Texts that are generated together, a token of each at a time
    ///
    /// "t/s" is that of all of them, "t/s each" that of one.
    #[arg(
        short = 's',
        long,
        value_name = "N",
        env = "TANDEM_BENCH_SEQUENCES",
        value_delimiter = ',',
        default_value = "1",
        value_parser = crate::options::at_least_one
    )]
    sequences: Vec<usize>,

    /// Repetitions of each test
    #[arg(short, long, value_name = "N", env = "TANDEM_BENCH_REPETITIONS", default_value_t = 5,
          value_parser = crate::options::at_least_one)]
    repetitions: usize,

    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORM", env = "TANDEM_BENCH_OUTPUT", default_value_t = Form::Md)]
    output: Form,

    /// Show where the time goes, operation by operation
    #[arg(long, env = "TANDEM_BENCH_PROFILE", value_parser = FalseyValueParser::new())]
    profile: bool,

    /// Take tests from stdin instead, one at a time: how `cargo xtask peers` measures in turns with other programs
    #[arg(long, hide = true)]
    stdin: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,

    #[command(flatten)]
    backend: BackendOptions,

    #[command(flatten)]
    telemetry: TelemetryOptions,
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
    /// Texts at a time.
    sequences: usize,
    /// Of all of them.
    tokens_per_second: f64,
    tokens_per_second_all: Vec<f64>,
    read_bandwidth: f64,
    /// 8-bit operations per second.
    int8_peak: f64,
    bytes_per_token: Option<f64>,
    roofline: Option<f64>,
    barriers_per_token: Option<f64>,
    /// Bytes per second that operations read, waiting included: what `--background` caps.
    used_bandwidth: f64,
    /// The cap.
    background_gbps: Option<f64>,
    /// How often a token makes the CPU wait for the GPU.
    waits_per_token: Option<f64>,
    /// Of the bytes that are read, those that the GPU reads.
    igpu_share: Option<f64>,
    /// What the GPU's cache of experts did, where it has one.
    expert_cache: Option<CacheStatistics>,
    profile: Vec<profile::Row>,
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if args.backend.backend == BackendChoice::Onnxruntime {
        if !args.stdin {
            bail!(
                "--backend onnxruntime: `tandem run` takes it; `cargo xtask peers --peers onnxruntime` measures it beside \
                 Tandem"
            );
        }
        return stdin::serve(&mut OnnxEngine::load(&args.backend, &args.model, &args.compute)?);
    }
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let mut placing = Placing::new(&checkpoint, &args.compute, &args.place)?;
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    if args.stdin {
        return stdin::serve(&mut stdin::Own::new(&checkpoint, &mut executor, &mut session));
    }
    note!("{}", engine::describe(&checkpoint, &executor, &placing));
    let watch = Watch::start(&args.telemetry, &mut executor, &placing)?;
    if args.profile {
        executor.record_gpu_times(true);
    }
    let tests = tests(args);
    let bar = progress::count(tests.len() as u64, "tests");
    let mut rows = Vec::new();
    for case in tests {
        rows.push(row(args, &checkpoint, &mut executor, &mut session, case)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    engine::note_failure(&executor);
    watch.finish()?;
    let text = match args.output {
        Form::Md if args.profile => output::markdown(&rows) + &profile::markdown(&rows),
        Form::Md => output::markdown(&rows),
        Form::Csv => output::csv(&rows),
        Form::Json => serde_json::to_string_pretty(&rows)?,
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// A test, of one text or of several at a time.
#[derive(Clone, Copy)]
struct Case {
    test: Test,
    sequences: usize,
}

impl Case {
    /// Tokens that go through the model together.
    fn batch(self, executor: &Executor) -> usize {
        match self.test.work {
            Work::Prompt(n) => n.min(executor.batch()),
            Work::Generate(_) => self.sequences,
        }
    }

    fn name(self) -> String {
        match self.sequences {
            1 => self.test.name(),
            n => format!("{} x {n}", self.test.name()),
        }
    }

    fn tokens(self) -> usize {
        self.sequences * self.test.tokens()
    }

    fn run(
        self,
        args: &BenchArgs,
        executor: &mut Executor,
        session: &mut Session,
    ) -> anyhow::Result<bench::Measured> {
        let (test, repetitions) = (self.test, args.repetitions);
        if self.sequences == 1 {
            return Ok(bench::run(executor, session.kv_mut(), test, repetitions)?);
        }
        let (tokens, depth) = (test.tokens(), test.depth);
        let each = (depth + tokens).next_multiple_of(PAGE_TOKENS);
        let pool = executor.kv_pool(self.sequences * each, args.compute.kv_type.into())?;
        let mut caches: Vec<_> =
            (0..self.sequences).map(|_| KvCache::in_pool(&pool, depth + tokens)).collect();
        Ok(bench::run_together(executor, &mut caches, tokens, depth, repetitions)?)
    }
}

fn tests(args: &BenchArgs) -> Vec<Case> {
    let prompts = args.prompt.iter().map(|&n| (Work::Prompt(n), 1));
    let generate = |&n| args.sequences.iter().map(move |&sequences| (Work::Generate(n), sequences));
    let works: Vec<_> = prompts
        .chain(args.generate.iter().flat_map(generate))
        .filter(|(work, _)| !matches!(work, Work::Prompt(0) | Work::Generate(0)))
        .collect();
    let case = |depth| move |&(work, sequences)| Case { test: Test { work, depth }, sequences };
    args.depth.iter().flat_map(|&depth| works.iter().map(case(depth))).collect()
}

fn row(
    args: &BenchArgs,
    checkpoint: &Checkpoint,
    executor: &mut Executor,
    session: &mut Session,
    case: Case,
) -> anyhow::Result<Row> {
    let Case { test, sequences } = case;
    let total = checkpoint.summary().total();
    let before = executor.expert_cache()?.unwrap_or_default();
    let measured = case.run(args, executor, session)?;
    let expert_cache = executor.expert_cache()?.map(|after| after.since(&before));
    let profile = executor.profile().clone();
    let tokens = (args.repetitions * case.tokens()) as f64;
    let (bytes, roofline) = match test.work {
        // A prompt reads the weights once for many tokens: arithmetic bounds it, in whole numbers where weights are packed.
        Work::Prompt(_) => {
            let arithmetic = profile::packed_arithmetic(&profile) as f64 / tokens;
            let share = measured.median(|r| arithmetic * r.rate / r.ceiling.int8_peak);
            (None, executor.model().is_packed().then_some(share))
        }
        Work::Generate(_) => {
            let kv = test.mean_context() * session.kv_bytes_per_token() as f64;
            let bytes = match sequences {
                1 => total.bytes_per_token as f64 + kv,
                // Which experts they share is seen only as they are computed.
                _ => profile::bytes(&profile) / tokens,
            };
            let share = measured.median(|r| bytes * r.rate / r.ceiling.read_bandwidth);
            (Some(bytes), Some(share))
        }
    };
    let name = checkpoint.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Row {
        model: name,
        size_bytes: total.bytes,
        params: total.weights,
        backend: backend(executor, case),
        threads: measured.threads,
        test: case.name(),
        sequences,
        tokens_per_second: measured.median(|r| r.rate),
        tokens_per_second_all: measured.repetitions.iter().map(|r| r.rate).collect(),
        read_bandwidth: measured.median(|r| r.ceiling.read_bandwidth),
        int8_peak: measured.median(|r| r.ceiling.int8_peak),
        bytes_per_token: bytes,
        roofline,
        profile: profile::rows(&profile, args.repetitions * case.tokens()),
        used_bandwidth: profile::bytes(&profile) / profile.total_time().as_secs_f64(),
        background_gbps: args.telemetry.background,
        barriers_per_token: bytes.map(|_| measured.barriers_per_token),
        waits_per_token: executor.gpu().map(|_| measured.waits_per_token),
        igpu_share: executor.gpu().map(|_| profile::igpu_share(&profile)),
        expert_cache,
    })
}

/// What computes a test: "CPU avx512", "CPU avx2 + Intel(R) Arc(TM) Graphics, split=0.4".
fn backend(executor: &Executor, case: Case) -> String {
    let cpu = format!("CPU {}", executor.isa());
    let tokens = case.batch(executor);
    let plan = executor.planner().plan(tokens, case.test.depth + tokens / case.sequences);
    match executor.gpu() {
        Some(gpu) if plan.uses_igpu() => {
            format!("{cpu} + {}, {}", gpu.device().info().name, plan.name())
        }
        _ => cpu,
    }
}

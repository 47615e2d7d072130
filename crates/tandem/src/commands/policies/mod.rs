//! `tandem policies`: what policies, the pipeline and the bandwidth token are worth on this machine.

mod hog;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tandem_formats::AtomicFile;
use tandem_memory::KvCache;
use tandem_runtime::bandwidth::{Capacity, HeavyOperations, MonitorParams};
use tandem_runtime::bench::{Prepared, Test, Together, Work, median};
use tandem_runtime::partition::{Partition, Wanted};
use tandem_runtime::policy::{Policy, PolicyKind};
use tandem_runtime::telemetry::{Summary, TelemetryParams};
use tandem_runtime::{Executor, Instrumentation, InstrumentationParams};

use crate::options::{ComputeOptions, ModelOption, PlacementOptions};
use crate::placement::Placing;
use crate::{engine, progress};
use hog::Hog;

/// Compare scheduling policies, with and without pipelining and the bandwidth token
///
/// Every way takes its turn in every round, in one direction and then in the other; rates are medians. Policies place steps
/// by --config, or else by the usual partition. Beside them stand the devices alone. "overlap" is the share of the busy
/// time in which both devices computed, "bubbles" the time in which one stood still while the other computed, as shares of
/// the whole time. With --hog, everything is measured again beside a thread that copies memory all the time.
#[derive(Args)]
pub(crate) struct PoliciesArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Tokens of the prompt that is read; 0 leaves it out
    #[arg(short = 'p', long, value_name = "TOKENS", default_value_t = 128)]
    prompt: usize,

    /// Tokens that each text gets; 0 leaves writing out
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 16)]
    generate: usize,

    /// Texts that are written together
    #[arg(short = 's', long, value_name = "N", value_delimiter = ',', default_value = "1,4",
          value_parser = crate::options::at_least_one)]
    sequences: Vec<usize>,

    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 3,
          value_parser = crate::options::at_least_one)]
    repetitions: usize,

    /// Runs of each test before those that count: adaptive learns in them
    #[arg(long, value_name = "N", default_value_t = 4)]
    warm_up: usize,

    /// Measure beside a thread that copies memory, too
    #[arg(long)]
    hog: bool,

    /// Write every run's figures as well (JSON)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,
}

/// A way to schedule.
struct Way {
    name: String,
    pipelined: bool,
    token: bool,
    partition: Partition,
    kind: PolicyKind,
    /// What it has learnt so far; `None` while it is at work.
    policy: Option<Box<dyn Policy>>,
    results: Vec<Vec<Run>>,
}

/// What one run of a test showed.
#[derive(Clone, Debug, Serialize)]
struct Run {
    tokens_per_second: f64,
    /// Shares of the run's time.
    cpu_bubbles: f64,
    igpu_bubbles: f64,
    /// Of the time in which any device was busy, that in which both were.
    overlap: f64,
    /// Times that a step waited for the token, in all.
    token_wait_ms: f64,
    overlaps: u64,
}

/// One cell of the table.
#[derive(Serialize)]
struct Row {
    policy: String,
    pipelining: bool,
    token: bool,
    test: String,
    hog: bool,
    tokens_per_second: f64,
    runs: Vec<Run>,
}

/// All of it, with what it was measured on.
#[derive(Serialize)]
struct Report {
    model: String,
    backend: String,
    memory_gbps: f64,
    rows: Vec<Row>,
    gpu_failure: Option<String>,
}

/// What is timed.
enum Case {
    Prompt(Prepared, Box<KvCache>, usize),
    Generate(Together, Vec<KvCache>, usize),
}

impl Case {
    fn name(&self) -> String {
        match self {
            Self::Prompt(_, _, tokens) => format!("pp{tokens}"),
            Self::Generate(_, caches, tokens) => format!("tg{tokens} x {}", caches.len()),
        }
    }

    /// Runs it once; answers tokens per second.
    fn run(&mut self, executor: &mut Executor) -> anyhow::Result<f64> {
        let (tokens, time) = match self {
            Self::Prompt(prepared, kv, tokens) => (*tokens, prepared.time(executor, kv)?),
            Self::Generate(together, caches, tokens) => {
                (*tokens * caches.len(), together.time(executor, caches)?)
            }
        };
        Ok(tokens as f64 / time.as_secs_f64())
    }
}

pub(crate) fn policies(args: &PoliciesArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let mut placing = Placing::for_policies(&checkpoint, &args.compute, &args.place)?;
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    note!("{}", engine::describe(&checkpoint, &executor, &placing));
    if let Some(reason) =
        executor.gpu().is_none().then_some(&placing.missing).and_then(Option::as_ref)
    {
        note!("only the CPU is compared with itself: {reason}");
    }
    let memory = executor.read_bandwidth(executor.threads().decode)?;
    let capacity = placing.capacity();
    let capacity = capacity.unwrap_or(Capacity { cpu: memory, igpu: memory, together: memory });
    let mut cases = cases(args, &mut executor)?;
    let mut ways = ways(placing.partition(), executor.gpu().is_some());
    let hogs: &[bool] = if args.hog { &[false, true] } else { &[false] };
    let runs = (args.warm_up + args.repetitions) * ways.len() * cases.len() * hogs.len();
    let bar = progress::count(runs as u64, "runs");
    let mut rows = Vec::new();
    for &hog in hogs {
        let hog_thread = hog.then(Hog::start).transpose()?;
        for way in &mut ways {
            way.results = vec![Vec::new(); cases.len()];
        }
        for round in 0..args.warm_up + args.repetitions {
            let order: Vec<usize> = match round % 2 {
                0 => (0..ways.len()).collect(),
                _ => (0..ways.len()).rev().collect(),
            };
            for index in order {
                for (number, case) in cases.iter_mut().enumerate() {
                    let run = ways[index].run(&mut executor, &placing, capacity, case)?;
                    if round >= args.warm_up {
                        ways[index].results[number].push(run);
                    }
                    bar.inc(1);
                }
            }
        }
        drop(hog_thread);
        rows.extend(ways.iter().flat_map(|way| way.rows(&cases, hog)));
    }
    bar.finish_and_clear();
    let report = Report {
        model: checkpoint.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        backend: engine::describe(&checkpoint, &executor, &placing),
        memory_gbps: memory / 1e9,
        rows,
        gpu_failure: executor.gpu_failure().map(ToString::to_string),
    };
    if let Some(path) = &args.json {
        let mut file = AtomicFile::create(path)?;
        file.append(serde_json::to_string_pretty(&report)?.as_bytes())?;
        file.append(b"\n")?;
        file.commit()?;
    }
    writeln!(std::io::stdout(), "{}", report::markdown(&report))?;
    Ok(ExitCode::SUCCESS)
}

fn cases(args: &PoliciesArgs, executor: &mut Executor) -> anyhow::Result<Vec<Case>> {
    let kv_type = args.compute.kv_type.into();
    let mut cases = Vec::new();
    if args.prompt > 0 {
        let mut kv = Box::new(executor.kv_cache(args.prompt, kv_type)?);
        let test = Test { work: Work::Prompt(args.prompt), depth: 0 };
        cases.push(Case::Prompt(Prepared::new(executor, &mut kv, test)?, kv, args.prompt));
    }
    for &sequences in args.sequences.iter().filter(|_| args.generate > 0) {
        let cache = |_| executor.kv_cache(args.generate, kv_type);
        let mut caches = (0..sequences).map(cache).collect::<Result<Vec<_>, _>>()?;
        let together = Together::new(executor, &mut caches, args.generate, 0)?;
        cases.push(Case::Generate(together, caches, args.generate));
    }
    Ok(cases)
}

/// The devices alone, and every policy with and without pipelining and the token.
fn ways(partition: &Partition, has_gpu: bool) -> Vec<Way> {
    let way = |name: String, partition: Partition, kind: PolicyKind, pipelined, token| Way {
        name,
        pipelined,
        token,
        policy: Some(kind.policy(&partition)),
        partition,
        kind,
        results: Vec::new(),
    };
    let alone = |wanted: Wanted| {
        let partition = Partition::everything(wanted);
        way(format!("{wanted} alone"), partition, PolicyKind::Static, false, false)
    };
    let mut ways = vec![alone(Wanted::Cpu)];
    if has_gpu {
        ways.push(alone(Wanted::Igpu));
    }
    for kind in PolicyKind::ALL {
        for pipelined in [false, true] {
            for token in [false, true] {
                ways.push(way(kind.name().to_owned(), partition.clone(), kind, pipelined, token));
            }
        }
    }
    ways
}

impl Way {
    /// Runs a test once.
    fn run(
        &mut self,
        executor: &mut Executor,
        placing: &Placing,
        capacity: Capacity,
        case: &mut Case,
    ) -> anyhow::Result<Run> {
        let config = executor.model().config();
        let instrumentation = Instrumentation::start(InstrumentationParams {
            telemetry: Some(TelemetryParams::new(config.n_layers, config.n_experts)),
            monitor: MonitorParams { capacity: Some(capacity), ..MonitorParams::default() },
            heavy: self.token.then(HeavyOperations::default),
            ..InstrumentationParams::default()
        })?;
        executor.set_instruments(instrumentation.instruments());
        let (watch, choices) = (Some(Arc::clone(&instrumentation)), placing.choices());
        executor.direct(&self.partition, choices, self.kind, watch);
        let least = self.partition.scheduling().micro_batch;
        executor.set_pipelining(self.pipelined.then_some(least));
        if let Some(policy) = self.policy.take() {
            executor.set_policy(policy);
        }
        let before = executor.overlaps();
        let tokens_per_second = case.run(executor)?;
        let overlaps = executor.overlaps() - before;
        // What it has learnt goes with it.
        self.policy = Some(executor.set_policy(self.kind.policy(&self.partition)));
        let token_wait_ms = instrumentation.token_metrics().wait.total_ms;
        let summary = instrumentation.finish()?;
        Ok(run(tokens_per_second, overlaps, token_wait_ms, summary.as_ref()))
    }

    fn rows(&self, cases: &[Case], hog: bool) -> Vec<Row> {
        let row = |(case, runs): (&Case, &Vec<Run>)| Row {
            policy: self.name.clone(),
            pipelining: self.pipelined,
            token: self.token,
            test: case.name(),
            hog,
            tokens_per_second: median(
                &runs.iter().map(|run| run.tokens_per_second).collect::<Vec<_>>(),
            ),
            runs: runs.clone(),
        };
        cases.iter().zip(&self.results).map(row).collect()
    }
}

fn run(
    tokens_per_second: f64,
    overlaps: u64,
    token_wait_ms: f64,
    summary: Option<&Summary>,
) -> Run {
    let time = summary.map_or(f64::INFINITY, |summary| summary.duration_ms);
    let bubbles = summary.and_then(|summary| summary.pipeline_bubbles.as_ref());
    let share = |ms: Option<f64>| ms.unwrap_or_default() / time;
    Run {
        tokens_per_second,
        cpu_bubbles: share(bubbles.and_then(|bubbles| bubbles.cpu_ms)),
        igpu_bubbles: share(bubbles.and_then(|bubbles| bubbles.igpu_ms)),
        overlap: summary
            .and_then(|summary| summary.overlap.as_ref())
            .map_or(0.0, |overlap| overlap.share),
        token_wait_ms,
        overlaps,
    }
}

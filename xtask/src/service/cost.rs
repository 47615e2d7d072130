//! What the scheduler costs: tokens per second that a client gets from it, beside `tandem bench` in a process of its own, in
//! turns.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use tandem_ipc::client::{Client, TextEvent};
use tandem_ipc::protocol::{Generate, SamplingFields};
use tandem_model::Checkpoint;
use tandem_runtime::SamplingParams;
use tandem_runtime::bench::{Test, Work};
use tandem_testkit::Rng;

use super::process::Scheduler;
use crate::peers::Driver;
use crate::record::{commit, date, machine, results_folder};
use crate::shell::tandem;

#[derive(Args)]
pub(crate) struct CostArgs {
    /// The model: at full size, lest the cost of a token be the service's
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,

    /// Threads of both
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    threads: usize,

    /// Tokens that are written
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    tokens: usize,

    /// Tokens that come before them
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    depth: usize,

    /// Turns of each
    #[arg(short, long, value_name = "N", default_value_t = 9)]
    repetitions: usize,

    /// Where the result goes [default: bench/results]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn cost(args: &CostArgs) -> anyhow::Result<()> {
    let program = tandem()?;
    let model = args.model.to_str().context("the model's path is not UTF-8")?;
    let vocab = Checkpoint::open(&args.model)?.config().vocab_size;
    let (threads, context) = (args.threads.to_string(), (args.depth + args.tokens + 2).to_string());
    let common =
        ["--threads", &threads, "--ctx", &context, "--no-sliding-window", "--model", model];
    let mut bench = Command::new(&program);
    let mut bench = Driver::start(bench.args(["bench", "--stdin"]).args(common))?;
    let scheduler = Scheduler::start(&program, &common)?;
    let mut client = scheduler.client()?;

    bench.prepare(Test { work: Work::Generate(args.tokens), depth: args.depth })?;
    let mut rng = Rng::new(1);
    let prompt: Vec<u32> = (0..args.depth).map(|_| rng.below(vocab) as u32).collect();
    through_service(&mut client, &prompt, args.tokens)?;
    let (mut inside, mut through) = (Vec::new(), Vec::new());
    for _ in 0..args.repetitions {
        inside.push(args.tokens as f64 / bench.time()?);
        through.push(through_service(&mut client, &prompt, args.tokens)?);
    }
    scheduler.end()?;
    let (inside_median, through_median) = (median(&inside), median(&through));
    let cost = 1.0 - through_median / inside_median;
    let result = json!({
        "what": "cost of the scheduler service: decode, one client, in turns with tandem bench",
        "date": date()?, "machine": machine(), "commit": commit()?,
        "model": args.model.file_name().map(|name| name.to_string_lossy()),
        "threads": args.threads, "tokens": args.tokens, "depth": args.depth,
        "bench_tokens_per_second": inside, "service_tokens_per_second": through,
        "median": {"bench": inside_median, "service": through_median},
        "cost_percent": 100.0 * cost,
    });
    println!("{result:#}");
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => results_folder()?,
    };
    let path = folder.join(format!("service-cost-{}.json", date()?));
    std::fs::write(&path, format!("{result:#}\n"))?;
    println!("{}: the service costs {:.2} %", path.display(), 100.0 * cost);
    Ok(())
}

/// Tokens per second from the first token that the client hears of to the last.
fn through_service(client: &mut Client, prompt: &[u32], tokens: usize) -> anyhow::Result<f64> {
    let generate = Generate {
        ids: Some(prompt.to_vec()),
        // The first one comes of the prompt.
        max_tokens: Some(tokens + 1),
        sampling: SamplingFields::from(&SamplingParams::GREEDY),
        stop_ids: Some(vec![]),
        ..Generate::default()
    };
    let (mut first, mut last, mut heard) = (None, None, 0);
    client.generate(&generate, &mut |event| {
        if let TextEvent::Tokens { ids, .. } = event {
            let now = Instant::now();
            first.get_or_insert((now, ids.len()));
            (last, heard) = (Some(now), heard + ids.len());
        }
        ControlFlow::Continue(())
    })?;
    let ((begun, before), Some(ended)) = (first.context("no tokens came")?, last) else {
        anyhow::bail!("no tokens came");
    };
    ensure!(heard == tokens + 1, "expected {} tokens, heard {heard}", tokens + 1);
    Ok((heard - before) as f64 / (ended - begun).as_secs_f64())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

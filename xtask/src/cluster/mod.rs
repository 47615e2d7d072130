//! `cargo xtask cluster`: two workers behind HAProxy, with the file of deploy/haproxy. What a worker's end costs under load,
//! and what it is worth that texts that begin alike go to the same worker.

mod client;
mod faults;
mod processes;
mod sticky;

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::record;
use crate::shell::tandem;
use processes::Cluster;

#[derive(Args)]
pub(crate) struct ClusterArgs {
    /// Model of the workers [default: the one that ships]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,

    /// Threads of each worker
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,

    /// Seconds of load while workers end and come back
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,

    /// Requests of each way of routing
    #[arg(long, value_name = "N", default_value_t = 240)]
    requests: usize,

    /// Tokens of each answer under load
    #[arg(long, value_name = "N", default_value_t = 200)]
    tokens: usize,

    /// Only show the figures; write no file
    #[arg(long)]
    quick: bool,
}

pub(crate) fn cluster(args: &ClusterArgs) -> anyhow::Result<()> {
    let program = tandem()?;
    let start = |sticky| Cluster::start(&program, args.model.as_deref(), args.threads, sticky);

    let mut cluster = start(true)?;
    let faults = faults::measure(&mut cluster, args.seconds, args.tokens)?;
    drop(cluster);

    let mut routing = Vec::new();
    for sticky in [false, true] {
        // New workers, whose caches are empty.
        let cluster = start(sticky)?;
        routing.push(sticky::measure(&cluster, sticky, args.requests)?);
    }
    let report = json!({
        "date": record::date()?,
        "commit": record::commit()?,
        "machine": record::machine(),
        "model": args.model.as_ref().map_or_else(|| json!("the demo model"), |m| json!(m.file_name().map(|n| n.to_string_lossy()))),
        "threads_per_worker": args.threads,
        "a_worker_ends": faults,
        "routing": routing,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    let corrupted =
        ["killed", "drained"].map(|phase| report["a_worker_ends"][phase]["corrupted"] != json!(0));
    anyhow::ensure!(corrupted == [false, false], "an answer is corrupted");
    if !args.quick {
        save(&report)?;
    }
    Ok(())
}

fn save(report: &Value) -> anyhow::Result<()> {
    let path = record::results_folder()?.join(format!("cluster-{}.json", record::date()?));
    fs::write(&path, format!("{}\n", serde_json::to_string_pretty(report)?))?;
    println!("written to {}", path.display());
    Ok(())
}

//! Many clients for minutes, with texts, packets and questions mixed: no answer may be lost or another's, and the scheduler's
//! memory must stay flat.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use tandem_golden::{Prompt, stories, stories_bf16};
use tandem_ipc::Address;
use tandem_ipc::client::{Client, TextEvent, message};
use tandem_ipc::protocol::{Generate, SamplingFields};
use tandem_runtime::SamplingParams;
use tandem_testkit::Rng;

use super::process::{Scheduler, connect};
use crate::record::{commit, date, machine, results_folder};
use crate::shell::tandem;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct SoakArgs {
    /// For how long
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0)]
    minutes: f64,

    /// Clients at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    clients: usize,

    /// Where the result goes [default: bench/results]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What all clients have done.
#[derive(Default)]
struct Counts {
    texts: AtomicU64,
    tokens: AtomicU64,
    abandoned: AtomicU64,
    packets: AtomicU64,
    questions: AtomicU64,
}

pub(crate) fn soak(args: &SoakArgs) -> anyhow::Result<()> {
    let model = stories_bf16();
    let model = model.to_str().context("the model's path is not UTF-8")?;
    let program = tandem()?;
    let scheduler = Scheduler::start(&program, &["--model", model, "--max-waiting", "128"])?;
    let (counts, ended, stories) = (Counts::default(), AtomicBool::new(false), stories());
    let begun = Instant::now();
    let memory = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..args.clients)
            .map(|n| {
                let (counts, ended, stories) = (&counts, &ended, &stories[..]);
                let address = scheduler.address();
                scope.spawn(move || client(address, n as u64, stories, counts, ended))
            })
            .collect();
        let mut memory = Vec::new();
        while begun.elapsed().as_secs_f64() < 60.0 * args.minutes
            && !clients.iter().any(std::thread::ScopedJoinHandle::is_finished)
        {
            std::thread::sleep(LOOK);
            // Where the scheduler is gone, the clients say so.
            memory.extend(scheduler.resident().ok());
        }
        ended.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        anyhow::Ok(memory)
    })?;
    let health = scheduler.client()?.health_check()?.fields;
    for key in ["running", "waiting", "requests"] {
        ensure!(health[key] == 0, "{key} at the end: expected 0, found {}", health[key]);
    }
    scheduler.end()?;
    report(args, begun.elapsed(), &counts, &memory)
}

/// What came of it, in words and in a file.
fn report(args: &SoakArgs, took: Duration, counts: &Counts, memory: &[u64]) -> anyhow::Result<()> {
    // Caches and buffers are made in the first fifth.
    let warm = &memory[memory.len() / 5..];
    let (half, most) = (warm.len() / 2, |part: &[u64]| part.iter().copied().max().unwrap_or(0));
    let (first, second) = (most(&warm[..half]), most(&warm[half..]));
    let grown = second.saturating_sub(first) as f64 / 1e6;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let result = json!({
        "what": "soak of the scheduler service", "date": date()?, "machine": machine(), "commit": commit()?,
        "minutes": took.as_secs_f64() / 60.0, "clients": args.clients,
        "texts": count(&counts.texts), "tokens": count(&counts.tokens), "abandoned_texts": count(&counts.abandoned),
        "packets": count(&counts.packets), "questions": count(&counts.questions),
        "lost_or_mixed_answers": 0,
        "resident_mb": {
            "first_look": memory.first().map(|&bytes| bytes as f64 / 1e6),
            "most_of_first_half": first as f64 / 1e6, "most_of_second_half": second as f64 / 1e6,
        },
    });
    println!("{result:#}");
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => results_folder()?,
    };
    let path = folder.join(format!("soak-{}.json", date()?));
    std::fs::write(&path, format!("{result:#}\n"))?;
    println!("{}", path.display());
    // Fragments of the heap move by more than nothing; a leak grows with the number of requests.
    ensure!(grown < 8.0, "memory grew by {grown:.1} MB in the second half");
    Ok(())
}

/// One client: anything of what clients do, again and again. Whatever is not as it must be is an error.
fn client(
    address: &Address,
    n: u64,
    stories: &[Prompt],
    counts: &Counts,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    let mut rng = Rng::new(n);
    let mut client = connect(address)?;
    while !ended.load(Ordering::Relaxed) {
        let story = &stories[rng.below(stories.len())];
        match rng.below(8) {
            0..4 => text(&mut client, &mut rng, story, counts)?,
            // One that goes away in the middle of a text.
            4 => {
                abandoned(&mut client, story)?;
                client = connect(address)?;
                counts.abandoned.fetch_add(1, Ordering::Relaxed);
            }
            5 | 6 => packet(&mut client, &mut rng, counts)?,
            _ => {
                let kind = ["health_check", "get_telemetry", "get_bandwidth_stats"][rng.below(3)];
                let answer = client.ask(message(kind), None)?.fields;
                ensure!(answer["type"] == kind, "asked for {kind}, got {}", answer["type"]);
                counts.questions.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

fn greedy(story: &Prompt, tokens: usize) -> Generate {
    Generate {
        ids: Some(story.ids.clone()),
        continues_prompt: Some(true),
        max_tokens: Some(tokens),
        sampling: SamplingFields::from(&SamplingParams::GREEDY),
        stop_ids: Some(vec![]),
        ..Generate::default()
    }
}

/// A text must be the reference's.
fn text(client: &mut Client, rng: &mut Rng, story: &Prompt, counts: &Counts) -> anyhow::Result<()> {
    let tokens = 1 + rng.below(story.greedy.len());
    let mut heard = Vec::new();
    let result = client.generate(&greedy(story, tokens), &mut |event| {
        if let TextEvent::Tokens { ids, .. } = event {
            heard.extend(ids);
        }
        ControlFlow::Continue(())
    })?;
    ensure!(heard == story.greedy[..tokens], "{}: a stream went wrong", story.name);
    ensure!(result.ids == heard, "{}: the summary differs from the stream", story.name);
    counts.texts.fetch_add(1, Ordering::Relaxed);
    counts.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    Ok(())
}

/// The client is dropped by whoever calls this.
fn abandoned(client: &mut Client, story: &Prompt) -> anyhow::Result<()> {
    let result =
        client.generate(&greedy(story, story.greedy.len()), &mut |_| ControlFlow::Break(()))?;
    ensure!(
        result.ids.len() < story.greedy.len() || story.greedy.len() < 4,
        "it was not cancelled"
    );
    Ok(())
}

/// A packet's answer must be this packet's.
fn packet(client: &mut Client, rng: &mut Rng, counts: &Counts) -> anyhow::Result<()> {
    let (tokens, id) = (1 + rng.below(8), rng.below(1 << 30));
    let experts = rng.below(2) == 0;
    let operation = if experts { "router_logits" } else { "moe_layernorm" };
    let width = 256;
    let data = json!({
        "packet_id": id, "layer_idx": rng.below(6), "operation": operation, "input_shape": [tokens, width],
    });
    let mut asked: Map<String, Value> = message("work_packet");
    asked.insert("data".to_owned(), data);
    let tensor: Vec<u8> = (0..tokens * width).flat_map(|_| rng.normal().to_le_bytes()).collect();
    let reply = client.ask(asked, Some(&tensor))?;
    let result = &reply.fields["result"];
    let out = if experts { 16 } else { width };
    ensure!(result["packet_id"] == id, "packet {id}: got {}", result["packet_id"]);
    ensure!(result["output_shape"] == json!([tokens, out]), "packet {id}: {result}");
    ensure!(
        reply.tensor.map(|tensor| tensor.len()) == Some(4 * tokens * out),
        "packet {id}: tensor"
    );
    counts.packets.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

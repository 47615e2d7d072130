//! What guessing from the text gains, and what it costs where it finds nothing.
//!
//! `cargo run --release -p tandem-runtime --example lookup_speed -- MODEL THREADS` prints Markdown. Texts are replayed:
//! the model computes as if it had written them, so that the guesses of a real text are verified at the real cost,
//! whatever this model would write itself. Rounds alternate between the ways, so that a busy machine troubles all alike;
//! shown are medians.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_runtime::bench::{Replay, median, replay};
use tandem_runtime::{Executor, Model};

/// Tokens of a text, and of its prompt.
const TOKENS: usize = 360;
const PROMPT: usize = 180;
const ROUNDS: usize = 3;
/// Tokens to guess at most.
const LOOKUPS: [usize; 4] = [0, 2, 4, 8];

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a model");
    let threads = args.next().expect("threads").parse().expect("a number of threads");
    let checkpoint = Checkpoint::open(path.as_ref()).expect("a model");
    let model = Arc::new(Model::load(&checkpoint, threads, &|_| {}).expect("weights"));
    let c = model.config().clone();
    let kv = KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, TOKENS, KvType::F16);
    let (mut kv, mut executor) =
        (kv.expect("memory"), Executor::new(model, threads, 256).expect("threads"));
    let tokenizer = checkpoint.text().expect("a tokenizer").tokenizer;
    println!("| text | guesses at most | tokens/s | ratio | guessed | right |");
    println!("|---|---|---|---|---|---|");
    for (name, text) in texts() {
        let ids = tokenizer.encode(&text).expect("ids");
        let ids = &ids[..TOKENS.min(ids.len())];
        let prompt = PROMPT.min(ids.len() / 2);
        let mut replays = LOOKUPS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (lookup, replays) in LOOKUPS.iter().zip(&mut replays) {
                replays.push(replay(&mut executor, &mut kv, ids, prompt, *lookup).expect("room"));
            }
        }
        let plain = rate(&replays[0]);
        for (lookup, replays) in LOOKUPS.iter().zip(&replays) {
            let (rate, Replay { drafted, accepted, .. }) = (rate(replays), replays[0]);
            let ratio = rate / plain;
            println!("| {name} | {lookup} | {rate:.1} | {ratio:.2} | {drafted} | {accepted} |");
        }
    }
}

fn rate(replays: &[Replay]) -> f64 {
    median(&replays.iter().map(|replay| replay.rate).collect::<Vec<_>>())
}

/// Text of different kinds, each with the half that is the prompt first.
fn texts() -> [(&'static str, String); 4] {
    let prose = include_str!("../../../ARCHITECTURE.md");
    let code = include_str!("../src/stop.rs");
    // A task of programmers: the first half again, with a name changed.
    let half: String = code.chars().take(520).collect();
    let changed = half.replace("StopFilter", "StopScanner").replace("text", "piece");
    [
        ("prose", prose.to_owned()),
        ("program", code.to_owned()),
        ("program again, with two words changed", half.clone() + "\n\n" + &changed),
        ("one sentence over and over", "The cat sat on the mat and looked. ".repeat(60)),
    ]
}

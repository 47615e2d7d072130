//! What it is worth that texts that begin alike go to the same worker.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{self, Ask, End, quantile_ms};
use super::processes::Cluster;

/// Long beginnings that many requests share: as many as the caches of two workers hold between them, and more than one
/// worker's.
const BEGINNINGS: usize = 12;
/// Words of each.
const WORDS: usize = 220;
/// Requests at a time.
const CLIENTS: usize = 2;
/// Tokens of each answer.
const TOKENS: usize = 16;

/// What beginnings begin with.
const NAMES: [&str; BEGINNINGS] =
    ["Tom", "Lily", "Max", "Anna", "Ben", "Sue", "Once", "One", "There", "A", "In", "When"];

const VOCABULARY: [&str; 32] = [
    "the", "little", "dog", "ran", "to", "park", "and", "saw", "a", "big", "red", "ball", "it",
    "was", "happy", "with", "friend", "tree", "sun", "water", "play", "mom", "said", "yes", "they",
    "went", "home", "cat", "bird", "small", "day", "very",
];

/// Requests through the proxy; every one has one of the beginnings, and an end of its own.
pub(super) fn measure(cluster: &Cluster, sticky: bool, requests: usize) -> anyhow::Result<Value> {
    let (url, model) = (cluster.url(), client::model(&cluster.worker_url(0))?);
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let agent = client::agent();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= requests {
                        return;
                    }
                    let prompt = prompt(n);
                    let ask = Ask { url: &url, model: &model, prompt: &prompt, tokens: TOKENS };
                    let answer = client::ask(&agent, &ask);
                    answers.lock().expect("nobody panics with it").push(answer);
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let answers = answers.into_inner().expect("nobody panicked");
    let bad = answers.iter().filter(|answer| answer.end != End::Whole).count();
    anyhow::ensure!(bad == 0, "{bad} of {requests} requests were not answered");
    let sum = |of: fn(&client::Answer) -> u64| answers.iter().map(of).sum::<u64>();
    let (prompt, cached) = (sum(|a| a.prompt_tokens), sum(|a| a.cached_tokens));
    let mut firsts: Vec<Duration> = answers.iter().filter_map(|a| a.first_token).collect();
    Ok(json!({
        "routing": if sticky { "by beginning" } else { "in turns" },
        "requests": requests,
        "clients": CLIENTS,
        "beginnings": BEGINNINGS,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cached_share": cached as f64 / prompt.max(1) as f64,
        "first_token_ms": {"p50": quantile_ms(&mut firsts, 0.5), "p95": quantile_ms(&mut firsts, 0.95)},
        "seconds": seconds,
    }))
}

/// The n-th prompt: beginnings in an order that repeats after all of them.
fn prompt(n: usize) -> String {
    // A linear congruential generator's high bits; words need no better.
    let words = |mut state: u64, count: usize| {
        let each = (0..count).map(move |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            VOCABULARY[(state >> 59) as usize]
        });
        each.collect::<Vec<_>>().join(" ")
    };
    // Another stride than the proxy's turns, which would otherwise send each beginning to one worker by chance.
    let beginning = (n * 5 + n / BEGINNINGS) % BEGINNINGS;
    let name = NAMES[beginning];
    format!("{name} {} {}", words(1 + beginning as u64, WORDS), words(1000 + n as u64, 12))
}

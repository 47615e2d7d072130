//! A worker ends while both are at work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{self, Answer, Ask, End, quantile_ms};
use super::processes::{Cluster, get, wait_until};

/// Streams at a time.
const CLIENTS: usize = 8;
/// Texts that are asked for, again and again.
const PROMPTS: [&str; 8] = [
    "Once upon a time there was a little dragon named Max.",
    "Lily found a red ball in the park.",
    "The old bear lived in a big forest.",
    "One day, Tom and his dog went to the sea.",
    "There was a small boat that could talk.",
    "Anna wanted to bake a cake for her mother.",
    "The moon was sad because nobody looked at it.",
    "A tiny bird fell out of its nest.",
];

/// An answer with when it was asked for, and for which prompt.
type Given = (Instant, usize, Answer);

/// Load over `seconds`, in which a worker is killed (SIGKILL) and comes back, and then as long in which the other is told to
/// stop (SIGTERM), which lets it finish.
pub(super) fn measure(cluster: &mut Cluster, seconds: u64, tokens: usize) -> anyhow::Result<Value> {
    let model = client::model(&cluster.worker_url(0))?;
    let agent = client::agent();
    let direct = cluster.worker_url(0);
    let expected: Vec<String> = PROMPTS
        .iter()
        .map(|prompt| {
            client::ask(&agent, &Ask { url: &direct, model: &model, prompt, tokens }).text
        })
        .collect();
    anyhow::ensure!(expected.iter().all(|text| !text.is_empty()), "a worker answers nothing");
    let part = Duration::from_secs(seconds) / 3;
    let mut result =
        json!({"clients": CLIENTS, "tokens_per_answer_at_most": tokens, "seconds": seconds});
    for (phase, worker, signal) in [("killed", 1, "KILL"), ("drained", 0, "TERM")] {
        let url = cluster.url();
        let (given, ended) = under_load(&url, &model, tokens, || {
            std::thread::sleep(part);
            let ended = Instant::now();
            cluster.signal(worker, signal)?;
            std::thread::sleep(part);
            cluster.start_worker(worker)?;
            wait_until(|| get(&cluster.worker_url(worker), "/ready").is_ok())?;
            std::thread::sleep(part);
            Ok(ended)
        })?;
        result[phase] = judge(&given, &expected, ended);
    }
    Ok(result)
}

/// Answers of all clients while `what` happens.
fn under_load(
    url: &str,
    model: &str,
    tokens: usize,
    what: impl FnOnce() -> anyhow::Result<Instant>,
) -> anyhow::Result<(Vec<Given>, Instant)> {
    let (given, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let ended = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (given, over) = (&given, &over);
            scope.spawn(move || {
                let agent = client::agent();
                for prompt in (client..).map(|n| n % PROMPTS.len()) {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let at = Instant::now();
                    let ask = Ask { url, model, prompt: PROMPTS[prompt], tokens };
                    let answer = client::ask(&agent, &ask);
                    if matches!(answer.end, End::Refused(_)) {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    given.lock().expect("nobody panics with it").push((at, prompt, answer));
                }
            });
        }
        let ended = what();
        over.store(true, Ordering::Relaxed);
        ended
    })?;
    Ok((given.into_inner().expect("nobody panicked"), ended))
}

fn judge(given: &[Given], expected: &[String], ended: Instant) -> Value {
    let count = |is: &dyn Fn(&Given) -> bool| given.iter().filter(|g| is(g)).count();
    let whole = |g: &Given| g.2.end == End::Whole;
    let broken = |g: &Given| g.2.end == End::Broken;
    // Whole answers are the whole text, those that broke off its beginning.
    let corrupted = |(_, prompt, answer): &Given| match answer.end {
        End::Whole => answer.text != expected[*prompt],
        End::Broken => !expected[*prompt].starts_with(&answer.text),
        End::Refused(_) => false,
    };
    let after = |g: &Given| g.0 >= ended;
    let first_after = given
        .iter()
        .filter(|g| after(g) && whole(g))
        .filter_map(|g| g.2.first_token.map(|first| (g.0 + first).duration_since(ended)));
    let mut firsts: Vec<Duration> = given.iter().filter_map(|g| g.2.first_token).collect();
    let mut statuses: Vec<u16> = given
        .iter()
        .filter_map(|g| match g.2.end {
            End::Refused(status) => Some(status),
            _ => None,
        })
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    json!({
        "asked": given.len(),
        "whole": count(&whole),
        "whole_of_those_asked_after_it_ended": count(&|g| after(g) && whole(g)),
        "broken_off": count(&broken),
        "broken_off_of_those_asked_after_it_ended": count(&|g| after(g) && broken(g)),
        "refused": count(&|g| matches!(g.2.end, End::Refused(_))),
        "statuses_of_refusals": statuses,
        "corrupted": count(&corrupted),
        "ms_until_a_new_request_had_its_first_token": first_after.min().map(|d| d.as_secs_f64() * 1e3),
        "first_token_ms": {"p50": quantile_ms(&mut firsts, 0.5), "p95": quantile_ms(&mut firsts, 0.95), "max": quantile_ms(&mut firsts, 1.0)},
        "slowest_whole_answer_ms": given.iter().filter(|g| whole(g)).map(|g| g.2.whole.as_millis() as u64).max(),
        "tokens": given.iter().map(|g| g.2.tokens).sum::<u64>(),
    })
}

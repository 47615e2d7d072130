//! Numbers at the end of a run: times, rates, memory.

use std::time::Duration;

use serde::Serialize;
use tandem_runtime::Generated;

/// What a run cost.
#[derive(Serialize)]
pub(crate) struct Statistics {
    load_seconds: f64,
    prompt_tokens: usize,
    prompt_tokens_cached: usize,
    prompt_tokens_computed: usize,
    prompt_seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    decode_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: Option<f64>,
    drafted_tokens: usize,
    accepted_tokens: usize,
    peak_memory_bytes: Option<u64>,
}

impl Statistics {
    pub(crate) fn new(load_time: Duration, generated: &Generated) -> Self {
        Self {
            load_seconds: load_time.as_secs_f64(),
            prompt_tokens: generated.prompt_tokens,
            prompt_tokens_cached: generated.cached_tokens,
            prompt_tokens_computed: generated.computed_tokens,
            prompt_seconds: generated.prompt_time.as_secs_f64(),
            prompt_tokens_per_second: rate(generated.computed_tokens, generated.prompt_time),
            decode_tokens: generated.decoded_tokens,
            decode_seconds: generated.decode_time.as_secs_f64(),
            decode_tokens_per_second: rate(generated.decoded_tokens, generated.decode_time),
            drafted_tokens: generated.drafted_tokens,
            accepted_tokens: generated.accepted_tokens,
            peak_memory_bytes: peak_memory(),
        }
    }

    /// One line for a person.
    pub(crate) fn line(&self) -> String {
        let per_second = |rate: Option<f64>| {
            rate.map_or_else(String::new, |rate| format!(" ({} tokens/s)", significant(rate)))
        };
        let memory = self
            .peak_memory_bytes
            .map_or_else(|| "unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        let guesses = match self.drafted_tokens {
            0 => String::new(),
            drafted => format!(" | {} of {drafted} guesses right", self.accepted_tokens),
        };
        format!(
            "load {:.2} s | prompt {} tokens in {:.2} s{} | decode {} tokens in {:.2} s{}{guesses} | peak memory {memory}",
            self.load_seconds,
            self.prompt_tokens_computed,
            self.prompt_seconds,
            per_second(self.prompt_tokens_per_second),
            self.decode_tokens,
            self.decode_seconds,
            per_second(self.decode_tokens_per_second),
        )
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// Three digits are as much as a timing on a busy machine is worth.
fn significant(rate: f64) -> String {
    match rate {
        r if r >= 100.0 => format!("{r:.0}"),
        r if r >= 10.0 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

/// The most memory this process has had in RAM, where the system tells (Linux: `VmHWM`).
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

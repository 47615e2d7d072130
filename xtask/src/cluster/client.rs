//! A client that streams a text and watches how it ends.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What is asked for.
pub(super) struct Ask<'a> {
    pub(super) url: &'a str,
    pub(super) model: &'a str,
    pub(super) prompt: &'a str,
    pub(super) tokens: usize,
}

/// How an answer ended.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// With everything that belongs to it.
    Whole,
    /// The connection ended before it, which the client sees.
    Broken,
    /// It never began: with this status, or without any (0).
    Refused(u16),
}

/// An answer, as far as it came.
pub(super) struct Answer {
    pub(super) end: End,
    pub(super) text: String,
    pub(super) first_token: Option<Duration>,
    pub(super) whole: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) tokens: u64,
}

/// Asks, and reads to the end.
pub(super) fn ask(agent: &ureq::Agent, ask: &Ask<'_>) -> Answer {
    let body = json!({
        "model": ask.model,
        "prompt": ask.prompt,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let begun = Instant::now();
    let mut answer = Answer {
        end: End::Broken,
        text: String::new(),
        first_token: None,
        whole: Duration::ZERO,
        prompt_tokens: 0,
        cached_tokens: 0,
        tokens: 0,
    };
    let sent = agent
        .post(format!("{}/v1/completions", ask.url))
        .header("Content-Type", "application/json")
        .send(body.to_string());
    match sent {
        Err(ureq::Error::StatusCode(status)) => answer.end = End::Refused(status),
        Err(_) => answer.end = End::Refused(0),
        Ok(response) => {
            let lines = BufReader::new(response.into_body().into_reader()).lines();
            for line in lines.map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    answer.end = End::Whole;
                    break;
                }
                let Ok(chunk) = serde_json::from_str::<Value>(data) else { break };
                answer.add(&chunk, begun);
            }
        }
    }
    answer.whole = begun.elapsed();
    answer
}

impl Answer {
    fn add(&mut self, chunk: &Value, begun: Instant) {
        if let Some(piece) = chunk["choices"][0]["text"].as_str().filter(|piece| !piece.is_empty())
        {
            self.first_token.get_or_insert_with(|| begun.elapsed());
            self.text += piece;
        }
        let usage = &chunk["usage"];
        if let Some(tokens) = usage["completion_tokens"].as_u64() {
            self.tokens = tokens;
            self.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
            self.cached_tokens =
                usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        }
    }
}

/// The model's name to clients.
pub(super) fn model(url: &str) -> anyhow::Result<String> {
    let models: Value = serde_json::from_str(&super::processes::get(url, "/v1/models")?)?;
    Ok(models["data"][0]["id"].as_str().unwrap_or_default().to_owned())
}

/// A client that keeps connections, and gives up a text that nothing comes of for so long.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(600))).build().into()
}

/// The value that a share of all are below of, in milliseconds; none of none.
pub(super) fn quantile_ms(times: &mut [Duration], share: f64) -> Option<f64> {
    times.sort();
    let last = times.len().checked_sub(1)?;
    Some((times[(last as f64 * share).round() as usize].as_secs_f64() * 1e5).round() / 100.0)
}

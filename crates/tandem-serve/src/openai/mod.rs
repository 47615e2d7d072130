//! The OpenAI API.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod logprobs;
pub(crate) mod models;
pub(crate) mod params;
pub(crate) mod sse;
pub(crate) mod usage;

/// Answers that one request may ask for.
pub(crate) const MAX_CHOICES: usize = 16;

/// A new name for an answer.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// What `finish_reason` says.
pub(crate) fn finish_reason(finish: tandem_runtime::FinishReason) -> &'static str {
    use tandem_runtime::FinishReason::{Cancelled, ContextFull, Length, Stop};
    match finish {
        Stop => "stop",
        Length | ContextFull | Cancelled => "length",
    }
}

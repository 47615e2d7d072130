//! How tokens are chosen where nobody says otherwise.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::sampling::SamplingParams;

impl SamplingParams {
    /// Some freedom, within what is likely. The seed is 0.
    pub fn usual() -> Self {
        Self {
            temperature: 0.4,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_window: 64,
            ..Self::GREEDY
        }
    }
}

/// A seed that differs from time to time; short, so that it can be typed again.
pub fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff_ffff)
}

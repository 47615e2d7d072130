//! What measurements depend on: with anything else they are worth nothing.

use serde::{Deserialize, Serialize};

/// What measurements depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The program's version.
    pub tandem: String,
    /// The CPU's name.
    pub cpu: String,
    /// Its instruction set.
    pub isa: String,
    /// Threads of decode and of prompts.
    pub threads: String,
    /// The GPU with its platform.
    pub device: String,
    /// Version of its driver.
    pub driver: String,
    /// The way its kernels are written.
    pub kernels: String,
    /// The model's name.
    pub model: String,
    /// Its size, and so how it is encoded.
    pub model_bytes: u64,
    /// Precision of keys and values.
    pub kv_type: String,
}

impl Identity {
    /// The first thing in which `now` differs: its name, as it was, as it is.
    pub(super) fn difference(&self, now: &Self) -> Option<(&'static str, String, String)> {
        let text = |i: &Self| {
            [
                ("Tandem", i.tandem.clone()),
                ("CPU", i.cpu.clone()),
                ("instruction set", i.isa.clone()),
                ("threads", i.threads.clone()),
                ("device", i.device.clone()),
                ("driver", i.driver.clone()),
                ("kernels", i.kernels.clone()),
                ("model", i.model.clone()),
                ("model bytes", i.model_bytes.to_string()),
                ("KV type", i.kv_type.clone()),
            ]
        };
        let pairs = text(self).into_iter().zip(text(now));
        pairs.into_iter().find(|((_, a), (_, b))| a != b).map(|((name, a), (_, b))| (name, a, b))
    }
}

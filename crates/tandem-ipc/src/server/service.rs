//! What the server serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tandem_model::PhimoeConfig;
use tandem_runtime::partition::Partition;
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::{Device, Engine};

use crate::protocol::{Answer, Fault, PROTOCOL_VERSION, ReloadConfig, SetPolicy, TextSide};

/// An engine, and what is needed to talk to it.
pub struct Service {
    /// Reads and writes texts.
    pub engine: Arc<Engine>,
    /// Turns prompts into ids.
    pub text: TextSide,
    /// What is said of the model.
    pub model: ModelInfo,
    /// The partition config that the scheduler was started with.
    pub config_file: Option<PathBuf>,
}

/// What is said of a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub config: PhimoeConfig,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// What a partition config may call it.
    pub names: Vec<String>,
}

/// The part of a model that `health_check` tells.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    experts: usize,
    context: usize,
}

impl Service {
    /// The answer to `health_check`.
    pub(super) fn health(&self, uptime: Duration, requests: usize) -> Answer {
        let devices = self.engine.devices();
        let igpu = devices.iter().find(|device| device.device == Device::Igpu);
        let load = self.engine.load();
        let ModelInfo { name, config, context, .. } = &self.model;
        let model = Told {
            name,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            layers: config.n_layers,
            experts: config.n_experts,
            context: *context,
        };
        let pool = self.engine.kv_pool();
        let kv_cache = json!({
            "tokens": pool.tokens(),
            "free_tokens": pool.free_pages() * pool.shape().page_tokens,
            "bytes": pool.bytes(),
        });
        Answer::new("ok", "health_check")
            .with("igpu_available", igpu.is_some_and(|igpu| igpu.failure.is_none()))
            .with("protocol", PROTOCOL_VERSION)
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("model", model)
            .with("kv_cache", kv_cache)
            .with("devices", devices)
            .with("policy", self.engine.policy())
            .with("running", load.running)
            .with("waiting", load.waiting)
            .with("requests", requests)
            .with("uptime_s", uptime.as_secs_f64())
    }

    /// The answer to `get_telemetry`.
    pub(super) fn telemetry(&self) -> Result<Answer, Fault> {
        let figures = self.engine.client_telemetry();
        let figures = figures.ok_or_else(|| Fault::failed("telemetry is off"))?;
        Ok(Answer::new("success", "get_telemetry").with("telemetry", figures))
    }

    /// The answer to `get_bandwidth_stats`.
    pub(super) fn bandwidth_stats(&self) -> Result<Answer, Fault> {
        let stats = self.engine.bandwidth_stats();
        let stats = stats.ok_or_else(|| Fault::failed("nobody watches the bandwidth"))?;
        let answer = Answer::new("success", "get_bandwidth_stats")
            .with("bandwidth_stats", stats)
            .with("rates", self.engine.rates());
        Ok(match self.engine.token_metrics() {
            Some(token) => answer.with("token", token),
            None => answer,
        })
    }

    /// The answer to `get_state`.
    pub(super) fn state(&self) -> Answer {
        Answer::new("success", "get_state").with("state", self.engine.state())
    }

    /// The answer to `get_trace`.
    pub(super) fn trace(&self) -> Result<Answer, Fault> {
        let trace = self.engine.trace();
        let trace = trace.ok_or_else(|| Fault::failed("telemetry is off"))?;
        let trace: Value = serde_json::from_slice(&trace).map_err(Fault::failed)?;
        Ok(Answer::new("success", "get_trace").with("trace", trace))
    }

    /// The answer to `set_policy`.
    pub(super) fn set_policy(&self, wanted: &SetPolicy) -> Result<Answer, Fault> {
        let policy: PolicyKind = wanted
            .policy
            .parse()
            .map_err(|error| Fault::request(format!("set_policy: {error}")))?;
        self.engine.set_policy(policy).map_err(|error| Fault::from(&error))?;
        if let Some(pipelining) = wanted.enable_pipelining {
            self.engine.set_pipelining(pipelining).map_err(|error| Fault::from(&error))?;
        }
        let answer = Answer::new("success", "set_policy").with("policy", self.engine.policy());
        Ok(answer.with("enable_pipelining", self.engine.pipelining()))
    }

    /// The answer to `reload_config`. A config that is not valid leaves everything as it was.
    pub(super) fn reload_config(&self, reload: &ReloadConfig) -> Result<Answer, Fault> {
        let ModelInfo { config, names, .. } = &self.model;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (partition, source) = match (&reload.yaml, &self.config_file) {
            (Some(yaml), _) => {
                let source = "the message's yaml";
                (Partition::parse(source.as_ref(), yaml, config, &names), source.to_owned())
            }
            (None, Some(path)) => {
                (Partition::read(path, config, &names), path.display().to_string())
            }
            (None, None) => {
                return Err(Fault::request(
                    "reload_config: the scheduler was started without --config: send the config as yaml",
                ));
            }
        };
        let partition =
            partition.map_err(|error| Fault::request(format!("reload_config: {error}")))?;
        self.engine.reload(partition).map_err(|error| Fault::from(&error))?;
        let answer = Answer::new("success", "reload_config").with("source", source);
        Ok(answer.with("applied", json!(true)))
    }
}

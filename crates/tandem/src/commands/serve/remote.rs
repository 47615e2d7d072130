//! A scheduler somewhere else as what the HTTP server answers with.

mod text;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_ipc::client::{Client, Reply, Timeouts, message};
use tandem_ipc::{Address, IpcError};
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::{Checkpoint, PhimoeConfig, Text};
use tandem_runtime::{EngineLoad, EngineState, Rates, Request, Result, RuntimeError};
use tandem_serve::{Backend, Listener, ModelInfo, Ticket};

/// For what the scheduler answers at once.
const PROMPT: Timeouts = Timeouts { answer: Duration::from_secs(2), quiet: Duration::from_secs(2) };

/// A scheduler behind an address. Each text that it writes for us has a thread here that listens; there are no more of them
/// than texts may run and wait.
pub(super) struct Remote {
    address: Address,
    model: ModelInfo,
    shape: Shape,
    /// For questions that are answered at once.
    control: Mutex<Client>,
    open: Arc<AtomicUsize>,
    most: EngineLoad,
}

/// What a model must have in common with another for ids to mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    vocab_size: usize,
    layers: usize,
    experts: usize,
}

impl Shape {
    fn of(config: &PhimoeConfig) -> Self {
        let PhimoeConfig { vocab_size, n_layers: layers, n_experts: experts, .. } = *config;
        Self { vocab_size, layers, experts }
    }

    /// Whether the scheduler that answered so has such a model.
    fn check(self, health: &Reply) -> anyhow::Result<()> {
        let model = health.fields.get("model").context("the scheduler names no model")?;
        for (field, expected) in
            [("vocab_size", self.vocab_size), ("layers", self.layers), ("experts", self.experts)]
        {
            let (found, name) = (&model[field], &model["name"]);
            ensure!(
                found.as_u64() == Some(expected as u64),
                "the scheduler has another model, {name}: expected {field} {expected}, found {found}"
            );
        }
        Ok(())
    }
}

impl Remote {
    /// Makes sure that a scheduler is there and has the model whose tokenizer and template `checkpoint` has.
    pub(super) fn connect(
        address: Address,
        checkpoint: &Checkpoint,
        id: Option<String>,
        most: EngineLoad,
    ) -> anyhow::Result<Self> {
        let mut control = Client::connect(&address, PROMPT)?;
        let health = control.health_check()?;
        let config = checkpoint.config();
        let shape = Shape::of(config);
        shape.check(&health).with_context(|| format!("{address}"))?;
        let number = |of: &str, field: &str| {
            let number = health.fields.get(of).and_then(|of| of[field].as_u64());
            number.and_then(|number| usize::try_from(number).ok())
        };
        let context = number("model", "context").context("the scheduler tells no context")?;
        let Text { tokenizer, template, .. } = checkpoint.text()?;
        let model = ModelInfo {
            id: id.unwrap_or_else(|| checkpoint.name().to_owned()),
            context,
            kv_tokens: number("kv_cache", "tokens"),
            vocab_size: config.vocab_size,
            stop_ids: checkpoint.special_ids().stop.clone(),
            layers: config.n_layers,
            experts: config.n_experts,
            experts_per_token: EXPERTS_PER_TOKEN,
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
        };
        let (control, open) = (Mutex::new(control), Arc::default());
        Ok(Self { address, model, shape, control, open, most })
    }

    /// The answer to a question.
    fn reply(&self, kind: &str) -> Option<Reply> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match control.ask(message(kind), None) {
            // The connection has ended, or was not to be had: there may be somebody again.
            Err(IpcError::Gone(_)) => {
                *control = Client::connect(&self.address, PROMPT).ok()?;
                control.ask(message(kind), None)
            }
            reply => reply,
        };
        reply.ok()
    }

    /// A field of it; none where it is not as expected.
    fn ask<T: DeserializeOwned>(&self, kind: &str, field: &str) -> Option<T> {
        serde_json::from_value(self.reply(kind)?.fields.remove(field)?).ok()
    }
}

impl Backend for Remote {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn submit(&self, prompt: Vec<u32>, request: Request, listener: Listener) -> Result<Ticket> {
        // What an engine here would refuse before it queues it.
        request.sampling.validate()?;
        if prompt.is_empty() {
            return Err(RuntimeError::EmptyPrompt);
        }
        let (tokens, context) = (prompt.len(), self.model.context);
        if tokens > context {
            return Err(RuntimeError::PromptTooLong { tokens, context });
        }
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= self.model.vocab_size) {
            return Err(RuntimeError::TokenId { id, vocab_size: self.model.vocab_size });
        }
        if request.constraint.as_ref().is_some_and(|constraint| constraint.form().is_none()) {
            let message = "a scheduler cannot be told of it".to_owned();
            return Err(RuntimeError::Constraint { message });
        }
        let EngineLoad { running, waiting } = self.most;
        if self.open.fetch_add(1, Ordering::Relaxed) >= running + waiting {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(RuntimeError::QueueFull { waiting, running });
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let place = Place(Arc::clone(&self.open));
        let (address, shape) = (self.address.clone(), self.shape);
        let cancel = Cancel(Arc::clone(&cancelled));
        let spawned = std::thread::Builder::new().name("tandem-remote".into()).spawn(move || {
            text::write((&address, shape), prompt, request, listener, &cancelled);
            drop(place);
        });
        spawned.map_err(|source| RuntimeError::Threads { threads: 1, source })?;
        Ok(Box::new(cancel))
    }

    fn load(&self) -> EngineLoad {
        let open = self.open.load(Ordering::Relaxed);
        let running = open.min(self.most.running);
        EngineLoad { running, waiting: open - running }
    }

    fn capacity(&self) -> EngineLoad {
        self.most
    }

    fn is_ready(&self) -> bool {
        let health = self.reply("health_check");
        health.is_some_and(|health| self.shape.check(&health).is_ok())
    }

    fn telemetry(&self) -> Option<Value> {
        self.ask("get_telemetry", "telemetry")
    }

    fn rates(&self) -> Rates {
        self.ask("get_bandwidth_stats", "rates").unwrap_or_default()
    }

    fn state(&self) -> EngineState {
        self.ask("get_state", "state").unwrap_or_default()
    }

    fn trace(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.ask::<Value>("get_trace", "trace")?).ok()
    }
}

/// Ends a text when it is dropped.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One of the texts that may run and wait.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_model_is_noticed_and_named() {
        let shape = Shape { vocab_size: 8, layers: 2, experts: 16 };
        let reply = |model: Value| {
            let fields = serde_json::Map::from_iter([("model".to_owned(), model)]);
            Reply { fields, tensor: None }
        };
        let model = serde_json::json!({"name": "m", "vocab_size": 8, "layers": 2, "experts": 16});
        assert!(shape.check(&reply(model.clone())).is_ok());
        for field in ["vocab_size", "layers", "experts"] {
            let mut other = model.clone();
            other[field] = 9.into();
            let error = shape.check(&reply(other)).unwrap_err().to_string();
            assert!(
                error.starts_with("the scheduler has another model, \"m\": expected"),
                "{error}"
            );
            assert!(error.contains(&format!("{field} ")) && error.ends_with("found 9"), "{error}");
        }
    }
}

//! A scheduler somewhere else as what the HTTP server answers with.

mod text;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tandem_ipc::client::{Client, Timeouts, message};
use tandem_ipc::{Address, IpcError};
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::{Checkpoint, Text};
use tandem_runtime::{EngineLoad, Request, Result, RuntimeError};
use tandem_serve::{Backend, BandwidthState, EngineState, Listener, ModelInfo, Rates, Ticket};

/// For what the scheduler answers at once.
const PROMPT: Timeouts = Timeouts { answer: Duration::from_secs(2), quiet: Duration::from_secs(2) };

/// A scheduler behind an address. Each text that it writes for us has a thread here that listens; there are no more of them
/// than texts may run and wait.
pub(super) struct Remote {
    address: Address,
    model: ModelInfo,
    /// For questions that are answered at once.
    control: Mutex<Client>,
    open: Arc<AtomicUsize>,
    most: EngineLoad,
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
        let told = health.fields.get("model").context("the scheduler names no model")?;
        let number = |field: &str| told[field].as_u64().and_then(|n| usize::try_from(n).ok());
        let config = checkpoint.config();
        let ours = [config.vocab_size, config.n_layers, config.n_experts];
        let theirs = ["vocab_size", "layers", "experts"].map(number);
        ensure!(
            theirs == ours.map(Some),
            "{address}: expected the model {} with vocabulary, layers and experts {ours:?}, found {told}",
            checkpoint.name()
        );
        let context = number("context").context("the scheduler tells no context")?;
        let kv_tokens = health.fields.get("kv_cache").and_then(|kv| kv["tokens"].as_u64());
        let Text { tokenizer, template, .. } = checkpoint.text()?;
        let model = ModelInfo {
            id: id.unwrap_or_else(|| checkpoint.name().to_owned()),
            context,
            kv_tokens: kv_tokens.and_then(|tokens| usize::try_from(tokens).ok()),
            vocab_size: config.vocab_size,
            stop_ids: checkpoint.special_ids().stop.clone(),
            layers: config.n_layers,
            experts: config.n_experts,
            experts_per_token: EXPERTS_PER_TOKEN,
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
        };
        let (control, open) = (Mutex::new(control), Arc::default());
        Ok(Self { address, model, control, open, most })
    }

    /// A field of the answer to a question.
    fn ask(&self, kind: &str, field: &str) -> Option<Value> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match control.ask(message(kind), None) {
            // The connection has ended, or was not to be had: there may be somebody again.
            Err(IpcError::Gone(_)) => {
                *control = Client::connect(&self.address, PROMPT).ok()?;
                control.ask(message(kind), None)
            }
            reply => reply,
        };
        reply.ok()?.fields.remove(field)
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
        let EngineLoad { running, waiting } = self.most;
        if self.open.fetch_add(1, Ordering::Relaxed) >= running + waiting {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(RuntimeError::QueueFull { waiting, running });
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let place = Place(Arc::clone(&self.open));
        let (address, cancel) = (self.address.clone(), Cancel(Arc::clone(&cancelled)));
        let spawned = std::thread::Builder::new().name("tandem-remote".into()).spawn(move || {
            text::write(&address, prompt, request, listener, &cancelled);
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
        self.ask("health_check", "status").is_some()
    }

    fn telemetry(&self) -> Option<Value> {
        self.ask("get_telemetry", "telemetry")
    }

    fn rates(&self) -> Rates {
        let stats = self.ask("get_bandwidth_stats", "bandwidth_stats").unwrap_or_default();
        let gbps = |field: &str| stats[field].as_f64();
        let (cpu, igpu) = (gbps("cpu_bandwidth_gbps"), gbps("igpu_bandwidth_gbps"));
        let total = cpu.zip(igpu).map(|(cpu, igpu)| cpu + igpu);
        Rates { cpu_gbps: cpu, igpu_gbps: igpu, total_gbps: total, ..Rates::default() }
    }

    fn state(&self) -> EngineState {
        let stats = self.ask("get_bandwidth_stats", "bandwidth_stats").unwrap_or_default();
        let utilization = stats["utilization"].as_f64();
        let bandwidth =
            BandwidthState { source: Some("operations"), utilization, ..BandwidthState::default() };
        EngineState { bandwidth, ..EngineState::default() }
    }

    fn trace(&self) -> Option<Vec<u8>> {
        None
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

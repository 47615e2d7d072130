//! An engine in this process.

use std::sync::Arc;

use serde_json::Value;
use tandem_model::chat::ChatTemplate;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{Engine, EngineLoad, EngineState, Rates, Request, Result};

use crate::backend::{Backend, Listener, ModelInfo, Ticket};

/// An engine in this process.
pub struct Local {
    engine: Arc<Engine>,
    model: ModelInfo,
}

impl Local {
    /// Of a model by the name of `id`, whose texts end with `stop_ids`.
    pub fn new(
        engine: Arc<Engine>,
        id: String,
        stop_ids: Vec<u32>,
        tokenizer: Arc<Tokenizer>,
        template: Option<Arc<ChatTemplate>>,
    ) -> Self {
        let config = engine.config();
        let model = ModelInfo {
            id,
            context: engine.context(),
            kv_tokens: Some(engine.kv_pool().tokens()),
            vocab_size: config.vocab_size,
            stop_ids,
            layers: config.n_layers,
            experts: config.n_experts,
            experts_per_token: EXPERTS_PER_TOKEN,
            tokenizer,
            template,
        };
        Self { engine, model }
    }
}

impl Backend for Local {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn submit(&self, prompt: Vec<u32>, request: Request, listener: Listener) -> Result<Ticket> {
        let cancel = self.engine.submit_to(prompt, request, listener)?;
        Ok(Box::new(cancel))
    }

    fn load(&self) -> EngineLoad {
        self.engine.load()
    }

    fn capacity(&self) -> EngineLoad {
        let options = self.engine.options();
        EngineLoad { running: options.max_sequences, waiting: options.max_waiting }
    }

    fn is_ready(&self) -> bool {
        self.engine.is_running()
    }

    fn telemetry(&self) -> Option<Value> {
        serde_json::to_value(self.engine.client_telemetry()?).ok()
    }

    fn rates(&self) -> Rates {
        self.engine.rates()
    }

    fn state(&self) -> EngineState {
        self.engine.state()
    }

    fn trace(&self) -> Option<Vec<u8>> {
        self.engine.trace()
    }
}

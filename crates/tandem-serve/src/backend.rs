//! What the server answers with: an engine in this process, or one somewhere else.

use std::sync::Arc;

use serde_json::Value;
use tandem_model::chat::ChatTemplate;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{EngineLoad, EngineState, Event, Rates, Request, Result};

/// Who hears of a text's events. It is dropped after the last one.
pub type Listener = Box<dyn FnMut(Event) + Send>;

/// A text that was asked for. When it is dropped, the text ends.
pub type Ticket = Box<dyn Send>;

/// The model behind a server.
pub struct ModelInfo {
    /// Its name, as clients call it; never a path.
    pub id: String,
    /// Tokens that one text may have.
    pub context: usize,
    /// Tokens that all texts together have room for in the KV cache, where that is known.
    pub kv_tokens: Option<usize>,
    /// Rows of logits.
    pub vocab_size: usize,
    /// Ids that end a text.
    pub stop_ids: Vec<u32>,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token uses.
    pub experts_per_token: usize,
    /// From text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// From a conversation to text, where the model has such a template.
    pub template: Option<Arc<ChatTemplate>>,
}

/// What reads and writes texts, several at a time.
pub trait Backend: Send + Sync + 'static {
    /// Its model.
    fn model(&self) -> &ModelInfo;

    /// Has `prompt` continued; returns at once, and tells `listener` what comes of it.
    ///
    /// # Errors
    /// Where that cannot be asked for, or too many texts wait.
    fn submit(&self, prompt: Vec<u32>, request: Request, listener: Listener) -> Result<Ticket>;

    /// How busy it is.
    fn load(&self) -> EngineLoad;

    /// Texts that may be read or written at a time, and that may wait.
    fn capacity(&self) -> EngineLoad;

    /// Whether texts can be asked for now. May take a while.
    fn is_ready(&self) -> bool;

    /// The figures that clients of the scheduler read, as JSON. May take a while.
    fn telemetry(&self) -> Option<Value>;

    /// How fast it goes. Asked for twice a second.
    fn rates(&self) -> Rates;

    /// What the dashboard shows of it. May take a while.
    fn state(&self) -> EngineState;

    /// The recent past as a trace for Perfetto, in JSON; `None` where none is recorded. May take a while.
    fn trace(&self) -> Option<Vec<u8>>;
}

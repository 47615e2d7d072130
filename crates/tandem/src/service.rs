//! From options to an engine that serves several texts at a time, watched and steered: what the ZeroMQ service, the HTTP
//! server and in-process callers have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tandem_model::chat::{ChatTemplate, Message};
use tandem_model::tokenizer::Tokenizer;
use tandem_model::{PhimoeConfig, Text};
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::{Engine, EngineOptions, EngineSetup, Request};

use crate::options::{
    ComputeOptions, ModelOption, PlacementOptions, TelemetryOptions, at_least_one,
};
use crate::placement::Placing;
use crate::{engine, threads, watch};

/// What a service is started with.
#[derive(Args, Clone)]
pub(crate) struct ServiceOptions {
    #[command(flatten)]
    pub(crate) model: ModelOption,

    #[command(flatten)]
    pub(crate) compute: ComputeOptions,

    #[command(flatten)]
    pub(crate) place: PlacementOptions,

    /// Texts that are read and written at a time
    #[arg(long, value_name = "N", env = "TANDEM_MAX_SEQUENCES", default_value_t = 8,
          value_parser = at_least_one)]
    pub(crate) max_sequences: usize,

    /// Texts that wait for their turn; more are refused
    #[arg(long, value_name = "N", env = "TANDEM_MAX_WAITING", default_value_t = 64)]
    pub(crate) max_waiting: usize,

    /// Tokens of prompts that go through the model together with the next tokens of texts: more reads prompts faster, and
    /// makes others wait longer between two of their tokens
    #[arg(long, value_name = "TOKENS", env = "TANDEM_PREFILL_CHUNK", default_value_t = 64,
          value_parser = at_least_one)]
    pub(crate) prefill_chunk: usize,

    /// Tokens that all texts together have room for in the KV cache, those that ended and are kept for texts that begin
    /// alike included; without it as many as --max-sequences of the longest texts take, but not above 4 GiB or one such text
    #[arg(long, value_name = "TOKENS", env = "TANDEM_KV_TOKENS", value_parser = at_least_one)]
    pub(crate) kv_tokens: Option<usize>,

    /// What decides where steps are computed while texts are written: static, bandwidth_aware or adaptive
    #[arg(long, value_name = "POLICY", env = "TANDEM_POLICY")]
    pub(crate) policy: Option<PolicyKind>,

    #[command(flatten)]
    pub(crate) telemetry: TelemetryOptions,
}

/// A running engine, with what is needed to talk to it.
pub(crate) struct Service {
    /// Reads and writes texts. Shared by all who serve.
    pub(crate) engine: Arc<Engine>,
    /// Turns text into ids and back.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// How conversations are written; none where the model has no template.
    pub(crate) template: Option<Arc<ChatTemplate>>,
    /// The model.
    pub(crate) model: ServedModel,
    /// One line: what runs where, and why.
    pub(crate) description: String,
    /// From start to ready.
    pub(crate) load_time: Duration,
}

/// What is said of the model that is served.
#[derive(Clone, Debug)]
pub(crate) struct ServedModel {
    /// Its name.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its dimensions.
    pub(crate) config: PhimoeConfig,
    /// Bytes of its weights.
    pub(crate) bytes: u64,
    /// Ids that end a text.
    pub(crate) stop_ids: Vec<u32>,
    /// Tokens that prompt and answer may have together.
    pub(crate) context: usize,
}

impl Service {
    /// Finds, checks and loads the model, and starts the engine.
    pub(crate) fn start(options: &ServiceOptions) -> anyhow::Result<Self> {
        let started = Instant::now();
        let ServiceOptions { compute, .. } = options;
        let checkpoint = engine::open(options.model.model.as_deref(), compute)?;
        let Text { tokenizer, template, .. } = checkpoint.text()?;
        let (tokenizer, template) = (Arc::new(tokenizer), template.map(Arc::new));
        let mut placing = Placing::new(&checkpoint, compute, &options.place)?;
        let executor = engine::executor(&checkpoint, compute, &mut placing)?;
        let context = engine::context(checkpoint.config().context_length, compute)?;
        let description = engine::describe(&checkpoint, &executor, &placing);
        let instrumentation = watch::service(&options.telemetry, &executor, &placing)?;
        let setup = EngineSetup {
            instrumentation: Some(instrumentation),
            partition: Some(placing.partition().clone()),
            choices: placing.choices().cloned(),
            policy: options.policy.unwrap_or(placing.partition().scheduling().policy),
            cpu_name: Some(threads::cpu_name()),
        };
        let engine_options = EngineOptions {
            max_sequences: options.max_sequences,
            max_waiting: options.max_waiting,
            prefill_chunk: options.prefill_chunk,
            context,
            kv_tokens: options.kv_tokens,
            kv_type: compute.kv_type.into(),
        };
        let engine = Engine::start_with(executor, Arc::clone(&tokenizer), engine_options, setup)?;
        // Fewer tokens where all pages together hold no more.
        let context = engine.context();
        let model = ServedModel {
            name: checkpoint.name().to_owned(),
            path: checkpoint.path().to_owned(),
            config: checkpoint.config().clone(),
            bytes: checkpoint.summary().total().bytes,
            stop_ids: checkpoint.special_ids().stop.clone(),
            context,
        };
        let load_time = started.elapsed();
        Ok(Self { engine: Arc::new(engine), tokenizer, template, model, description, load_time })
    }

    /// The ids of a conversation that the model is to continue with its answer.
    pub(crate) fn conversation(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let template = self.template.as_ref().with_context(|| {
            format!("{}: this model has no chat template", self.model.path.display())
        })?;
        Ok(self.tokenizer.encode(&template.render(messages, true)?)?)
    }

    /// A request that also ends where the model ends its texts.
    pub(crate) fn with_stop_ids(&self, mut request: Request) -> Request {
        request.stop_ids.extend(&self.model.stop_ids);
        request
    }
}

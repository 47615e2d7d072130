//! A server in a thread, and sockets to talk to it.

use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem_golden::stories_bf16;
use tandem_ipc::Address;
use tandem_ipc::protocol::TextSide;
use tandem_ipc::server::{ModelInfo, Server, ServerOptions, Service, Stopper};
use tandem_memory::KvType;
use tandem_model::{Checkpoint, Text};
use tandem_runtime::telemetry::TelemetryParams;
use tandem_runtime::{
    Engine, EngineOptions, EngineSetup, Executor, Instrumentation, InstrumentationParams, Model,
    Threads,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 4,
    max_waiting: 64,
    prefill_chunk: 16,
    context: 480,
    kv_tokens: None,
    kv_type: KvType::F32,
};

/// A running server. It ends when this is dropped.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) engine: Arc<Engine>,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// On any free port.
    pub(crate) fn start() -> Self {
        Self::with(OPTIONS)
    }

    pub(crate) fn with(options: EngineOptions) -> Self {
        let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
        let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
        let executor = Executor::new(model, 2, 64).unwrap();
        Self::serve(&checkpoint, executor, options, "tcp://127.0.0.1:0", None)
    }

    pub(crate) fn serve(
        checkpoint: &Checkpoint,
        executor: Executor,
        options: EngineOptions,
        address: &str,
        config_file: Option<std::path::PathBuf>,
    ) -> Self {
        let Text { tokenizer, template, .. } = checkpoint.text().unwrap();
        let tokenizer = Arc::new(tokenizer);
        let config = checkpoint.config();
        let params = TelemetryParams::new(config.n_layers, config.n_experts);
        let telemetry = Some(TelemetryParams { recent: 1 << 12, ..params });
        let params = InstrumentationParams { telemetry, ..InstrumentationParams::default() };
        let instrumentation = Instrumentation::start(params).unwrap();
        let setup =
            EngineSetup { instrumentation: Some(instrumentation), ..EngineSetup::default() };
        let engine =
            Arc::new(Engine::start_with(executor, Arc::clone(&tokenizer), options, setup).unwrap());
        let service = Service {
            engine: Arc::clone(&engine),
            text: TextSide::new(
                tokenizer,
                template.map(Arc::new),
                config.vocab_size,
                checkpoint.special_ids().stop.clone(),
            ),
            model: ModelInfo {
                name: "stories".to_owned(),
                config: checkpoint.config().clone(),
                context: options.context,
                names: vec!["stories".to_owned()],
            },
            config_file,
        };
        let address: Address = address.parse().unwrap();
        let server =
            Server::bind(&ServerOptions { address, allow_remote: false }, service).unwrap();
        let (address, stopper) = (server.address().to_owned(), server.stopper());
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { address, engine, stopper, thread: Some(thread) }
    }

    pub(crate) fn stop(&mut self) {
        self.stopper.stop();
        self.join();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn req(&self) -> Peer {
        Peer::connect(&self.address, zmq::REQ)
    }

    pub(crate) fn dealer(&self) -> Peer {
        Peer::connect(&self.address, zmq::DEALER)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Threads that a test's executor has.
pub(crate) fn two() -> Threads {
    Threads::same(2)
}

/// A socket. What goes over it is held against the schemas.
pub(crate) struct Peer {
    pub(crate) socket: zmq::Socket,
    _context: zmq::Context,
}

impl Peer {
    pub(crate) fn connect(address: &str, kind: zmq::SocketType) -> Self {
        Self::with(address, kind, |_| {})
    }

    pub(crate) fn with(
        address: &str,
        kind: zmq::SocketType,
        set: impl FnOnce(&zmq::Socket),
    ) -> Self {
        let context = zmq::Context::new();
        let socket = context.socket(kind).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        set(&socket);
        socket.connect(address).unwrap();
        Self { socket, _context: context }
    }

    /// Sends a message that is as the schema has it.
    pub(crate) fn send(&self, message: &Value) {
        check("request", message);
        self.send_raw(&[message.to_string().as_bytes()]);
    }

    pub(crate) fn send_raw(&self, frames: &[&[u8]]) {
        self.socket.send_multipart(frames, 0).unwrap();
    }

    pub(crate) fn send_with(&self, message: &Value, tensor: &[u8]) {
        check("request", message);
        self.send_raw(&[message.to_string().as_bytes(), tensor]);
    }

    /// The next answer, with its tensor.
    pub(crate) fn receive(&self) -> (Value, Option<Vec<u8>>) {
        let mut frames = self.socket.recv_multipart(0).expect("an answer").into_iter();
        let answer: Value = serde_json::from_slice(&frames.next().unwrap()).unwrap();
        check("answer", &answer);
        let tensor = frames.next();
        assert!(frames.next().is_none(), "too many frames: {answer}");
        (answer, tensor)
    }

    pub(crate) fn answer(&self) -> Value {
        let (answer, tensor) = self.receive();
        assert!(tensor.is_none(), "a tensor with {answer}");
        answer
    }

    pub(crate) fn ask(&self, message: &Value) -> Value {
        self.send(message);
        self.answer()
    }

    /// Sends what may be anything; answers the error.
    pub(crate) fn error(&self, frames: &[&[u8]]) -> String {
        self.send_raw(frames);
        let answer = self.answer();
        assert_eq!(answer["status"], "error", "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Reads a stream to its end; answers ids and text of it, and the summary.
    pub(crate) fn stream(&self, id: &Value) -> (Vec<u32>, String, Value) {
        let (mut ids, mut text) = (Vec::new(), String::new());
        loop {
            let answer = self.answer();
            assert_eq!(answer["id"], *id, "{answer}");
            assert_eq!(answer["status"], "success", "{answer}");
            match answer["event"].as_str().unwrap() {
                "begun" => assert!(ids.is_empty()),
                "tokens" => {
                    ids.extend(ids_of(&answer["ids"]));
                    text += answer["text"].as_str().unwrap();
                }
                _ => return (ids, text, answer["result"].clone()),
            }
        }
    }
}

pub(crate) fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A greedy text of so many tokens.
pub(crate) fn greedy(id: impl Into<Value>, ids: &[u32], max_tokens: usize, stream: bool) -> Value {
    json!({
        "type": "generate", "id": id.into(), "ids": ids, "continues_prompt": true, "max_tokens": max_tokens,
        "sampling": {"temperature": 0.0}, "stop_ids": [], "stream": stream,
    })
}

/// Holds a message against the schemas of `docs/`.
pub(crate) fn check(kind: &str, message: &Value) {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let path = tandem_testkit::workspace_root().join("docs/protocol.schema.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    });
    static VALIDATORS: LazyLock<[jsonschema::Validator; 2]> = LazyLock::new(|| {
        ["request", "answer"].map(|kind| {
            let mut schema = SCHEMA.clone();
            schema["anyOf"] = json!([{"$ref": format!("#/$defs/{kind}")}]);
            jsonschema::validator_for(&schema).unwrap()
        })
    });
    let validator = &VALIDATORS[usize::from(kind == "answer")];
    if let Err(error) = validator.validate(message) {
        panic!("{kind} {message}: {error}");
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

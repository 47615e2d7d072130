//! A server in this process, and ways to talk to it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem_memory::KvType;
use tandem_model::{Checkpoint, Text};
use tandem_runtime::telemetry::TelemetryParams;
use tandem_runtime::{
    Engine, EngineOptions, EngineSetup, Executor, Instrumentation, InstrumentationParams, Model,
};
use tandem_serve::{Limits, Local, Server, ServerOptions};
use tokio::sync::oneshot;

/// The model's name.
pub(crate) const MODEL: &str = "stories";

/// A server that runs until it is dropped.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Arc<Engine>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    stopped: Receiver<()>,
}

/// How much a test's engine takes on.
pub(crate) const ENGINE: EngineOptions = EngineOptions {
    max_sequences: 4,
    max_waiting: 32,
    prefill_chunk: 64,
    context: 512,
    kv_tokens: None,
    kv_type: KvType::F16,
};

impl TestServer {
    /// A server with the usual limits.
    pub(crate) fn start() -> Self {
        Self::start_with(ServerOptions::default(), ENGINE)
    }

    /// A server with some limits changed.
    pub(crate) fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        let mut options = ServerOptions::default();
        change(&mut options.limits);
        Self::start_with(options, ENGINE)
    }

    pub(crate) fn start_with(options: ServerOptions, engine: EngineOptions) -> Self {
        let model =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories/stories-17m.gguf");
        let checkpoint = Checkpoint::open(&model).unwrap();
        let Text { tokenizer, template, .. } = checkpoint.text().unwrap();
        let tokenizer = Arc::new(tokenizer);
        let weights = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
        let executor = Executor::new(weights, 2, 256).unwrap();
        let config = checkpoint.config();
        let telemetry = TelemetryParams::new(config.n_layers, config.n_experts);
        let telemetry = Some(TelemetryParams { recent: 1 << 12, ..telemetry });
        let params = InstrumentationParams { telemetry, ..InstrumentationParams::default() };
        let instrumentation = Some(Instrumentation::start(params).unwrap());
        let setup = EngineSetup { instrumentation, ..EngineSetup::default() };
        let engine = Engine::start_with(executor, Arc::clone(&tokenizer), engine, setup).unwrap();
        let engine = Arc::new(engine);
        let stop_ids = checkpoint.special_ids().stop.clone();
        let template = template.map(Arc::new);
        let backend =
            Local::new(Arc::clone(&engine), MODEL.to_owned(), stop_ids, tokenizer, template);
        let options = ServerOptions { port: 0, ..options };
        let (stop, stopping) = oneshot::channel();
        let (sender, receiver) = channel();
        let (ended, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(options, Arc::new(backend)).await.unwrap();
                sender.send(server.address()).unwrap();
                let stop = async {
                    let _ = stopping.await;
                };
                server.run(stop).await;
            });
            runtime.shutdown_background();
            let _ = ended.send(());
        });
        let address = receiver.recv().unwrap();
        Self { address, engine, stop: Some(stop), thread: Some(thread), stopped }
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }

    /// Whether it stops within so long.
    pub(crate) fn stops_within(&self, time: Duration) -> bool {
        self.stopped.recv_timeout(time).is_ok()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    /// Sends a request with the headers of a JSON body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw(&post(path, &body.to_string()))
    }

    /// Sends text as it is and reads to the end.
    pub(crate) fn raw(&self, request: &str) -> Reply {
        let mut stream = self.connect();
        // A server that has heard enough may close before it was sent all.
        let _ = stream.write_all(request.as_bytes());
        read_reply(&mut stream)
    }

    /// Makes sure that the server answers others.
    pub(crate) fn assert_answers(&self) {
        self.assert_answers_with("none");
    }

    /// As [`Self::assert_answers`], with a key.
    pub(crate) fn assert_answers_with(&self, key: &str) {
        let body = json!({"prompt": "Once", "max_tokens": 2}).to_string();
        let key = format!("Authorization: Bearer {key}\r\n\r\n");
        let reply = self.raw(&post("/v1/completions", &body).replacen(
            "\r\n\r\n",
            &format!("\r\n{key}"),
            1,
        ));
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// Waits until so many texts are read or written.
    pub(crate) fn wait_for_running(&self, texts: usize) {
        let begun = Instant::now();
        while self.engine.load().running != texts || self.engine.load().waiting > 0 {
            let load = self.engine.load();
            assert!(begun.elapsed() < Duration::from_secs(60), "{load:?}, expected {texts}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
        // A test that has failed must not wait for what never ends.
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            thread.join().unwrap();
        }
    }
}

/// What a server said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The code of an error.
    pub(crate) fn code(&self) -> Value {
        self.json()["error"]["code"].clone()
    }
}

/// A request with a JSON body.
pub(crate) fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads to the end of the connection. Where there is nothing, the status is 0.
pub(crate) fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // A server that has refused a body may close before it was sent whole.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Reply { status, head: head.to_owned(), body }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

/// Reads until `text` has come.
pub(crate) fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    let mut some = [0; 1024];
    while !String::from_utf8_lossy(&bytes).contains(text) {
        let count = stream.read(&mut some).unwrap();
        assert!(count > 0, "no {text:?} in {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&some[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A request for a text that does not end by itself: no token may end it.
pub(crate) fn endless(stream: bool) -> Value {
    let bias = json!({"0": -100, "3": -100});
    json!({"prompt": "Once upon a time", "max_tokens": 450, "stream": stream, "logit_bias": bias})
}

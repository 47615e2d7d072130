//! The HTTP server in front of a scheduler (`serve --connect`), and both doors of one engine (`serve --zmq`): real processes,
//! asked over HTTP and ZeroMQ.

mod gone;
mod same;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_ipc::Address;
use tandem_ipc::client::{Client, Timeouts};

use crate::{Running, Server, tandem};

/// A scheduler that is ready.
struct Scheduler {
    process: Running,
    address: String,
}

impl Scheduler {
    fn start(arguments: &[&str]) -> Self {
        Self::at("tcp://127.0.0.1:0", arguments)
    }

    fn at(address: &str, arguments: &[&str]) -> Self {
        let mut command = tandem();
        command.args(["scheduler", "--bind", address, "--threads", "1"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Running(child);
        let ready = lines.find_map(|line| Some(line.unwrap().strip_prefix("ready: ")?.to_owned()));
        Self { process, address: ready.expect("it ended before it was ready") }
    }

    /// An HTTP server in front of it.
    fn served(&self, arguments: &[&str]) -> Server {
        Server::start(&[&["--connect", &self.address], arguments].concat())
    }

    fn client(&self) -> Client {
        client(&self.address)
    }
}

fn client(address: &str) -> Client {
    let wait = Duration::from_secs(60);
    Client::connect(&address.parse::<Address>().unwrap(), Timeouts { answer: wait, quiet: wait })
        .unwrap()
}

/// An address in a folder.
fn socket_in(folder: &Path) -> String {
    format!("ipc://{}", folder.join("socket").display())
}

/// The status of an answer, and its body.
fn post(url: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, mut response) = send(url, path, body);
    let body = response.body_mut().read_to_string().unwrap();
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn send(url: &str, path: &str, body: &Value) -> (u16, ureq::http::Response<ureq::Body>) {
    let response = ureq::post(format!("{url}{path}"))
        .config()
        .http_status_as_error(false)
        .build()
        .header("Content-Type", "application/json")
        .send(body.to_string())
        .unwrap();
    (response.status().as_u16(), response)
}

/// The events of a stream as they come, `[DONE]` as null.
fn stream(url: &str, path: &str, body: &Value) -> impl Iterator<Item = Value> + use<> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let (status, response) = send(url, path, &body);
    assert_eq!(status, 200, "{body}");
    let lines = BufReader::new(response.into_body().into_reader()).lines();
    lines.map_while(Result::ok).filter_map(|line| {
        let data = line.strip_prefix("data: ")?;
        Some(serde_json::from_str(data).unwrap_or(Value::Null))
    })
}

/// A greedy completion.
fn completion(prompt: &str, max_tokens: usize) -> Value {
    json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
}

/// A greedy answer to a question.
fn chat(question: &str, max_tokens: usize) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens, "temperature": 0})
}

//! The scheduler as a process, with clients that are processes too: `pyzmq` scripts, the Python package, `tandem generate`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_golden::{Prompt, stories, stories_bf16, stories_endless};
use tandem_testkit::{client_python, workspace_root};

use crate::{error_line, stderr, stdout, tandem};

const PATIENCE: Duration = Duration::from_secs(120);

/// A scheduler that is ready. It is killed when this is dropped.
struct Scheduler {
    child: Child,
    address: String,
    said: String,
    _out: BufReader<ChildStdout>,
    notes: Option<ChildStderr>,
}

impl Scheduler {
    fn start(arguments: &[&str]) -> Self {
        Self::at("tcp://127.0.0.1:0", arguments)
    }

    fn at(address: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TANDEM_")) {
            command.env_remove(name);
        }
        command.args(["scheduler", "--bind", address, "--threads", "2"]).args(arguments);
        if !arguments.contains(&"--model") {
            command.arg("--model").arg(stories_bf16());
        }
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let notes = child.stderr.take();
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let read = out.read_line(&mut line).unwrap();
            said += &line;
            assert!(read > 0, "it ended before it was ready: {said}");
            if let Some(address) = line.trim().strip_prefix("ready: ") {
                break address.to_owned();
            }
        };
        Self { child, address, said, _out: out, notes }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Its exit code and what it noted, when it has ended by itself.
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut notes = String::new();
        self.notes.take().unwrap().read_to_string(&mut notes).unwrap();
        (status.code(), notes)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script of `python/tests` with the package; answers what it printed.
fn script(name: &str, arguments: &[&str]) -> String {
    let python = workspace_root().join("python");
    let output = Command::new(client_python())
        .arg(python.join("tests").join(name))
        .args(arguments)
        .env("PYTHONPATH", &python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TANDEM_PROGRAM", env!("CARGO_BIN_EXE_tandem"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} failed:\n{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Holds what a script has sent and received against the schemas: lines of JSON with `request` or `answer`.
fn check_schemas(lines: &str) -> usize {
    let path = workspace_root().join("docs/protocol.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = |kind: &str| {
        let mut schema = schema.clone();
        schema["anyOf"] = serde_json::json!([{"$ref": format!("#/$defs/{kind}")}]);
        jsonschema::validator_for(&schema).unwrap()
    };
    let validators = [("request", validator("request")), ("answer", validator("answer"))];
    let mut checked = 0;
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).unwrap();
        for (kind, validator) in &validators {
            if let Some(message) = line.get(kind) {
                let result = validator.validate(message);
                assert!(result.is_ok(), "{kind} {message}: {}", result.unwrap_err());
                checked += 1;
            }
        }
    }
    checked
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn story() -> Prompt {
    stories().swap_remove(0)
}

/// A text of so many greedy tokens, as `tandem generate` writes it by itself.
fn undisturbed(model: &str, tokens: usize) -> Value {
    let output = tandem()
        .args(["generate", "Once upon a time", "--raw", "--temp", "0", "--json", "--threads", "2"])
        .args(["--model", model, "-n", &tokens.to_string(), "--placement", "cpu"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn it_says_what_it_computes_with_and_ends_cleanly() {
    for signal in ["TERM", "INT"] {
        let scheduler = Scheduler::start(&[]);
        assert!(scheduler.said.contains("cpu: "), "{}", scheduler.said);
        assert!(scheduler.said.contains("threads"), "{}", scheduler.said);
        scheduler.signal(signal);
        let (code, notes) = scheduler.end();
        assert_eq!((code, notes.trim()), (Some(0), "the scheduler has ended"));
    }
}

#[test]
fn a_taken_port_and_an_open_address_are_refused() {
    let scheduler = Scheduler::start(&[]);
    let line = error_line(tandem().args(["scheduler", "--bind", &scheduler.address]));
    assert!(line.contains("is in use") && line.contains("--bind tcp://127.0.0.1:"), "{line}");
    let line = error_line(tandem().args(["scheduler", "--bind", "tcp://0.0.0.0:0"]));
    assert!(line.contains("can be reached from other machines"), "{line}");
    let open = Scheduler::at("tcp://0.0.0.0:0", &["--allow-remote"]);
    open.signal("TERM");
    let (code, notes) = open.end();
    assert_eq!(code, Some(0));
    assert!(notes.contains("neither keys nor passwords protect it"), "{notes}");
}

#[test]
fn pyzmq_drives_every_message() {
    let story = story();
    let prompt = serde_json::json!({"ids": story.ids, "greedy": story.greedy}).to_string();
    for kind in ["REQ", "DEALER"] {
        let scheduler = Scheduler::start(&[]);
        let lines = script("every_message.py", &[&scheduler.address, kind, &prompt]);
        let checked = check_schemas(&lines);
        assert!(checked > 40, "{checked} messages");
        // Its last message was `shutdown`.
        assert_eq!(scheduler.end().0, Some(0));
    }
}

#[test]
fn the_python_package_does_what_it_says() {
    let story = story();
    let prompt = serde_json::json!({"ids": story.ids, "greedy": story.greedy}).to_string();
    let model = stories_bf16();
    let scheduler = Scheduler::start(&[]);
    script("package.py", &[&scheduler.address, model.to_str().unwrap(), &prompt]);
    // Its last message was `shutdown`.
    assert_eq!(scheduler.end().0, Some(0));
}

#[test]
fn the_python_orchestrator_goes_on_without_its_scheduler() {
    let model = stories_endless();
    let model = model.to_str().unwrap();
    let expected = undisturbed(model, 150);
    let scheduler = Scheduler::start(&["--model", model]);
    let process = scheduler.child.id().to_string();
    let expected =
        serde_json::json!({"ids": expected["ids"], "text": expected["text"]}).to_string();
    script("fallback.py", &[&scheduler.address, model, &process, &expected]);
}

#[test]
fn the_python_package_can_be_installed() {
    let folder = tandem_testkit::scratch("python-package");
    // pip builds in the source tree.
    let source = folder.path().join("source");
    let copied =
        Command::new("cp").arg("-r").arg(workspace_root().join("python")).arg(&source).status();
    assert!(copied.unwrap().success());
    let target = folder.path().join("installed");
    let output = Command::new(client_python())
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--no-build-isolation", "--target"])
        .arg(&target)
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let imported = Command::new(client_python())
        .args(["-c", "import tandem_client; print(tandem_client.__file__)"])
        .env("PYTHONPATH", &target)
        .output()
        .unwrap();
    assert!(stdout(&imported).starts_with(target.to_str().unwrap()), "{}", stderr(&imported));
    assert!(target.join("tandem_client/py.typed").is_file());
}

fn generate(model: &str, address: &str, tokens: usize) -> Command {
    generate_within("0", model, address, tokens)
}

/// As [`generate`], looking for a scheduler that has gone for so many seconds.
fn generate_within(reconnect: &str, model: &str, address: &str, tokens: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command
        .args([
            "generate",
            "Once upon a time",
            "--raw",
            "--temp",
            "0",
            "--threads",
            "2",
            "--reconnect",
            reconnect,
        ])
        .args(["--model", model, "-n", &tokens.to_string(), "--connect", address])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn generate_has_the_scheduler_write() {
    let model = stories_bf16();
    let model = model.to_str().unwrap();
    let scheduler = Scheduler::start(&["--model", model]);
    let expected = undisturbed(model, 40);
    let output = generate(model, &scheduler.address, 40).arg("--json").output().unwrap();
    assert_eq!(stderr(&output), "");
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&got["ids"], &got["text"]), (&expected["ids"], &expected["text"]));
    assert_eq!(got["written_by"], serde_json::json!(["scheduler"]));
    // Stop strings are looked for here.
    let text = expected["text"].as_str().unwrap();
    let stop = text.trim().split(' ').nth(5).unwrap();
    let output = generate(model, &scheduler.address, 40).args(["--stop", stop]).output().unwrap();
    assert_eq!(stdout(&output).trim_end(), text.split_once(stop).unwrap().0.trim_end());
    // Another model is no place to have ids of this one continued.
    let random = crate::random_model();
    let other = Scheduler::start(&[]);
    drop(other);
    let line = error_line(tandem().args([
        "generate",
        "x",
        "--connect",
        &scheduler.address,
        "--model",
        random.to_str().unwrap(),
        "--raw",
    ]));
    assert!(line.contains("tokenizer") || line.contains("another model"), "{line}");
}

#[test]
fn generate_writes_by_itself_where_there_is_no_scheduler() {
    let model = stories_bf16();
    let model = model.to_str().unwrap();
    let output = generate(model, "tcp://127.0.0.1:9", 20).arg("--json").output().unwrap();
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(got["ids"], undisturbed(model, 20)["ids"]);
    assert_eq!(got["written_by"], serde_json::json!(["this process"]));
    let notes = stderr(&output);
    assert_eq!(
        notes.trim(),
        "there is no scheduler at tcp://127.0.0.1:9: writing here, on the CPU"
    );
}

#[test]
fn generate_keeps_to_a_form_wherever_it_is_written() {
    let folder = tandem_testkit::scratch("form");
    let file = folder.path().join("wanted.json");
    let wanted = serde_json::json!({
        "type": "generate", "prompt": "Once", "sampling": {"temperature": 0},
        "constraint": {"json_schema": {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 2, "maxItems": 4}},
    });
    std::fs::write(&file, wanted.to_string()).unwrap();
    let model = stories_bf16();
    let scheduler = Scheduler::start(&[]);
    let mut texts = Vec::new();
    for address in [&*scheduler.address, "tcp://127.0.0.1:9"] {
        let mut command = tandem();
        command
            .args(["generate", "--json", "--threads", "2", "--reconnect", "0", "--request"])
            .arg(&file);
        let output = command.args(["--connect", address, "--model"]).arg(&model).output().unwrap();
        let got: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(got["finish_reason"], "stop", "{got}");
        let pets: Vec<String> = serde_json::from_str(got["text"].as_str().unwrap()).unwrap();
        assert!(
            (2..=4).contains(&pets.len()) && pets.iter().all(|pet| pet == "cat" || pet == "dog")
        );
        texts.push(got["text"].clone());
    }
    assert_eq!(texts[0], texts[1]);
    let likely = serde_json::json!({"type": "generate", "prompt": "Once", "logprobs": 1});
    std::fs::write(&file, likely.to_string()).unwrap();
    let line =
        error_line(tandem().args(["generate", "--request"]).arg(&file).arg("--model").arg(&model));
    assert!(line.contains("logprobs: the program prints none"), "{line}");
}

#[test]
fn generate_goes_on_when_the_scheduler_is_killed() {
    let model = stories_endless();
    let model = model.to_str().unwrap();
    let tokens = 200;
    let expected = undisturbed(model, tokens);
    let scheduler = Scheduler::start(&["--model", model]);
    let mut child = generate(model, &scheduler.address, tokens).arg("--events").spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut got, mut by_scheduler, mut text) = (Vec::new(), 0, String::new());
    let mut result = Value::Null;
    while let Some(line) = out.next().map(Result::unwrap) {
        let event: Value = serde_json::from_str(&line).unwrap();
        match event["event"].as_str().unwrap() {
            "tokens" => {
                got.extend(ids(&event["ids"]));
                text += event["text"].as_str().unwrap();
                if got.len() > 10 && by_scheduler == 0 {
                    by_scheduler = got.len();
                    scheduler.signal("KILL");
                }
            }
            "finished" => result = event["result"].clone(),
            _ => {}
        }
    }
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
    assert!(child.wait().unwrap().success(), "{notes}");
    assert_eq!(got, ids(&expected["ids"]));
    assert_eq!(text, expected["text"].as_str().unwrap());
    assert_eq!(result["written_by"], serde_json::json!(["scheduler", "this process"]));
    assert!((1..tokens).contains(&by_scheduler), "{by_scheduler}");
    // Said once, in one line.
    assert_eq!(notes.lines().count(), 1, "{notes}");
    assert!(notes.contains("going on here, on the CPU"), "{notes}");
}

#[test]
fn generate_finds_a_scheduler_that_comes_back() {
    let folder = tandem_testkit::scratch("comes-back");
    let address = format!("ipc://{}", folder.path().join("socket").display());
    let model = stories_endless();
    let model = model.to_str().unwrap();
    let tokens = 400;
    let first = Scheduler::at(&address, &["--model", model]);
    let mut child = generate_within("60", model, &address, tokens).arg("--events").spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    // Begun, and some tokens.
    (0..6).for_each(|_| drop(out.next().unwrap().unwrap()));
    first.signal("KILL");
    drop(first);
    let second = Scheduler::at(&address, &["--model", model]);
    let last = out.map(Result::unwrap).last().unwrap();
    let result: Value = serde_json::from_str(&last).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(result["result"]["ids"], undisturbed(model, tokens)["ids"]);
    assert_eq!(result["result"]["written_by"], serde_json::json!(["scheduler"]));
    drop(second);
}

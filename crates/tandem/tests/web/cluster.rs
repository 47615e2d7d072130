//! Two workers behind a proxy, really run. `cargo xtask cluster` measures it; here it must be right.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_testkit::{has_program, scratch, web_python};

use crate::files::program;
use crate::{Running, Server, free_ports, get, repository, wait_for};

/// What texts begin with: no two have a token in common.
const NAMES: [&str; 6] = ["Tom", "Lily", "Max", "Anna", "Ben", "Sue"];
const PROMPT: &str = "Once upon a time there was a little dragon named Max.";

/// How an answer ended, and its text as far as it came.
#[derive(Debug, PartialEq)]
enum Answer {
    Whole(String),
    BrokenOff(String),
    Refused(String),
}

/// A text with a long beginning of its own.
fn text(name: &str, day: usize) -> String {
    format!("{name} {}It was day {day}.", "saw the dog run to the park. ".repeat(30))
}

/// Every text is computed once, by whoever got it; from then on its beginning is in that worker's cache.
fn beginnings_are_cached(url: &str) {
    for day in 0..3 {
        for name in NAMES {
            let asked = ask(url, &text(name, day), 4);
            assert!(matches!(asked.answer, Answer::Whole(_)), "{:?}", asked.answer);
            assert!(day == 0 || asked.cached > 200, "{name}: {} tokens cached", asked.cached);
        }
    }
}

struct Asked {
    answer: Answer,
    cached: u64,
}

fn ask(url: &str, prompt: &str, tokens: usize) -> Asked {
    let body = json!({
        "model": "stories", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let sent = ureq::post(format!("{url}/v1/completions"))
        .header("Content-Type", "application/json")
        .send(body.to_string());
    let (mut text, mut cached) = (String::new(), 0);
    let response = match sent {
        Ok(response) => response,
        Err(error) => return Asked { answer: Answer::Refused(error.to_string()), cached },
    };
    for line in BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok) {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Asked { answer: Answer::Whole(text), cached };
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        text += chunk["choices"][0]["text"].as_str().unwrap_or_default();
        cached =
            chunk["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(cached);
    }
    Asked { answer: Answer::BrokenOff(text), cached }
}

/// A counter of a worker.
fn counter(worker: &Server, name: &str) -> u64 {
    let metrics = get(&format!("{}/metrics", worker.url)).unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

/// HAProxy before two workers: the process, where clients come, and where its figures are.
fn haproxy(folder: &Path, workers: &[Server; 2], spread: &str) -> (Running, String, String) {
    let [port, figures] = free_ports();
    let mut command = program("haproxy");
    command
        .args(["-db", "-f"])
        .arg(repository("deploy/haproxy/haproxy.cfg"))
        .env("TANDEM_PROXY_SOCKET", folder.join("socket"))
        .env("TANDEM_PROXY_ADDRESS", format!("127.0.0.1:{port}"))
        .env("TANDEM_PROXY_FIGURES", format!("127.0.0.1:{figures}"))
        .env("TANDEM_PROXY_SPREAD", spread)
        .stderr(Stdio::null());
    for (n, worker) in workers.iter().enumerate() {
        command.env(format!("TANDEM_WORKER_{}", n + 1), worker.url.trim_start_matches("http://"));
    }
    let running = Running(command.spawn().unwrap());
    let (url, figures) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{figures}"));
    wait_for("two workers", || (well(&figures) == 2).then_some(()));
    (running, url, figures)
}

/// How many workers the proxy sends requests to.
fn well(figures: &str) -> usize {
    let metrics = get(&format!("{figures}/metrics")).unwrap_or_default();
    let up = |line: &&str| {
        line.starts_with("haproxy_server_status{")
            && line.contains("state=\"UP\"")
            && line.ends_with(" 1")
    };
    metrics.lines().filter(up).count()
}

#[test]
fn texts_that_begin_alike_go_to_one_worker() {
    if !has_program("haproxy") {
        return;
    }
    let folder = scratch("haproxy-sticky");
    let workers = [Server::start(&[]), Server::start(&[])];
    // One after the other, so that no worker has more than its share at a time.
    let (_proxy, url, _) = haproxy(folder.path(), &workers, "0");
    beginnings_are_cached(&url);
    // Both have had some.
    assert!(workers.iter().all(|worker| counter(worker, "tandem_cached_tokens_total ") > 0));
}

#[test]
fn a_worker_that_dies_or_stops_corrupts_nothing() {
    if !has_program("haproxy") {
        return;
    }
    let folder = scratch("haproxy-faults");
    let workers = [Server::start(&[]), Server::start(&[])];
    let (_proxy, url, figures) = haproxy(folder.path(), &workers, "101");
    let [first, second] = workers;
    let port = second.port();
    let Answer::Whole(expected) = ask(&first.url, PROMPT, 220).answer else { panic!("no answer") };

    let over = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        answers.push(ask(&url, PROMPT, 220).answer);
                    }
                    answers
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        drop(second); // SIGKILL
        std::thread::sleep(Duration::from_secs(3));
        // New ones succeed at once; the dead one is known to be dead.
        assert_eq!(ask(&url, PROMPT, 220).answer, Answer::Whole(expected.clone()));
        let mut second = Server::start_at(port, &[]);
        wait_for("second worker", || (well(&figures) == 2).then_some(()));
        // The other one is told to stop: it finishes what it has.
        first.process.signal("TERM");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(ask(&url, PROMPT, 220).answer, Answer::Whole(expected.clone()));
        over.store(true, Ordering::Relaxed);
        let answers: Vec<Answer> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
        assert!(second.process.0.try_wait().unwrap().is_none(), "the restarted worker runs");
        answers
    });
    let mut broken = 0;
    for answer in &answers {
        match answer {
            Answer::Whole(text) => assert_eq!(*text, expected),
            Answer::BrokenOff(text) => {
                broken += 1;
                assert!(expected.starts_with(text), "{text:?}");
            }
            Answer::Refused(reason) => panic!("refused: {reason}"),
        }
    }
    assert!(answers.len() > 10, "{} answers", answers.len());
    // What the killed one was at, and nothing else.
    assert!(broken <= 6, "{broken} of {} broke off", answers.len());
}

#[test]
fn nginx_keeps_beginnings_together_and_goes_round_the_dead() {
    if !has_program("nginx") {
        return;
    }
    let folder = scratch("nginx-live");
    let workers = [Server::start(&[]), Server::start(&[])];
    let [port] = free_ports();
    let config = fs::read_to_string(repository("deploy/nginx/tandem.conf")).unwrap();
    let config = config
        .replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"))
        .replace("127.0.0.1:8081", workers[0].url.trim_start_matches("http://"))
        .replace("127.0.0.1:8082", workers[1].url.trim_start_matches("http://"));
    let file = folder.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let mut nginx = program("nginx");
    nginx.args(["-g", "daemon off;", "-p"]).arg(folder.path()).arg("-c").arg(&file);
    let nginx = Running(nginx.stderr(Stdio::null()).spawn().unwrap());
    let url = format!("http://127.0.0.1:{port}");
    wait_for("answer of nginx", || get(&format!("{url}/v1/models")).ok());
    beginnings_are_cached(&url);
    let [first, second] = workers;
    drop(second);
    for n in 0..6 {
        let asked = ask(&url, &format!("{n} little birds sat in a tree."), 4);
        assert!(matches!(asked.answer, Answer::Whole(_)), "{:?}", asked.answer);
    }
    drop(first);
    // The master's children end with it when it is asked to, not when it is killed.
    nginx.signal("TERM");
}

/// LiteLLM's proxy with its file: through HAProxy, and to the workers itself.
#[test]
fn litellm_passes_on() {
    if !has_program("haproxy") {
        return;
    }
    let folder = scratch("litellm");
    let arguments = ["--api-key", "worker-key", "--model-name", "tandem"];
    let workers = [Server::start(&arguments), Server::start(&arguments)];
    let [port] = free_ports();
    let litellm = web_python().with_file_name("litellm");
    let (_haproxy, proxy, _) = haproxy(folder.path(), &workers, "150");
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let started = std::process::Command::new(litellm)
        .arg("--config")
        .arg(repository("deploy/litellm/config.yaml"))
        .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--telemetry", "False"])
        .current_dir(folder.path())
        .env("TANDEM_PROXY_URL", format!("{proxy}/v1"))
        .env("TANDEM_WORKER_1_URL", format!("{}/v1", workers[0].url))
        .env("TANDEM_WORKER_2_URL", format!("{}/v1", workers[1].url))
        .env("TANDEM_API_KEY", "worker-key")
        .env("LITELLM_MASTER_KEY", "sk-callers")
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let _litellm = Running(started.unwrap());
    let url = format!("http://127.0.0.1:{port}");
    wait_for("answer of LiteLLM", || get(&format!("{url}/health/liveliness")).ok());
    let ask = |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8, "temperature": 0});
        let response = ureq::post(format!("{url}/v1/chat/completions"))
            .header("Authorization", "Bearer sk-callers")
            .header("Content-Type", "application/json")
            .send(body.to_string());
        let log = || fs::read_to_string(folder.path().join("log")).unwrap();
        let text = response
            .unwrap_or_else(|e| panic!("{model}: {e}\n{}", log()))
            .body_mut()
            .read_to_string()
            .unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 8, "{text}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let text = ask("tandem");
    assert!(!text.is_empty());
    for _ in 0..4 {
        assert_eq!(ask("tandem-direct"), text);
    }
}

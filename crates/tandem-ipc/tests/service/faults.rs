//! Clients that vanish or do not read, queues that are full, configs that are broken, addresses that are taken.

use std::sync::Arc;

use serde_json::{Value, json};
use tandem_golden::{stories, stories_bf16};
use tandem_ipc::Address;
use tandem_ipc::server::ServerOptions;
use tandem_model::Checkpoint;
use tandem_runtime::plan::PassSize;
use tandem_runtime::{EngineLoad, EngineOptions, Executor, Model};
use tandem_testkit::scratch;

use crate::support::{OPTIONS, Peer, Running, greedy, ids_of, until};

const IDLE: EngineLoad = EngineLoad { running: 0, waiting: 0 };

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let server = Running::with(EngineOptions { max_sequences: 1, ..OPTIONS });
    let story = &stories()[0];
    for kind in [zmq::REQ, zmq::DEALER] {
        let client = Peer::connect(&server.address, kind);
        client.send(&greedy(1, &story.ids, 400, kind == zmq::DEALER));
        until("it begins", || server.engine.load().running == 1);
        // One that waits, and vanishes before it begins.
        let waiting = server.dealer();
        waiting.send(&greedy(1, &story.ids, 400, false));
        until("it waits", || server.engine.load().waiting == 1);
        drop(waiting);
        until("it is gone", || server.engine.load().waiting == 0);
        drop(client);
        until("it is gone", || server.engine.load() == IDLE);
        let other = server.req();
        let answer = other.ask(&greedy(2, &story.ids, 5, false));
        assert_eq!(ids_of(&answer["result"]["ids"]), story.greedy[..5]);
        until("all is told", || other.ask(&json!({"type": "health_check"}))["requests"] == 0);
    }
}

#[test]
fn a_slow_reader_loses_nothing_and_holds_nobody_up() {
    let server = Running::start();
    let story = &stories()[0];
    let (texts, tokens) = (24, 400);
    // Little room on the way, so that answers wait in the server.
    let slow = Peer::with(&server.address, zmq::DEALER, |socket| {
        socket.set_rcvhwm(1).unwrap();
        socket.set_rcvbuf(2048).unwrap();
    });
    for n in 0..texts {
        let mut wanted = greedy(n, &story.ids, tokens, true);
        if n == 0 {
            wanted["logprobs"] = json!(1);
        }
        slow.send(&wanted);
    }
    until("all begin", || server.engine.load() != IDLE);
    // Others are served meanwhile.
    let other = server.req();
    let expected = ids_of(&other.ask(&greedy(0, &story.ids, tokens, false))["result"]["ids"]);
    assert_eq!(expected[..story.greedy.len()], story.greedy);
    until("all end", || server.engine.load() == IDLE);
    // Everything is there, in as many messages as it took.
    let mut messages = 0;
    let mut all = vec![Vec::new(); texts];
    let mut logprobs = Vec::new();
    let mut finished = 0;
    while finished < texts {
        let answer = slow.answer();
        messages += 1;
        let n = answer["id"].as_u64().unwrap() as usize;
        match answer["event"].as_str().unwrap() {
            "tokens" => {
                all[n].extend(ids_of(&answer["ids"]));
                logprobs.extend(answer["logprobs"].as_array().into_iter().flatten().cloned());
            }
            "finished" => {
                assert!(n > 0 || answer["result"]["logprobs"] == json!(logprobs));
                assert_eq!(ids_of(&answer["result"]["ids"]), all[n]);
                finished += 1;
            }
            _ => {}
        }
    }
    assert!(all.iter().all(|ids| *ids == expected));
    assert_eq!(logprobs.len(), tokens);
    assert!(messages < texts * tokens, "{messages} messages: nothing was merged");
}

#[test]
fn who_leaves_too_much_unread_is_cut_off_and_told() {
    let server = Running::start();
    let story = &stories()[0];
    let slow = Peer::with(&server.address, zmq::DEALER, |socket| {
        socket.set_rcvhwm(1).unwrap();
        socket.set_rcvbuf(2048).unwrap();
    });
    slow.send(&greedy("text", &story.ids, 400, true));
    until("it begins", || server.engine.load().running == 1);
    // Answers that cannot be merged, more than may wait, and of a size that does not fit into buffers on the way.
    let id = "x".repeat(250);
    for _ in 0..40_000 {
        slow.send_raw(&[format!(r#"{{"type":"nonsense","id":"{id}"}}"#).as_bytes()]);
    }
    until("its text ends", || server.engine.load() == IDLE);
    let other = server.req();
    assert_eq!(other.ask(&json!({"type": "health_check"}))["status"], "ok");
    let told =
        std::iter::repeat_with(|| slow.answer()).find(|answer| answer["code"] == "slow_reader");
    let message = told.unwrap()["error"].as_str().unwrap().to_owned();
    assert!(message.starts_with("this client reads too slowly: "), "{message}");
    // It may go on.
    slow.send(&greedy("again", &story.ids, 3, false));
    let again = std::iter::repeat_with(|| slow.answer()).find(|answer| answer["id"] == "again");
    assert_eq!(ids_of(&again.unwrap()["result"]["ids"]), story.greedy[..3]);
}

#[test]
fn a_full_queue_says_so_and_what_is_in_it_is_served() {
    let server = Running::with(EngineOptions { max_sequences: 1, max_waiting: 2, ..OPTIONS });
    let story = &stories()[0];
    let peer = server.dealer();
    // One that takes a while is written, before others come.
    peer.send(&greedy(0, &story.ids, 300, false));
    until("it begins", || server.engine.load().running == 1);
    let texts = 12;
    for n in 1..texts {
        peer.send(&greedy(n, &story.ids, 20, false));
    }
    let answers: Vec<Value> = (0..texts).map(|_| peer.answer()).collect();
    let (refused, served): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer["status"] == "error");
    assert!(!refused.is_empty() && served.len() >= 3, "{refused:?}");
    for answer in refused {
        assert_eq!(answer["code"], "queue_full");
        assert!(answer["error"].as_str().unwrap().starts_with("the queue is full: "));
    }
    for answer in served {
        assert_eq!(ids_of(&answer["result"]["ids"])[..20], story.greedy[..20]);
    }
}

#[test]
fn a_broken_config_leaves_the_running_one_in_force() {
    let folder = scratch("reload");
    let config = folder.path().join("partition.yaml");
    std::fs::write(&config, "static_partition:\n  lm_head: cpu\n").unwrap();
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let executor = Executor::new(model, 2, 64).unwrap();
    let address = format!("ipc://{}", folder.path().join("socket").display());
    let server = Running::serve(&checkpoint, executor, OPTIONS, &address, Some(config.clone()));
    let peer = server.req();
    let plan = || server.engine.plan(PassSize { tokens: 1, context: 1 });
    let reload = json!({"type": "reload_config"});
    let answer = peer.ask(&reload);
    assert_eq!((&answer["status"], &answer["source"]), (&json!("success"), &json!(config)));
    let before = plan();

    std::fs::write(&config, "static_partition:\n  lm_heat: cpu\n").unwrap();
    let broken = peer.error(&[reload.to_string().as_bytes()]);
    assert!(broken.contains("partition.yaml") && broken.contains("lm_heat"), "{broken}");
    std::fs::write(&config, "static_partition: [").unwrap();
    assert!(peer.error(&[reload.to_string().as_bytes()]).starts_with("reload_config: "));
    std::fs::remove_file(&config).unwrap();
    assert!(peer.error(&[reload.to_string().as_bytes()]).contains("partition.yaml"));
    let yaml = |yaml: &str| json!({"type": "reload_config", "yaml": yaml});
    let broken = peer.error(&[yaml("static_partition: {lm_head: tpu}").to_string().as_bytes()]);
    assert!(broken.contains("expected cpu, igpu, auto") && broken.contains("tpu"), "{broken}");
    assert_eq!(plan(), before);
    let story = &stories()[0];
    let answer = peer.ask(&greedy(1, &story.ids, 3, false));
    assert_eq!(ids_of(&answer["result"]["ids"]), story.greedy[..3]);

    assert_eq!(peer.ask(&yaml("static_partition: {lm_head: igpu}"))["status"], "success");
    // There is no GPU, and so the reason differs, if nothing else.
    assert_ne!(plan(), before);
}

#[test]
fn taken_addresses_are_refused_with_a_way_out() {
    let server = Running::start();
    let taken = |address: &str| {
        let address: Address = address.parse().unwrap();
        ServerOptions { address, allow_remote: false }.check().unwrap_err().to_string()
    };
    let port: u16 = server.address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(
        taken(&server.address),
        format!(
            "{} is in use: perhaps another scheduler runs there; end it, or listen elsewhere with --bind \
             tcp://127.0.0.1:{}",
            server.address,
            port + 1
        )
    );
    let folder = scratch("addresses");
    let path = folder.path().join("socket");
    let address = format!("ipc://{}", path.display());
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let executor = Executor::new(Arc::clone(&model), 2, 64).unwrap();
    let other = Running::serve(&checkpoint, executor, OPTIONS, &address, None);
    assert!(taken(&address).contains("is in use"));
    assert_eq!(
        Peer::connect(&address, zmq::REQ).ask(&json!({"type": "health_check"}))["status"],
        "ok"
    );
    drop(other);
    // A socket that was left behind may go; other files are not ours.
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("left")).unwrap());
    let left = format!("ipc://{}", folder.path().join("left").display());
    let executor = Executor::new(model, 2, 64).unwrap();
    drop(Running::serve(&checkpoint, executor, OPTIONS, &left, None));
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(taken(&format!("ipc://{}", file.display())).contains("a file that is no socket"));
    assert!(
        taken(&format!("ipc://{}/no/socket", folder.path().display())).contains("no such folder")
    );
    assert!(taken("tcp://0.0.0.0:0").contains("--allow-remote"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

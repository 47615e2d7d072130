//! Clients that go away, and a scheduler that does.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tandem_golden::stories_endless;
use tandem_ipc::client::TextEvent;
use tandem_ipc::protocol::{Generate, GenerateResult, SamplingFields};
use tandem_runtime::SamplingParams;
use tandem_testkit::scratch;

use super::{Scheduler, completion, post, send, socket_in, stream};
use crate::{get, wait_for};

const COMPLETIONS: &str = "/v1/completions";
/// More than a text that nobody has ended would take to write while a test looks.
const TOKENS: usize = 4000;

/// Texts of a scheduler that are read or written, and that wait.
fn load(scheduler: &Scheduler) -> (u64, u64) {
    let health = scheduler.client().health_check().unwrap().fields;
    (health["running"].as_u64().unwrap(), health["waiting"].as_u64().unwrap())
}

/// Has a scheduler write a long text until it is told to stop.
fn write_until(scheduler: &Scheduler, stop: &AtomicBool) -> GenerateResult {
    let generate = Generate {
        prompt: Some("Once upon a time".to_owned()),
        max_tokens: Some(TOKENS),
        sampling: SamplingFields::from(&SamplingParams::GREEDY),
        ..Generate::default()
    };
    let result = scheduler.client().generate(&generate, &mut |event| match event {
        TextEvent::Begun { .. } => ControlFlow::Continue(()),
        _ if stop.load(Ordering::Relaxed) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    result.unwrap()
}

#[test]
fn who_goes_away_ends_the_text_at_the_scheduler() {
    let model = stories_endless();
    let model = ["--model", model.to_str().unwrap()];
    // One that is written, and one that waits.
    for places in ["2", "1"] {
        let scheduler = Scheduler::start(&[&model[..], &["--max-sequences", places]].concat());
        let front = scheduler.served(&model);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // It began first and takes as many tokens: the other one cannot have come to its end by itself before it.
            let first = scope.spawn(|| write_until(&scheduler, &stop));
            wait_for("first text", || (load(&scheduler) == (1, 0)).then_some(()));
            let body = completion("Tom and Lily", TOKENS);
            let (status, response) = {
                let mut body = body.clone();
                body["stream"] = Value::Bool(true);
                send(&front.url, COMPLETIONS, &body)
            };
            assert_eq!(status, 200);
            let both = if places == "2" { (2, 0) } else { (1, 1) };
            wait_for("second text", || (load(&scheduler) == both).then_some(()));
            drop(response);
            wait_for("end of it", || (load(&scheduler) == (1, 0)).then_some(()));
            stop.store(true, Ordering::Relaxed);
            let first = first.join().unwrap();
            assert_eq!(first.finish_reason, "cancelled", "after {} tokens", first.ids.len());
        });
        wait_for("end of all", || (load(&scheduler) == (0, 0)).then_some(()));
        let figures = get(&format!("{}/metrics", front.url)).unwrap();
        assert!(figures.contains("tandem_texts_total{outcome=\"cancelled\"} 1"), "{figures}");
    }
}

#[test]
fn a_scheduler_that_is_killed_is_told_of_and_found_again() {
    let folder = scratch("killed");
    let address = socket_in(folder.path());
    let model = stories_endless();
    let model = ["--model", model.to_str().unwrap()];
    let scheduler = Scheduler::at(&address, &model);
    let front = scheduler.served(&model);
    let (_, before) = post(&front.url, COMPLETIONS, &completion("Once upon a time", 20));
    let text = &before["choices"][0]["text"];
    assert!(text.as_str().unwrap().len() > 20, "{before}");

    let mut events = stream(&front.url, COMPLETIONS, &completion("Once upon a time", TOKENS));
    for _ in 0..5 {
        assert!(events.next().unwrap()["choices"][0]["text"].is_string());
    }
    scheduler.process.signal("KILL");
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "scheduler_gone", "{last}");
    assert!(last["error"]["message"].as_str().unwrap().contains("scheduler"), "{last}");
    drop(scheduler);

    // The server stays, and says of itself that it cannot write.
    let (status, response) = send(&front.url, COMPLETIONS, &completion("Once upon a time", 20));
    assert_eq!(status, 503);
    assert!(response.headers().contains_key("retry-after"), "{response:?}");
    assert_eq!(get(&format!("{}/health", front.url)), Ok("{\"status\":\"ok\"}".to_owned()));
    assert!(get(&format!("{}/ready", front.url)).unwrap_err().contains("503"));

    let back = Scheduler::at(&address, &model);
    wait_for("readiness", || get(&format!("{}/ready", front.url)).ok());
    let (status, after) = post(&front.url, COMPLETIONS, &completion("Once upon a time", 20));
    assert_eq!((status, &after["choices"][0]["text"]), (200, text));
    drop(back);
    front.stop();
}

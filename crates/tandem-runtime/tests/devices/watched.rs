//! What passes on both devices tell.

use std::collections::BTreeSet;
use std::sync::Arc;

use tandem_golden::{golden, golden_model};
use tandem_gpu::{Fault, Gpu};
use tandem_memory::{KvType, Packing};
use tandem_model::Checkpoint;
use tandem_runtime::plan::{Placement, Step};
use tandem_runtime::telemetry::TimelineEvent;
use tandem_runtime::{Device, Instrumentation, Instruments, LogitsFor, RouterTrace};

use super::support::Setup;
use super::watched_support::{computed, counts, expected_bytes, params};
use super::{PLANS, PlanOf, greedy, on_every_gpu, setup};

fn watched(gpu: Gpu, plan: PlanOf) -> (Setup, Arc<Instrumentation>) {
    let mut setup = setup(gpu, &golden_model(), Packing::AsInFile, KvType::F16, plan);
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let instrumentation = Instrumentation::start(params(&checkpoint)).unwrap();
    setup.executor.set_instruments(instrumentation.instruments());
    (setup, instrumentation)
}

/// Of one step: bytes are shared out, and every part is told once by the device that computed it.
fn check_step(events: &[&TimelineEvent], step: Step, bytes: usize, what: &str) {
    let name = step.operation.name();
    let of: Vec<_> =
        events.iter().filter(|e| (e.operation, e.layer) == (name, step.layer)).collect();
    let devices: Vec<_> = of.iter().map(|event| event.device).collect();
    let expected = match step.placement {
        Placement::Cpu => &[Device::Cpu][..],
        Placement::Split(share) if share <= 0.0 => &[Device::Cpu],
        Placement::Split(share) if share < 1.0 => &[Device::Cpu, Device::Igpu],
        Placement::Split(_) | Placement::Igpu => &[Device::Igpu],
        Placement::Experts(_) => panic!("{what}: {name}: no plan here has experts apart"),
    };
    let found: BTreeSet<_> = devices.iter().copied().collect();
    assert_eq!(
        (found, devices.len()),
        (expected.iter().copied().collect(), expected.len()),
        "{what}: {name}"
    );
    let told: u64 = of.iter().map(|event| event.bytes).sum();
    // Rows are shared out in whole tiles.
    let exact = expected.len() == 1;
    let near = (told as f64 / bytes.max(1) as f64 - 1.0).abs() < 0.3;
    assert!(told == bytes as u64 || (!exact && near), "{what}: {name}: {told} bytes of {bytes}");
}

#[test]
fn every_step_is_told_once_by_each_device_that_computed_it() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    on_every_gpu(|what, gpu| {
        for (n, &plan) in PLANS.iter().enumerate() {
            let (Setup { mut executor, mut kv }, watch) = watched(gpu(), plan);
            for (packet, ids) in [(1, &[3, 5, 7][..]), (2, &[9][..])] {
                let what = format!("{what}, plan {n}, pass {packet}");
                executor.forward(ids, &mut kv, LogitsFor::Last, None).unwrap();
                let timeline = watch.timeline(packet).unwrap();
                let events = computed(&timeline);
                // A second time, to listen to the router.
                let mut trace = RouterTrace::default();
                kv.truncate(kv.len() - ids.len());
                executor.set_instruments(Instruments::default());
                executor.forward(ids, &mut kv, LogitsFor::Last, Some(&mut trace)).unwrap();
                executor.set_instruments(watch.instruments());
                let size = (ids.len(), kv.len());
                let steps: Vec<_> = executor.planner().plan(size.0, size.1).steps().collect();
                let is_apart =
                    executor.gpu().unwrap().memory().sharing() == tandem_gpu::Sharing::None;
                for step in steps {
                    let mut bytes = expected_bytes(&checkpoint, &trace, size, step);
                    let is_igpu = matches!(step.placement, Placement::Igpu | Placement::Split(1.0));
                    if is_apart && is_igpu {
                        // Which experts it chose is not looked at: as many as can have been.
                        let most = (2 * ids.len()).min(checkpoint.config().n_experts);
                        let met = counts(&checkpoint, &trace)[usize::from(step.layer.unwrap_or(0))]
                            .iter()
                            .filter(|count| **count > 0)
                            .count();
                        if step.operation.name().starts_with("expert_ffn_w") {
                            bytes = bytes / met * most;
                        }
                    }
                    check_step(&events, step, bytes, &what);
                }
                for event in &events {
                    let end = event.start_ms + event.duration_ms;
                    assert!(end <= timeline.duration_ms + 1e-6, "{what}: {event:?}");
                }
            }
        }
    });
}

#[test]
fn choices_of_the_gpu_are_counted_and_tokens_are_the_same() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        for (n, &plan) in PLANS.iter().enumerate() {
            let what = format!("{what}, plan {n}");
            let (mut setup, watch) = watched(gpu(), plan);
            assert_eq!(
                greedy(&mut setup, &prompt.ids, prompt.greedy.len()),
                prompt.greedy,
                "{what}"
            );
            let all = watch.expert_distribution().unwrap();
            let tokens = (prompt.ids.len() + prompt.greedy.len()) as u64;
            assert!(all.iter().all(|layer| layer.iter().sum::<u64>() == 2 * tokens), "{what}");
            setup.kv.clear();
            let mut trace = RouterTrace::default();
            let ids = [3, 5, 7, 9];
            let forward = |setup: &mut Setup, trace| {
                setup.executor.forward(&ids, &mut setup.kv, LogitsFor::None, trace).map(drop)
            };
            forward(&mut setup, None).unwrap();
            let after = watch.expert_distribution().unwrap();
            setup.kv.clear();
            forward(&mut setup, Some(&mut trace)).unwrap();
            let expected = counts(&checkpoint, &trace);
            for ((after, all), expected) in
                after.iter().flatten().zip(all.iter().flatten()).zip(expected.iter().flatten())
            {
                assert_eq!(after - all, *expected, "{what}");
            }
        }
    });
}

#[test]
fn a_gpu_that_fails_gives_the_token_back() {
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        let (mut setup, watch) = watched(gpu(), PLANS[1]);
        setup.executor.gpu().unwrap().fail_after(20, Fault::TimeOut);
        let ids = greedy(&mut setup, &prompt.ids, prompt.greedy.len());
        assert_eq!(ids, prompt.greedy, "{what}");
        assert!(setup.executor.gpu_failure().is_some(), "{what}");
        let token = watch.token_metrics();
        assert_eq!((token.holders.len(), token.timed_out), (0, 0), "{what}");
        let summary = watch.finish().unwrap().unwrap();
        assert_eq!(summary.totals.failed_packets, 1, "{what}");
        // The failed pass did not count, and the one that took its place did.
        let tokens = (prompt.ids.len() + prompt.greedy.len()) as u64;
        let chosen = summary.expert_selection_distribution.unwrap();
        assert!(chosen.iter().all(|layer| layer.iter().sum::<u64>() == 2 * tokens), "{what}");
    });
}

#[test]
fn a_trace_has_both_devices_the_token_and_counters() {
    on_every_gpu(|what, gpu| {
        let (mut setup, watch) = watched(gpu(), PLANS[4]);
        let prompt = &golden()[0];
        greedy(&mut setup, &prompt.ids, prompt.greedy.len());
        // The monitor looks every 10 ms.
        while watch.bandwidth().seconds < 0.03 {
            std::thread::yield_now();
        }
        let trace: serde_json::Value = serde_json::from_slice(&watch.trace().unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let tracks: BTreeSet<&str> = events
            .iter()
            .filter(|event| event["name"] == "thread_name")
            .map(|event| event["args"]["name"].as_str().unwrap())
            .collect();
        let expected = ["cpu 0", "igpu 0", "token: cpu 0"];
        assert_eq!(tracks, expected.into(), "{what}");
        let counters: BTreeSet<&str> = events
            .iter()
            .filter(|event| event["ph"] == "C")
            .map(|event| event["name"].as_str().unwrap())
            .collect();
        for counter in ["cpu_bandwidth_gbps", "igpu_bandwidth_gbps"] {
            assert!(counters.contains(counter), "{what}: {counters:?}");
        }
        let summary = watch.finish().unwrap().unwrap();
        let [cpu, igpu] = summary.devices;
        assert!(cpu.busy_ms > 0.0 && igpu.busy_ms > 0.0 && igpu.bytes > 0, "{what}");
        let bubbles = summary.pipeline_bubbles.unwrap();
        assert!(bubbles.cpu_ms.is_some() && bubbles.igpu_ms.is_some(), "{what}");
        let overlap = summary.overlap.unwrap();
        let any = bubbles.cpu_ms.unwrap() + cpu.busy_ms;
        assert!((overlap.both_busy_ms - (cpu.busy_ms + igpu.busy_ms - any)).abs() < 1e-6, "{what}");
        let contention = summary.totals.cpu_igpu_contention.unwrap();
        assert!((0.0..=1.0).contains(&contention), "{what}: {contention}");
        assert!(summary.token.unwrap().granted_decode > 0, "{what}");
    });
}

//! What passes on the CPU tell, and what holds them back.

#[path = "support/watched.rs"]
mod watched;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_golden::{golden, golden_model};
use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_runtime::bandwidth::{HeavyOperations, Priority};
use tandem_runtime::telemetry::{Activity, Task, TimelineEvent};
use tandem_runtime::{
    Device, Executor, Instrumentation, InstrumentationParams, LogitsFor, Model, Operation,
    RouterTrace,
};
use watched::{computed, counts, expected_bytes, params};

fn executor(params: InstrumentationParams) -> (Executor, KvCache, Arc<Instrumentation>) {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let mut executor = Executor::new(model, 2, 16).unwrap();
    let kv = executor.kv_cache(64, KvType::F16).unwrap();
    let instrumentation = Instrumentation::start(params).unwrap();
    executor.set_instruments(instrumentation.instruments());
    (executor, kv, instrumentation)
}

#[test]
fn time_between_passes_belongs_to_no_operation() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let (mut executor, mut kv, watch) = executor(params(&checkpoint));
    executor.profile().clear();
    let mut spent = Duration::ZERO;
    for id in [3, 5] {
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        executor.forward(&[id], &mut kv, LogitsFor::Last, None).unwrap();
        spent += begun.elapsed();
    }
    let counted = executor.profile().total_time();
    assert!(counted <= spent, "{counted:?} of {spent:?}");
    drop(watch);
}

#[test]
fn every_step_of_a_pass_is_told_once_with_its_bytes() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let (mut executor, mut kv, watch) = executor(params(&checkpoint));
    let mut all = 0;
    for (packet, ids, wanted) in [
        (1, &[3, 5, 7][..], LogitsFor::None),
        (2, &[9, 11][..], LogitsFor::Last),
        (3, &[2][..], LogitsFor::Last),
    ] {
        let mut trace = RouterTrace::default();
        executor.forward(ids, &mut kv, wanted, Some(&mut trace)).unwrap();
        let timeline = watch.timeline(packet).unwrap();
        let events = computed(&timeline);
        // Without logits the last two steps are left out.
        let left_out = if wanted == LogitsFor::None { 2 } else { 0 };
        let plan = executor.planner().plan(ids.len(), kv.len());
        let steps: Vec<_> = plan.steps().collect();
        let steps = &steps[..steps.len() - left_out];
        let expected = steps.iter().map(|step| (step.operation.name(), step.layer));
        assert!(events.iter().map(|event| (event.operation, event.layer)).eq(expected));
        for (event, step) in events.iter().zip(steps) {
            let bytes = expected_bytes(&checkpoint, &trace, (ids.len(), kv.len()), *step);
            assert_eq!(event.bytes, bytes as u64, "{}", event.operation);
            assert_eq!((event.device, event.worker), (Device::Cpu, 0));
            all += bytes;
        }
        // One after the other, within the pass.
        let ends = events.iter().map(|event| event.start_ms + event.duration_ms);
        for (end, next) in ends.zip(&events[1..]) {
            assert!(end <= next.start_ms + 1e-6);
        }
    }
    assert_eq!(watch.newest_decode().unwrap().packet, 3);
    let stats = watch.bandwidth_of_session();
    let counted = stats.cpu_bandwidth_gbps * stats.seconds * 1e9;
    assert!((counted - all as f64).abs() < 1.0, "{counted} of {all}");
    let summary = watch.finish().unwrap().unwrap();
    assert_eq!(summary.devices[0].bytes, all as u64);
    assert_eq!(
        (summary.totals.igpu_packets, summary.totals.failed_packets, summary.lost_events),
        (0, 0, 0)
    );
    // One device alone: nobody waits for another.
    assert_eq!(summary.pipeline_bubbles.unwrap().igpu_ms, None);
    assert_eq!(summary.totals.cpu_igpu_contention, Some(0.0));
    assert!(summary.totals.utilization.unwrap() > 0.0);
}

#[test]
fn experts_are_counted_as_they_were_chosen() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let (mut executor, mut kv, watch) = executor(params(&checkpoint));
    let mut trace = RouterTrace::default();
    for ids in golden()[0].ids.chunks(16) {
        executor.forward(ids, &mut kv, LogitsFor::Last, Some(&mut trace)).unwrap();
    }
    assert_eq!(watch.expert_distribution().unwrap(), counts(&checkpoint, &trace));
}

#[test]
fn heavy_operations_and_no_others_hold_the_token() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let (mut executor, mut kv, watch) = executor(params(&checkpoint));
    executor.forward(&[3, 5, 7], &mut kv, LogitsFor::Last, None).unwrap();
    executor.forward(&[9], &mut kv, LogitsFor::Last, None).unwrap();
    let heavy = HeavyOperations::default();
    let is_heavy = |event: &&TimelineEvent| {
        Operation::ALL.iter().any(|o| o.name() == event.operation && heavy.contains(*o))
    };
    let mut bytes = 0;
    let mut numbers = [0, 0];
    for (packet, number) in (1..).zip(&mut numbers) {
        let timeline = watch.timeline(packet).unwrap();
        let of = |activity| timeline.events.iter().filter(move |e| e.activity == activity);
        let all = computed(&timeline);
        let heavy: Vec<_> = all.iter().copied().filter(is_heavy).collect();
        let names = |e: &TimelineEvent| (e.operation, e.layer);
        assert!(of(Activity::TokenHold).map(names).eq(heavy.iter().map(|e| names(e))));
        assert!(of(Activity::TokenWait).map(names).eq(heavy.iter().map(|e| names(e))));
        assert!(of(Activity::TokenHold).map(|e| e.bytes).eq(heavy.iter().map(|e| e.bytes)));
        // An operation runs while its permit is held.
        for (hold, run) in of(Activity::TokenHold).zip(&heavy) {
            assert!(hold.start_ms <= run.start_ms + 1e-6);
            assert!(hold.start_ms + hold.duration_ms >= run.start_ms + run.duration_ms - 1e-6);
        }
        bytes += heavy.iter().map(|event| event.bytes).sum::<u64>();
        *number = heavy.len() as u64;
    }
    let token = watch.token_metrics();
    assert_eq!((token.granted_prefill, token.granted_decode), (numbers[0], numbers[1]));
    assert_eq!((token.bytes, token.holders.len(), token.timed_out), (bytes, 0, 0));
    // From now on nobody holds it.
    executor.set_instruments(watch.set_heavy(None));
    executor.forward(&[9], &mut kv, LogitsFor::Last, None).unwrap();
    let timeline = watch.timeline(3).unwrap();
    assert_eq!(timeline.events.len(), computed(&timeline).len());
}

#[test]
fn a_pass_waits_for_the_token_and_does_without_one_that_does_not_come() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let (mut executor, mut kv, watch) = executor(params(&checkpoint));
    let task = Task::new(Operation::LmHead, None, Device::Igpu);
    let held = watch.token().acquire(task, Priority::Prefill);
    std::thread::scope(|scope| {
        let pass = scope.spawn(|| executor.forward(&[3], &mut kv, LogitsFor::Last, None).map(drop));
        while watch.token_metrics().waiting_decode == 0 {
            std::thread::yield_now();
        }
        drop(held);
        pass.join().unwrap().unwrap();
    });
    assert_eq!(watch.token_metrics().timed_out, 0);
    let held = watch.token().acquire(task, Priority::Prefill);
    executor.forward(&[3], &mut kv, LogitsFor::Last, None).unwrap();
    drop(held);
    let token = watch.token_metrics();
    assert_eq!((token.timed_out, token.holders.len()), (1, 0), "a pass waits in vain once");
    executor.forward(&[3], &mut kv, LogitsFor::Last, None).unwrap();
    let granted = watch.token_metrics().granted_decode - token.granted_decode;
    assert_eq!(granted, token.granted_decode, "the next one asks again");
}

#[test]
fn background_mode_makes_passes_take_as_long_as_their_bytes() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let gbps = 0.02;
    let background = InstrumentationParams { background_gbps: Some(gbps), ..params(&checkpoint) };
    let (mut executor, mut kv, watch) = executor(background);
    let started = Instant::now();
    for id in [3, 5, 7] {
        executor.forward(&[id], &mut kv, LogitsFor::Last, None).unwrap();
    }
    let took = started.elapsed();
    let bytes = watch.summary().unwrap().devices[0].bytes;
    // But for what the bucket holds at first.
    let least = Duration::from_secs_f64(bytes as f64 / (gbps * 1e9) - 0.01);
    assert!(least > Duration::from_millis(20), "{bytes} bytes show nothing");
    assert!(took >= least, "{took:?} for {bytes} bytes, at least {least:?} expected");
    // Nobody holds the token while it sleeps.
    let hold = watch.token_metrics().hold;
    assert!(hold.total_ms < took.as_secs_f64() * 1e3 - least.as_secs_f64() * 500.0, "{hold:?}");
}

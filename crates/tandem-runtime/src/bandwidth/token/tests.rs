use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::queue::Queue;
use super::*;
use crate::device::Device;
use crate::profile::Operation;

/// What happens to a queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    Join(Priority),
    /// Of those that are there, whoever came at this position (modulo their number) leaves.
    Leave(usize),
}

/// One who has joined.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: u64,
    priority: Priority,
    granted: bool,
}

/// Runs `steps` on a queue and checks after each what a queue promises.
fn check(permits: usize, decode_run: usize, steps: &[Step]) {
    let mut queue = Queue::new(permits, decode_run);
    let mut members: Vec<Member> = Vec::new();
    // Permits in a row that decode got while a prefill was in the line.
    let mut run = 0;
    let mut joined = 0;
    for &step in steps {
        let woken = match step {
            Step::Join(priority) => {
                let id = queue.join(priority, joined);
                assert_eq!(id, joined);
                joined += 1;
                members.push(Member { id, priority, granted: queue.is_granted(id, priority) });
                None
            }
            Step::Leave(_) if members.is_empty() => None,
            Step::Leave(n) => {
                let gone = members.remove(n % members.len());
                let woken = queue.leave(gone.id, gone.priority);
                assert!(gone.granted || woken.is_none(), "who only waited had nothing to give");
                woken
            }
        };
        let waits = |member: &Member, priority| !member.granted && member.priority == priority;
        if let Some(woken) = woken {
            let first = |p| members.iter().position(|member| waits(member, p));
            let (decode, prefill) = (first(Priority::Decode), first(Priority::Prefill));
            let turn_of_prefill = decode.is_none() || prefill.is_some() && run == decode_run;
            run = if turn_of_prefill || prefill.is_none() { 0 } else { run + 1 };
            let next = if turn_of_prefill { prefill } else { decode };
            let next = &mut members[next.expect("somebody was woken")];
            assert_eq!(next.id, woken, "{steps:?}");
            next.granted = true;
        }
        if !members.iter().any(|member| waits(member, Priority::Prefill)) {
            run = 0;
        }
        for member in &members {
            let granted = queue.is_granted(member.id, member.priority);
            assert_eq!(granted, member.granted, "{member:?} after {steps:?}");
        }
        let granted = members.iter().filter(|member| member.granted).count();
        assert_eq!(granted, permits.min(members.len()), "no permit lies idle, none is made up");
        let waiting = Priority::ALL.map(|p| members.iter().filter(|m| waits(m, p)).count());
        assert_eq!(queue.waiting(), waiting);
    }
}

#[test]
fn every_short_history_keeps_the_queues_promises() {
    let choices = [
        Step::Join(Priority::Decode),
        Step::Join(Priority::Prefill),
        Step::Leave(0),
        Step::Leave(usize::MAX),
    ];
    let length = 8;
    for history in 0..choices.len().pow(length) {
        let digit = |i| choices[history / choices.len().pow(i) % choices.len()];
        let steps: Vec<Step> = (0..length).map(digit).collect();
        check(1, 1, &steps);
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Join(Priority::Decode)),
        1 => Just(Step::Join(Priority::Prefill)),
        2 => any::<usize>().prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn any_long_history_keeps_the_queues_promises(
        permits in 1..4_usize,
        decode_run in 0..5_usize,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        check(permits, decode_run, &steps);
    }
}

fn token(permits: usize, decode_run: usize) -> BandwidthToken {
    let permits = NonZeroUsize::new(permits).unwrap();
    BandwidthToken::new(TokenParams { permits, decode_run }, Recorder::off())
}

const TASK: Task = Task::new(Operation::LmHead, None, Device::Cpu);

#[test]
fn many_threads_never_hold_more_permits_than_there_are() {
    for permits in [1, 3] {
        let token = token(permits, 2);
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for thread in 0..6 {
                let (token, inside) = (&token, &inside);
                scope.spawn(move || {
                    for round in 0..200 {
                        let priority = Priority::ALL[(thread + round) % 2];
                        let limit = Duration::from_micros(50 * (round as u64 % 3));
                        let permit = match (thread + round) % 5 {
                            0 => token.acquire_within(TASK, priority, limit).ok(),
                            1 => drop_or_take(token.line_up(TASK, priority)),
                            _ => Some(token.acquire(TASK, priority)),
                        };
                        let Some(mut permit) = permit else { continue };
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < permits);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        permit.bytes(7);
                    }
                });
            }
        });
        let metrics = token.metrics();
        assert_eq!(
            (metrics.holders.len(), metrics.waiting_decode, metrics.waiting_prefill),
            (0, 0, 0)
        );
        let granted = metrics.granted_decode + metrics.granted_prefill;
        assert_eq!((metrics.wait.count, metrics.hold.count), (granted, granted));
        assert_eq!(metrics.bytes, 7 * granted);
        // Nothing got lost: all permits can be had.
        let all: Vec<_> = (0..permits)
            .map(|_| token.acquire_within(TASK, Priority::Prefill, Duration::ZERO).unwrap())
            .collect();
        assert_eq!(token.metrics().holders.len(), all.len());
    }
}

/// Takes the permit if it is there, else leaves the line.
fn drop_or_take(ticket: Ticket) -> Option<Permit> {
    if ticket.is_ready() { ticket.wait(Duration::ZERO).ok() } else { None }
}

#[test]
fn a_prefill_is_passed_over_by_no_more_than_its_share() {
    let token = token(1, 2);
    let held = token.acquire(TASK, Priority::Decode);
    let prefill = token.line_up(TASK, Priority::Prefill);
    let decode: Vec<Ticket> = (0..4).map(|_| token.line_up(TASK, Priority::Decode)).collect();
    let ready = |tickets: &[Ticket]| tickets.iter().map(Ticket::is_ready).collect::<Vec<bool>>();
    assert_eq!(ready(&decode), [false; 4]);

    drop(held);
    assert_eq!((ready(&decode), prefill.is_ready()), (vec![true, false, false, false], false));
    let mut decode = decode.into_iter();
    decode.next();
    assert_eq!((ready(decode.as_slice()), prefill.is_ready()), (vec![true, false, false], false));
    decode.next();
    assert_eq!((ready(decode.as_slice()), prefill.is_ready()), (vec![false, false], true));
    drop(prefill);
    assert_eq!(ready(decode.as_slice()), [true, false]);
}

#[test]
fn a_timeout_names_the_holder_and_leaves_the_line() {
    let token = token(1, 1);
    let _held = token.acquire(TASK, Priority::Decode);
    let task = Task { operation: Operation::ExpertFfnW1, layer: Some(3), ..TASK };
    let error = token.acquire_within(task, Priority::Decode, Duration::from_millis(1)).unwrap_err();
    let text = "bandwidth token: expert_ffn_w1 got no permit in 1ms; held by lm_head";
    assert_eq!(error.to_string(), text);
    let metrics = token.metrics();
    assert_eq!((metrics.timed_out, metrics.waiting_decode), (1, 0));
    assert_eq!(metrics.holders[0].operation, "lm_head");
}

#[test]
fn a_permit_may_end_in_another_thread_and_wakes_who_waits() {
    let token = token(1, 1);
    let held = token.acquire(TASK, Priority::Prefill);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(token.acquire(TASK, Priority::Decode)));
        while token.metrics().waiting_decode == 0 {
            thread::yield_now();
        }
        scope.spawn(move || drop(held));
        waiting.join().unwrap();
    });
    let metrics = token.metrics();
    assert_eq!((metrics.granted_decode, metrics.granted_prefill), (1, 1));
    assert!(metrics.hold.total_ms > 0.0);
}

//! The gate of the bandwidth token under every interleaving of three threads that take the processor from each other up
//! to four times. `loom` runs them one after the other; without that bound it takes hours.
//!
//! The two files are compiled a second time here, with `loom`'s mutex and condition variable in the place of the
//! standard library's.

#![allow(unreachable_pub)]
#![expect(dead_code, reason = "not all of the two files is used here")]

#[path = "../src/bandwidth/token/gate.rs"]
mod gate;
#[path = "../src/bandwidth/token/queue.rs"]
mod queue;
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::Arc;
use loom::thread;

use gate::{Gate, Place};
use queue::Priority;

fn model(threads: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(threads);
}

/// A thread's part: waits for a permit, and checks that no more than `permits` threads have one.
fn hold(gate: &Arc<Gate>, inside: &AtomicUsize, permits: usize, priority: Priority) {
    let place = Place::new(gate, priority);
    place.wait(None);
    assert!(inside.fetch_add(1, Ordering::SeqCst) < permits);
    // Here others may run: the mutex is one of `loom`'s.
    gate.waiting();
    inside.fetch_sub(1, Ordering::SeqCst);
}

#[test]
fn who_waits_is_always_woken() {
    model(|| {
        let gate = Arc::new(Gate::new(1, 1));
        let inside = std::sync::Arc::new(AtomicUsize::new(0));
        let others = [Priority::Decode, Priority::Prefill].map(|priority| {
            let (gate, inside) = (Arc::clone(&gate), std::sync::Arc::clone(&inside));
            thread::spawn(move || hold(&gate, &inside, 1, priority))
        });
        hold(&gate, &inside, 1, Priority::Prefill);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(gate.waiting(), [0, 0]);
    });
}

#[test]
fn who_gives_up_takes_no_permit_along() {
    model(|| {
        let gate = Arc::new(Gate::new(1, 1));
        let inside = std::sync::Arc::new(AtomicUsize::new(0));
        let held = Place::new(&gate, Priority::Decode);
        let quitter = {
            let gate = Arc::clone(&gate);
            // It is granted its permit before it goes, or not.
            thread::spawn(move || drop(Place::new(&gate, Priority::Decode)))
        };
        let waiter = {
            let (gate, inside) = (Arc::clone(&gate), std::sync::Arc::clone(&inside));
            thread::spawn(move || hold(&gate, &inside, 1, Priority::Prefill))
        };
        drop(held);
        quitter.join().unwrap();
        waiter.join().unwrap();
        assert!(Place::new(&gate, Priority::Prefill).is_granted());
    });
}

#[test]
fn two_permits_are_held_by_two() {
    model(|| {
        let gate = Arc::new(Gate::new(2, 1));
        let inside = std::sync::Arc::new(AtomicUsize::new(0));
        let others = [Priority::Decode, Priority::Prefill].map(|priority| {
            let (gate, inside) = (Arc::clone(&gate), std::sync::Arc::clone(&inside));
            thread::spawn(move || hold(&gate, &inside, 2, priority))
        });
        hold(&gate, &inside, 2, Priority::Decode);
        for other in others {
            other.join().unwrap();
        }
    });
}

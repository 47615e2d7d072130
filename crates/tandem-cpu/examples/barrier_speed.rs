//! What handing work to the thread team costs.
//!
//! `cargo run --release -p tandem-cpu --example barrier_speed [-- THREADS..]` prints Markdown: nanoseconds of an
//! empty `run`, of one whose members have a few microseconds of work each, and of one after a pause as long as the
//! serial work between two operations. Each is measured with the machine as it is and with one busy thread of
//! someone else's, which is what makes barriers collapse that only spin. There the mean counts: the median does not
//! see the rounds in which a member had no core. On a machine that others use too, the fastest tenth tells most of
//! what a round costs.
#![allow(clippy::print_stdout)]

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tandem_cpu::{ThreadTeam, Topology};

/// Time for each figure.
const TIME: Duration = Duration::from_millis(1500);
/// Work of a member in a round that has some.
const WORK: Duration = Duration::from_micros(10);
/// What the caller does by itself between two rounds.
const PAUSE: Duration = Duration::from_micros(3);

fn main() {
    let threads: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    println!("| threads | foreign load | round | 10 % ns | median | 99 % | mean |");
    println!("|---|---|---|---|---|---|---|");
    for threads in threads {
        let mut team = ThreadTeam::new(threads).expect("threads");
        measure_all(&team, "none");
        with_busy_thread(|| measure_all(&team, "1 busy thread"));
        if team.pin(&Topology::detect().pin_order()).is_ok() {
            team.in_turn(threads, || measure_all(&team, "none, pinned"));
            with_busy_thread(|| {
                team.in_turn(threads, || measure_all(&team, "1 busy thread, pinned"));
            });
        }
    }
}

fn measure_all(team: &ThreadTeam, load: &str) {
    measure(team, load, "empty", Duration::ZERO, Duration::ZERO);
    measure(team, load, "10 us of work each", Duration::ZERO, WORK);
    measure(team, load, "empty, 3 us after the last", PAUSE, Duration::ZERO);
}

fn measure(team: &ThreadTeam, load: &str, name: &str, pause: Duration, work: Duration) {
    let mut times = Vec::with_capacity(1 << 22);
    let begin = Instant::now();
    while begin.elapsed() < TIME {
        burn(pause);
        let started = Instant::now();
        team.run(&|_| burn(work));
        times.push(started.elapsed());
    }
    let mean = times.iter().sum::<Duration>().as_nanos() / times.len() as u128;
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_nanos();
    println!(
        "| {} | {load} | {name} | {} | {} | {} | {mean} |",
        team.threads(),
        at(10),
        at(50),
        at(99)
    );
}

fn burn(time: Duration) {
    if time.is_zero() {
        return;
    }
    let begin = Instant::now();
    while begin.elapsed() < time {
        spin_loop();
    }
}

/// Calls `f` while a thread that has nothing to do with the team keeps a core busy.
fn with_busy_thread(f: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also where `f` panics, as it does when nobody reads the output.
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                spin_loop();
            }
        });
        f();
    });
}

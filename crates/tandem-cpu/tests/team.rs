//! The thread team under stress.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tandem_cpu::ThreadTeam;

/// Sizes around and well above the number of cores of any machine that tests run on.
const SIZES: [usize; 5] = [1, 2, 3, 8, 33];

#[test]
fn no_team_of_none() {
    assert_eq!(ThreadTeam::new(0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn every_member_runs_once_each_time() {
    for threads in SIZES {
        let team = ThreadTeam::new(threads).unwrap();
        assert_eq!(team.threads(), threads);
        let counts: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..=500 {
            team.run(&|member| {
                counts[member].fetch_add(1, Ordering::Relaxed);
            });
            // The end of `run` is a barrier: all of it is visible now.
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round));
        }
    }
}

#[test]
fn members_are_threads_that_stay() {
    let team = ThreadTeam::new(4).unwrap();
    let seen = Mutex::new(HashSet::new());
    for _ in 0..50 {
        team.run(&|member| {
            seen.lock().unwrap().insert((member, std::thread::current().id()));
        });
    }
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen.contains(&(0, std::thread::current().id())));
}

#[test]
fn chunks_cover_every_item_once() {
    for threads in SIZES {
        let team = ThreadTeam::new(threads).unwrap();
        for (items, chunk) in
            [(0, 1), (1, 1), (7, 0), (7, 100), (100, 7), (1000, 1), (64, 64), (65, 64)]
        {
            let counts: Vec<_> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            team.for_each_chunk(items, chunk, &|range| {
                assert!(!range.is_empty() && range.len() <= chunk.max(1));
                range.for_each(|item| {
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn a_huge_chunk_does_not_overflow() {
    let team = ThreadTeam::new(2).unwrap();
    let total = AtomicUsize::new(0);
    team.for_each_chunk(usize::MAX, usize::MAX / 2 + 1, &|range| {
        total.fetch_add(range.len(), Ordering::Relaxed);
    });
    assert_eq!(total.into_inner(), usize::MAX);
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_lives_on() {
    for threads in SIZES {
        let team = ThreadTeam::new(threads).unwrap();
        for culprit in 0..threads {
            let others = AtomicUsize::new(0);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|member| {
                    if member == culprit {
                        std::panic::panic_any(culprit);
                    }
                    others.fetch_add(1, Ordering::Relaxed);
                });
            }))
            .unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&culprit));
            if threads > 1 {
                assert_eq!(others.into_inner(), threads - 1);
            }
        }
        let count = AtomicUsize::new(0);
        team.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), threads);
    }
}

#[test]
fn all_members_may_panic() {
    let team = ThreadTeam::new(4).unwrap();
    for _ in 0..20 {
        assert!(catch_unwind(AssertUnwindSafe(|| team.run(&|_| panic!("all")))).is_err());
    }
    team.run(&|_| ());
}

#[test]
fn a_run_within_a_run_does_every_share() {
    let outer = ThreadTeam::new(3).unwrap();
    let inner = ThreadTeam::new(2).unwrap();
    for nested in [&outer, &inner] {
        let count = AtomicUsize::new(0);
        outer.run(&|_| {
            nested.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            nested.for_each_chunk(10, 3, &|range| {
                count.fetch_add(range.len(), Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 3 * (nested.threads() + 10));
    }
    // The mark of being inside is gone again: a run is parallel, on as many threads as before.
    let ids = Mutex::new(HashSet::new());
    outer.run(&|_| {
        ids.lock().unwrap().insert(std::thread::current().id());
    });
    assert_eq!(ids.into_inner().unwrap().len(), 3);
}

#[test]
fn callers_from_several_threads_take_turns() {
    let team = ThreadTeam::new(3).unwrap();
    let inside = AtomicUsize::new(0);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    team.run(&|_| {
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        total.fetch_add(1, Ordering::Relaxed);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 4 * 200 * 3);
}

#[test]
fn wakes_after_sleeping_and_ends_asleep_or_awake() {
    let team = ThreadTeam::new(4).unwrap();
    for pause in [0, 20, 200, 5000] {
        for _ in 0..5 {
            let count = AtomicUsize::new(0);
            team.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 4);
            std::thread::sleep(Duration::from_micros(pause));
        }
    }
    drop(team);
    for _ in 0..50 {
        drop(ThreadTeam::new(3).unwrap());
    }
}

/// Asks the system for the worker's state rather than a clock.
#[test]
#[cfg(target_os = "linux")]
fn an_idle_team_uses_no_cpu() {
    let team = ThreadTeam::new(2).unwrap();
    let worker = Mutex::new(String::new());
    team.run(&|member| {
        if member == 1 {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            *worker.lock().unwrap() = link.to_string_lossy().into_owned();
        }
    });
    let path = format!("/proc/{}/stat", worker.into_inner().unwrap());
    // The state follows the name, which is in parentheses.
    let asleep = || {
        let stat = std::fs::read_to_string(&path).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    };
    let settled = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        asleep()
    });
    assert!(settled, "the worker never slept");
}

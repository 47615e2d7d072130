//! The thread team under stress.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tandem_cpu::{ThreadTeam, Topology};
use tandem_testkit::Rng;

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
fn a_turn_may_do_with_fewer_members() {
    for threads in SIZES {
        let team = ThreadTeam::new(threads).unwrap();
        // Sizes in an order without pattern, so that members join and leave at every step.
        let mut rng = Rng::new(threads as u64);
        for _ in 0..500 {
            let members = 1 + rng.below(threads);
            let counts: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            team.in_turn(members, || {
                assert_eq!(team.threads(), members);
                for _ in 0..rng.below(3) {
                    team.run(&|member| {
                        assert_eq!(team.threads(), members);
                        counts[member].fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            let counts: Vec<_> = counts.into_iter().map(AtomicUsize::into_inner).collect();
            assert!(counts[..members].iter().all(|&count| count == counts[0]), "{counts:?}");
            assert!(counts[members..].iter().all(|&count| count == 0), "{counts:?}");
            assert_eq!((team.threads(), team.size()), (threads, threads));
        }
        // Numbers out of range mean the nearest that make sense.
        assert_eq!(team.in_turn(0, || team.threads()), 1);
        assert_eq!(team.in_turn(usize::MAX, || team.threads()), threads);
    }
}

#[test]
fn a_turn_is_one_caller_at_a_time() {
    for threads in [1, 3] {
        let team = ThreadTeam::new(threads).unwrap();
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for members in 1..=4 {
                let (team, inside, total) = (&team, &inside, &total);
                scope.spawn(move || {
                    for _ in 0..50 {
                        team.in_turn(members, || {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            for _ in 0..5 {
                                team.run(&|_| {
                                    total.fetch_add(1, Ordering::Relaxed);
                                });
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        let members: usize = (1..=4).map(|members| members.min(threads)).sum();
        assert_eq!(total.into_inner(), 50 * 5 * members);
    }
}

#[test]
fn turns_within_turns_never_deadlock() {
    let teams = [ThreadTeam::new(2).unwrap(), ThreadTeam::new(3).unwrap()];
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (outer, inner) in [(&teams[0], &teams[1]), (&teams[1], &teams[0])] {
            let total = &total;
            scope.spawn(move || {
                for _ in 0..200 {
                    outer.in_turn(2, || {
                        let caller = std::thread::current().id();
                        inner.in_turn(1, || {
                            inner.run(&|_| {
                                assert_eq!(std::thread::current().id(), caller);
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                            // The outer turn goes on.
                            assert_eq!(outer.threads(), 2);
                            outer.run(&|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 200 * (3 + 2 + 2 + 2));
}

#[test]
fn a_panic_ends_a_turn() {
    let team = ThreadTeam::new(2).unwrap();
    for _ in 0..20 {
        let turn = || team.in_turn(1, || panic!("in a turn"));
        assert!(catch_unwind(AssertUnwindSafe(turn)).is_err());
        assert_eq!(team.threads(), 2);
        let other = std::thread::scope(|scope| scope.spawn(|| team.in_turn(2, || 7)).join());
        assert_eq!(other.unwrap(), 7);
    }
}

#[test]
fn rounds_are_what_members_wait_for() {
    let team = ThreadTeam::new(3).unwrap();
    assert_eq!(team.rounds(), 0);
    team.run(&|_| ());
    team.for_each_chunk(10, 1, &|_| ());
    assert_eq!(team.rounds(), 2);
    // These are done by the caller alone.
    team.for_each_chunk(10, 10, &|_| ());
    team.in_turn(1, || team.run(&|_| ()));
    assert_eq!(team.rounds(), 2);
    team.run(&|_| team.run(&|_| ()));
    team.in_turn(2, || team.for_each_chunk(2, 1, &|_| ()));
    assert_eq!(team.rounds(), 4);
    let alone = ThreadTeam::new(1).unwrap();
    alone.run(&|_| ());
    assert_eq!(alone.rounds(), 0);
}

/// A member as slow as can be: it ends its first chunk when all chunks are done but those it took, a quarter of its
/// share. So the others must have done the rest of it. If shares were dealt out beforehand, they would wait for each
/// other.
#[test]
fn a_slow_member_gets_fewer_chunks() {
    const CHUNKS: usize = 200;
    for threads in [2, 5] {
        let team = ThreadTeam::new(threads).unwrap();
        let done = AtomicUsize::new(0);
        let taken = (CHUNKS / threads).div_ceil(4);
        let begin = Instant::now();
        team.for_each_chunk(CHUNKS, 1, &|range| {
            while range.start == 0 && done.load(Ordering::Acquire) < CHUNKS - taken {
                assert!(begin.elapsed() < Duration::from_secs(60), "chunks wait for a slow member");
                std::thread::yield_now();
            }
            done.fetch_add(1, Ordering::Release);
        });
        assert_eq!(done.into_inner(), CHUNKS);
    }
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

/// What the kernel says of the threads that run.
#[cfg(target_os = "linux")]
mod by_the_kernels_word {
    use super::*;

    /// The folder that tells of each member's thread.
    fn folders(team: &ThreadTeam) -> Vec<String> {
        let folders: Vec<_> = (0..team.size()).map(|_| Mutex::new(String::new())).collect();
        team.run(&|member| {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            *folders[member].lock().unwrap() = format!("/proc/{}", link.display());
        });
        folders.into_iter().map(|folder| folder.into_inner().unwrap()).collect()
    }

    fn status(folder: &str, field: &str) -> String {
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().trim().to_owned()
    }

    fn wait_until_asleep(folder: &str) {
        let settled = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            status(folder, "State").starts_with('S')
        });
        assert!(settled, "the worker never slept");
    }

    #[test]
    fn an_idle_team_uses_no_cpu() {
        let team = ThreadTeam::new(2).unwrap();
        wait_until_asleep(&folders(&team)[1]);
    }

    #[test]
    fn members_that_take_no_part_are_not_woken() {
        let team = ThreadTeam::new(4).unwrap();
        let folders = folders(&team);
        team.in_turn(2, || {
            folders[2..].iter().for_each(|folder| wait_until_asleep(folder));
            let sleeps = || [2, 3].map(|i| status(&folders[i], "voluntary_ctxt_switches"));
            let before = sleeps();
            let count = AtomicUsize::new(0);
            for _ in 0..500 {
                team.run(&|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
            assert_eq!((sleeps(), count.into_inner()), (before, 2 * 500));
        });
        // They are still there.
        let count = AtomicUsize::new(0);
        team.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 4);
    }

    #[test]
    fn members_are_bound_to_their_cpus() {
        let allowed = |folder: &str| status(folder, "Cpus_allowed_list");
        let free = allowed("/proc/thread-self");
        let cpus = Topology::detect().pin_order();
        let mut team = ThreadTeam::new(cpus.len()).unwrap();
        assert!(!team.is_pinned());
        team.pin(&cpus).unwrap();
        assert!(team.is_pinned());
        let turn = || {
            team.run(&|member| {
                assert_eq!(allowed("/proc/thread-self"), cpus[member].to_string());
            });
        };
        turn();
        team.in_turn(1, || assert_eq!(allowed("/proc/thread-self"), cpus[0].to_string()));
        // Whoever called is free again.
        assert_eq!(allowed("/proc/thread-self"), free);
        std::thread::scope(|scope| scope.spawn(turn).join()).unwrap();
    }

    #[test]
    fn where_binding_fails_all_members_stay_free() {
        let free = status("/proc/thread-self", "Cpus_allowed_list");
        let cpu = Topology::detect().pin_order()[0];
        let mut team = ThreadTeam::new(3).unwrap();
        for cpus in [&[][..], &[cpu, cpu], &[cpu, cpu, 8191], &[usize::MAX, cpu, cpu]] {
            team.pin(cpus).unwrap_err();
            assert!(!team.is_pinned());
            for folder in folders(&team) {
                assert_eq!(status(&folder, "Cpus_allowed_list"), free, "{cpus:?}");
            }
        }
    }
}

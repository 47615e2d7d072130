//! Several executors in one process, as in a server, that share one thread team.

use std::sync::Arc;

use tandem_cpu::{Cpu, ThreadTeam};
use tandem_golden::{Prompt, golden, golden_model};
use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_runtime::{Executor, LogitsFor, Model, Threads, evaluate};

/// Of the range of the reference's logits.
const BOUND: f32 = 1e-4;
const TEAM: usize = 3;

/// Every way to use a team: all of it, less for decode, less for prompts, more than there is.
const THREADS: [Threads; 4] = [
    Threads { decode: 3, prefill: 3 },
    Threads { decode: 1, prefill: 3 },
    Threads { decode: 2, prefill: 1 },
    Threads { decode: 64, prefill: 64 },
];

fn kv(model: &Model) -> KvCache {
    let c = model.config();
    KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, c.context_length, KvType::F32).unwrap()
}

/// The reference's logits and greedy tokens, computed by an executor that others disturb.
fn check(executor: &mut Executor, kv: &mut KvCache, prompt: &Prompt) {
    let logits = evaluate(executor, kv, &prompt.ids, LogitsFor::All, None).unwrap();
    prompt.check_logits(&logits, BOUND);
    let vocab = executor.model().config().vocab_size;
    let mut logits = logits[logits.len() - vocab..].to_vec();
    for (n, &expected) in prompt.greedy.iter().enumerate() {
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best, expected, "{}: greedy token {n}", prompt.name);
        logits = executor.forward(&[best], kv, LogitsFor::Last, None).unwrap().to_vec();
    }
}

#[test]
fn executors_share_a_team_and_its_threads_are_all_there_are() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 1, &|_| {}).unwrap());
    let team = Arc::new(ThreadTeam::new(TEAM).unwrap());
    let prompts = golden();
    std::thread::scope(|scope| {
        for threads in THREADS {
            let (model, team, prompts) = (Arc::clone(&model), Arc::clone(&team), &prompts);
            scope.spawn(move || {
                let mut kv = kv(&model);
                let mut executor = Executor::with_cpu(model, Cpu::new(team), threads, 16);
                for prompt in prompts {
                    check(&mut executor, &mut kv, prompt);
                }
                assert_eq!(team_threads(), TEAM - 1);
            });
        }
    });
    assert!(team.rounds() > 0);
}

/// Threads of this process that belong to a team, by the system's word.
#[cfg(target_os = "linux")]
fn team_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("tandem-")).count()
}

#[cfg(not(target_os = "linux"))]
fn team_threads() -> usize {
    TEAM - 1
}

#[test]
fn threads_are_chosen_by_the_number_of_tokens() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 1, &|_| {}).unwrap());
    let team = Arc::new(ThreadTeam::new(TEAM).unwrap());
    let mut kv = kv(&model);
    // Alone there is nobody to wait for, so rounds tell who was at work.
    let mut rounds = |threads, tokens: u32| {
        let mut executor =
            Executor::with_cpu(Arc::clone(&model), Cpu::new(Arc::clone(&team)), threads, 64);
        let before = team.rounds();
        kv.clear();
        let ids: Vec<u32> = (0..tokens).collect();
        executor.forward(&ids, &mut kv, LogitsFor::Last, None).unwrap();
        team.rounds() - before
    };
    let (decode_alone, prefill_alone) =
        (Threads { decode: 1, prefill: TEAM }, Threads { decode: TEAM, prefill: 1 });
    for tokens in [1, 8] {
        assert_eq!(rounds(decode_alone, tokens), 0);
        assert!(rounds(prefill_alone, tokens) > 0);
    }
    for tokens in [9, 64] {
        assert!(rounds(decode_alone, tokens) > 0);
        assert_eq!(rounds(prefill_alone, tokens), 0);
    }
}

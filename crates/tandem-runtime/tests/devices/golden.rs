//! Logits, router choices and greedy tokens.

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_memory::{KvType, Packing};
use tandem_model::PhimoeConfig;
use tandem_runtime::Operation as Op;
use tandem_runtime::plan::{Placement, Plan};

use super::support::BOUND;
use super::{on_every_gpu, setup};

/// Ways of sharing out a pass.
const PLANS: [fn(&PhimoeConfig) -> Plan; 6] = [
    |config| Plan::everything(config, Placement::Igpu),
    partition,
    |config| Plan::everything(config, Placement::Split(0.0)),
    |config| Plan::everything(config, Placement::Split(0.3)),
    |config| Plan::everything(config, Placement::Split(0.5)),
    |config| Plan::everything(config, Placement::Split(1.0)),
];

/// Large products and what lies between them on the GPU, what decides on the CPU; attention here and there.
fn partition(config: &PhimoeConfig) -> Plan {
    let mut plan = Plan::everything(config, Placement::Cpu);
    for operation in [
        Op::AttentionQkvProj,
        Op::AttentionOutputProj,
        Op::ExpertDispatch,
        Op::ExpertFfnW1,
        Op::ExpertFfnActivation,
        Op::ExpertFfnW2,
        Op::ExpertGather,
    ] {
        plan.set_everywhere(operation, Placement::Igpu);
    }
    plan.set(Op::AttentionCompute, Some(1), Placement::Igpu);
    plan
}

#[test]
fn the_random_model() {
    on_every_gpu(|what, gpu| {
        for (n, plan) in PLANS.into_iter().enumerate() {
            println!("{what}, plan {n}");
            let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            for prompt in golden() {
                setup.check_prompt(&prompt, BOUND);
                setup.check_greedy(&prompt);
            }
        }
    });
}

#[test]
fn the_trained_model() {
    on_every_gpu(|what, gpu| {
        for (n, plan) in PLANS.into_iter().enumerate() {
            println!("{what}, plan {n}");
            let mut setup = setup(gpu(), &stories_bf16(), Packing::AsInFile, KvType::F32, plan);
            let prompt = &stories()[0];
            setup.check_prompt(prompt, BOUND);
            setup.check_greedy(prompt);
        }
    });
}

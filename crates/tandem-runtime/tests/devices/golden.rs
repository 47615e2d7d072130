//! Logits, router choices and greedy tokens.

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_memory::{KvType, Packing};
use tandem_model::PhimoeConfig;
use tandem_runtime::plan::{Placement, Plan};

use super::support::BOUND;
use super::{on_every_gpu, setup};

fn all_on_the_gpu(config: &PhimoeConfig) -> Plan {
    Plan::everything(config, Placement::Igpu)
}

#[test]
fn the_random_model_all_on_the_gpu() {
    on_every_gpu(|what, gpu| {
        println!("{what}");
        let mut setup =
            setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        for prompt in golden() {
            setup.check_prompt(&prompt, BOUND);
            setup.check_greedy(&prompt);
        }
    });
}

#[test]
fn the_trained_model_all_on_the_gpu() {
    on_every_gpu(|what, gpu| {
        println!("{what}");
        let mut setup =
            setup(gpu(), &stories_bf16(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        let prompt = &stories()[0];
        setup.check_prompt(prompt, BOUND);
        setup.check_greedy(prompt);
    });
}

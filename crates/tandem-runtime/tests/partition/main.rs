//! The partition config, read and refused; and what becomes of it.

mod settings;

use std::path::Path;

use proptest::prelude::*;
use tandem_model::PhimoeConfig;
use tandem_runtime::calibrate::{Candidate, Choice, Choices};
use tandem_runtime::partition::Partition;
use tandem_runtime::plan::{PassSize, Placement, Plan};
use tandem_runtime::{Operation, partition};
use tandem_testkit::testdata;

const SHIPPED: &str = include_str!("../../../../configs/partition.yaml");

const NAMES: [&str; 2] = ["Phi-tiny-MoE-instruct", "phi-q4"];

/// Phi-tiny-MoE: 32 layers, 16 experts.
fn config() -> PhimoeConfig {
    let path = testdata("phi-tiny-moe/config.json");
    PhimoeConfig::from_json_bytes(&path, &std::fs::read(&path).unwrap()).unwrap()
}

fn parse(text: &str) -> Result<Partition, partition::PartitionError> {
    Partition::parse(Path::new("p.yaml"), text, &config(), &NAMES)
}

fn read(text: &str) -> Partition {
    parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// The plan of a pass, nothing measured.
fn plan(partition: &Partition, tokens: usize, context: usize) -> Plan {
    partition.planner(&config(), None).plan(tokens, context).clone()
}

/// Where an operation of the first layer, or of none, is computed by a config when one token is decoded.
fn place(text: &str, operation: Operation) -> Placement {
    let layer = operation.is_of_layers().then_some(0);
    plan(&read(text), 1, 1).placement(operation, layer)
}

#[test]
fn the_shipped_file_is_the_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/partition.yaml");
    let shipped = Partition::read(&path, &config(), &NAMES).unwrap();
    // Lines differ, and so do reasons.
    let (planner, usual) =
        (shipped.planner(&config(), None), Partition::default().planner(&config(), None));
    assert_eq!(planner, usual);
    let empty = read("");
    assert_eq!(empty, Partition::default());
    assert_eq!(settings::of(&shipped), settings::of(&empty));
}

#[test]
fn the_default_partition() {
    use Operation as O;
    for (tokens, context, attention) in [
        (1, 1, Placement::Cpu),
        (3, 512, Placement::Cpu),
        (4, 4, Placement::Igpu),
        (1, 513, Placement::Igpu),
        (256, 4000, Placement::Igpu),
    ] {
        let plan = plan(&Partition::default(), tokens, context);
        for step in plan.steps() {
            let expected = match step.operation {
                O::AttentionCompute | O::AttentionOutputProj => attention,
                O::AttentionQkvProj
                | O::ExpertDispatch
                | O::ExpertFfnW1
                | O::ExpertFfnActivation
                | O::ExpertFfnW2
                | O::ExpertGather => Placement::Igpu,
                _ => Placement::Cpu,
            };
            assert_eq!(step.placement, expected, "{} {tokens} {context}", step.operation.name());
        }
    }
}

#[test]
fn both_spellings_of_the_table() {
    for text in [
        "static_partition:\n  lm_head: igpu\n",
        "static_partition:\n  layer_operations:\n    lm_head: igpu\n",
    ] {
        assert_eq!(place(text, Operation::LmHead), Placement::Igpu);
        assert_eq!(place(text, Operation::Embedding), Placement::Cpu);
    }
}

#[test]
fn ratios_are_written_in_three_ways() {
    for (value, ratio) in [("split=0.3", 0.3), ("{split: 0.25}", 0.25), ("split", 0.5)] {
        let text = format!("static_partition: {{lm_head: {value}}}");
        assert_eq!(place(&text, Operation::LmHead), Placement::Split(ratio), "{value}");
    }
    let text = "global: {max_cpu_bandwidth: 60, max_igpu_bandwidth: 20}\nstatic_partition: {lm_head: split}";
    assert_eq!(place(text, Operation::LmHead), Placement::Split(0.25));
}

#[test]
fn groups_and_other_names() {
    use Operation as O;
    let ffn = "static_partition:\n  expert_ffn: split=0.5\n";
    assert_eq!(place(ffn, O::ExpertFfnW1), Placement::Split(0.5));
    assert_eq!(place(ffn, O::ExpertFfnActivation), Placement::Cpu);
    assert_eq!(place(ffn, O::ExpertFfnW2), Placement::Split(0.5));
    let parts = "static_partition:\n  expert_ffn_w1: split=0.5\n  expert_ffn_w2: cpu\n";
    assert_eq!(place(parts, O::ExpertFfnW1), Placement::Split(0.5));
    assert_eq!(place(parts, O::ExpertFfnActivation), Placement::Igpu);
    assert_eq!(place(parts, O::ExpertFfnW2), Placement::Cpu);
    let names = "static_partition:\n  position_encoding: igpu\n  expert_masking: igpu\n";
    assert_eq!(place(names, O::AttentionCompute), Placement::Igpu);
    assert_eq!(place(names, O::ExpertSelection), Placement::Igpu);
    read("static_partition:\n  position_encoding: cpu\n  attention_compute: cpu\n");
}

#[test]
fn the_first_override_that_names_an_operation_counts() {
    let text = "layer_overrides:\n  layer_2_5: {expert_ffn: cpu}\n  layer_0_9: {expert_ffn: split=0.1, attention_qkv_proj: cpu}\n";
    let plan = plan(&read(text), 1, 1);
    let ffn = |layer| plan.placement(Operation::ExpertFfnW1, Some(layer));
    let qkv = |layer| plan.placement(Operation::AttentionQkvProj, Some(layer));
    assert_eq!([0, 1, 2, 5, 6, 9, 10, 31].map(ffn), {
        use Placement::{Cpu, Igpu, Split};
        [Split(0.1), Split(0.1), Cpu, Cpu, Split(0.1), Split(0.1), Igpu, Igpu]
    });
    assert_eq!([0, 3, 9].map(qkv), [Placement::Cpu; 3]);
    assert_eq!(qkv(10), Placement::Igpu);
}

#[test]
fn thresholds_decide_what_is_not_measured() {
    let text = "static_partition: {expert_ffn: auto, attention_compute: auto, lm_head: auto, attention_qkv_proj: auto}\n\
        dynamic_thresholds:\n  attention_to_cpu: {sequence_length_max: 100, batch_size_min: 30}\n  expert_to_cpu: {tokens_per_expert_min: 3}\n";
    let partition = read(text);
    let at = |tokens, context| {
        let plan = plan(&partition, tokens, context);
        let of = |operation| plan.placement(operation, Some(7)) == Placement::Igpu;
        (of(Operation::AttentionCompute), of(Operation::ExpertFfnW2))
    };
    assert_eq!(at(1, 100), (false, false));
    assert_eq!(at(1, 101), (true, false));
    // 24 tokens with two experts each are 3 for each of 16.
    assert_eq!(at(23, 23), (false, false));
    assert_eq!(at(24, 24), (false, true));
    assert_eq!(at(30, 30), (true, true));
    assert_eq!(at(256, 4096), (true, true));
    let plan = plan(&partition, 1, 1);
    assert_eq!(plan.placement(Operation::LmHead, None), Placement::Cpu);
    assert_eq!(plan.placement(Operation::AttentionQkvProj, Some(0)), Placement::Igpu);
}

#[test]
fn measurements_decide_what_is_auto() {
    let choice = |tokens, best| Choice {
        pass: PassSize { tokens, context: 0 },
        best,
        split_ratio: Some(0.4),
    };
    let measured =
        Choices::new(vec![choice(1, Candidate::Split(0.7)), choice(64, Candidate::Igpu)]);
    let auto = Partition::everything(partition::Wanted::Auto).planner(&config(), Some(&measured));
    let everything = |placement| Plan::everything(&config(), placement);
    assert_eq!(auto.plan(1, 1), &everything(Placement::Split(0.7)));
    assert_eq!(auto.plan(63, 4000), &everything(Placement::Split(0.7)));
    assert_eq!(auto.plan(64, 64), &everything(Placement::Igpu));
    assert_eq!(auto.cases().len(), 2);

    let some = read("static_partition: {lm_head: split, embedding: auto, router_logits: igpu}");
    let planner = some.planner(&config(), Some(&measured));
    let decode = planner.plan(1, 1);
    assert_eq!(decode.placement(Operation::LmHead, None), Placement::Split(0.4));
    assert_eq!(decode.placement(Operation::Embedding, None), Placement::Cpu);
    assert_eq!(decode.placement(Operation::RouterLogits, Some(0)), Placement::Igpu);
    assert_eq!(planner.plan(64, 64).placement(Operation::Embedding, None), Placement::Igpu);

    let usual = Choices::new(vec![choice(1, Candidate::Usual)]);
    let planner = Partition::everything(partition::Wanted::Auto).planner(&config(), Some(&usual));
    assert_eq!(planner, Partition::default().planner(&config(), None));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (text, expected) in [
        ("a: [", "p.yaml:1: not YAML: "),
        ("- cpu", "p.yaml:1: the file: expected a section with keys, found a list"),
        ("globl: {}", "p.yaml:1: globl: there is no such key; the nearest is `global`"),
        (
            "static_partition:\n  attention_qvk_proj: cpu",
            "p.yaml:2: static_partition.attention_qvk_proj: there is no such key; the nearest is \
             `attention_qkv_proj`",
        ),
        (
            "static_partition:\n  layer_operations:\n    lm_hed: cpu",
            "p.yaml:3: static_partition.layer_operations.lm_hed: there is no such key; the nearest is `lm_head`",
        ),
        (
            "static_partition:\n  layer_operations: {}\n  lm_head: cpu",
            "p.yaml:3: static_partition.lm_head: there is no such key; the nearest is `layer_operations`",
        ),
        (
            "static_partition:\n\n  lm_head: gpu",
            "p.yaml:3: static_partition.lm_head: expected cpu, igpu, auto, split or split=R with R from 0 to 1, \
             the GPU's part of the rows, found 'gpu'",
        ),
        (
            "static_partition:\n  lm_head: {split: 2}",
            "p.yaml:2: static_partition.lm_head.split: expected a number from 0 to 1, found 2",
        ),
        (
            "static_partition:\n  lm_head: {splt: 0.2}",
            "p.yaml:2: static_partition.lm_head.splt: there is no such key; the nearest is `split`",
        ),
        (
            "static_partition:\n  lm_head: 1",
            "p.yaml:2: static_partition.lm_head: expected cpu, igpu, auto or split, found 1",
        ),
        (
            "static_partition:\n  router_logits: split",
            "p.yaml:2: static_partition.router_logits: expected cpu, igpu or auto: only the rows of \
             attention_qkv_proj, attention_output_proj, expert_ffn and lm_head can be split, found 'split'",
        ),
        (
            "static_partition:\n  attention_compute: cpu\n  position_encoding: igpu",
            "p.yaml:3: static_partition.position_encoding: expected what line 2 wants of attention_compute: cpu, \
             found 'igpu'",
        ),
        (
            "static_partition:\n  expert_ffn_w2: cpu\n  expert_ffn: igpu",
            "p.yaml:3: static_partition.expert_ffn: expected what line 2 wants of expert_ffn_w2: cpu, found 'igpu'",
        ),
        (
            "global:\n  num_layers: 31",
            "p.yaml:2: global.num_layers: expected 32, as the model has, found 31",
        ),
        (
            "global:\n  num_experts: 8",
            "p.yaml:2: global.num_experts: expected 16, as the model has, found 8",
        ),
        (
            "global:\n  experts_per_token: 3",
            "p.yaml:2: global.experts_per_token: expected 2, as the model has, found 3",
        ),
        (
            "global:\n  model_name: Phi-mini-MoE-instruct",
            "p.yaml:2: global.model_name: expected 'Phi-tiny-MoE-instruct' or 'phi-q4', found 'Phi-mini-MoE-instruct'",
        ),
        (
            "global:\n  cpu_memory_limit: 0",
            "p.yaml:2: global.cpu_memory_limit: expected a whole number from 1 to 1048576, found 0",
        ),
        (
            "global:\n  max_cpu_bandwidth: fast",
            "p.yaml:2: global.max_cpu_bandwidth: expected a number from 0.001 to 1000, found 'fast'",
        ),
        (
            "dynamic_thresholds:\n  attention_to_cpu:\n    batch_size_min: 1.5",
            "p.yaml:3: dynamic_thresholds.attention_to_cpu.batch_size_min: expected a whole number from 0 to 1048576, \
             found 1.5",
        ),
        (
            "layer_overrides:\n  layer_30_32: {}",
            "p.yaml:2: layer_overrides.layer_30_32: expected layer_A_B with A up to B, and B up to 31, the last layer, \
             found 'layer_30_32'",
        ),
        (
            "layer_overrides:\n  layer_3_2: {}",
            "p.yaml:2: layer_overrides.layer_3_2: expected layer_A_B with A",
        ),
        (
            "layer_overrides:\n  layers_0_1: {}",
            "p.yaml:2: layer_overrides.layers_0_1: expected layer_A_B with A",
        ),
        (
            "layer_overrides:\n  layer_0_1:\n    lm_head: cpu",
            "p.yaml:3: layer_overrides.layer_0_1.lm_head: expected an operation that layers have, found 'lm_head'",
        ),
    ] {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{text}:\n{message}\n{expected}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn names_of_models_are_compared_as_people_write_them() {
    for name in ["microsoft/Phi-tiny-MoE-instruct", "phi_tiny_moe_instruct", "PHI-Q4"] {
        read(&format!("global: {{model_name: {name}}}"));
    }
}

#[test]
fn a_file_that_is_not_there() {
    let path = Path::new("/nowhere/p.yaml");
    let message = Partition::read(path, &config(), &NAMES).unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/p.yaml: cannot be read: No such file"), "{message}");
}

#[test]
fn files_made_to_do_harm_are_refused() {
    let bomb: String = std::iter::once("a0: &a0 [x, x]\n".to_owned())
        .chain((1..40).map(|n| {
            let before = n - 1;
            format!("a{n}: &a{n} [*a{before}, *a{before}, *a{before}, *a{before}]\n")
        }))
        .collect();
    let deep = format!("a: {}", "[".repeat(100_000));
    for text in [
        bomb,
        deep,
        "a: 1e400\n".to_owned(),
        "layer_overrides: {layer_0_99999999999999999999: {}}".to_owned(),
    ] {
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.starts_with("p.yaml:"), "{message}");
        assert!(message.len() < 400, "{message}");
    }
}

proptest! {
    /// The shipped file with some of its bytes replaced is read or refused, in one line.
    #[test]
    fn damaged_files_are_read_or_refused(
        damage in proptest::collection::vec((0usize..1500, "[a-z0-9:{}\\[\\]&*\\-\\n #'\"|>.]"), 1..6),
    ) {
        let mut text: Vec<char> = SHIPPED.lines().filter(|line| !line.trim_start().starts_with('#'))
            .collect::<Vec<_>>().join("\n").chars().collect();
        for (place, with) in damage {
            let place = place % text.len();
            text.splice(place..=place, with.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
        }
    }
}

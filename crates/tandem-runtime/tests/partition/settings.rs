//! The keys that do not place operations: every one changes something, or is refused.

use tandem_runtime::partition::{Conditions, Partition};
use tandem_runtime::plan::{ExpertRange, PassSize, Placement};
use tandem_runtime::{Operation as O, policy::PolicyKind};

use super::{config, parse, plan, read};

/// All that a config says beside places.
pub(super) fn of(partition: &Partition) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        partition.limits(),
        partition.scheduling(),
        partition.bandwidth(),
        partition.expert_cache(0),
        partition.memory(),
        partition.telemetry(),
        partition.fallback()
    )
}

/// Another value than the default for every key, one after the other: what it comes to differs.
#[test]
fn every_key_changes_something() {
    let usual = read("");
    for text in [
        "global: {cpu_memory_limit: 1}",
        "global: {igpu_memory_limit: 1}",
        "global: {max_cpu_bandwidth: 1}",
        "global: {max_igpu_bandwidth: 1}",
        "global: {scheduling_policy: static}",
        "global: {scheduling_policy: adaptive}",
        "global: {enable_pipelining: false}",
        "global: {enable_double_buffering: false}",
        "global: {micro_batch_size: 5}",
        "bandwidth_control: {enable_token_semaphore: false}",
        "bandwidth_control: {heavy_operations: []}",
        "bandwidth_control: {heavy_operations: [lm_head, attention_qkv_proj]}",
        "bandwidth_control: {monitoring_interval_ms: 11}",
        "bandwidth_control: {bandwidth_window_size: 51}",
        "bandwidth_control: {throttle_threshold: 0.5}",
        "bandwidth_control: {throttle_action: delay_launch}",
        "bandwidth_control: {throttle_action: fallback_cpu}",
        "pipelining: {expert_staging: {buffer_count: 3}}",
        "pipelining: {expert_staging: {experts_per_buffer: 3}}",
        "pipelining: {expert_staging: {prefetch_strategy: sequential}}",
        "memory: {use_usm: false}",
        "memory: {usm_mode: device}",
        "memory: {staging_buffer_size_mb: 1}",
        "memory: {expert_cache: {enabled: false}}",
        "memory: {expert_cache: {cache_size_mb: 1}}",
        "telemetry: {enabled: false}",
        "telemetry: {output_format: csv}",
        "telemetry: {output_format: console}",
        "telemetry: {output_path: t.json}",
        "telemetry: {metrics: [queue_depth]}",
        "telemetry: {enable_level_zero_profiling: true}",
        "telemetry: {enable_device_event_profiling: true}",
        "fallback: {enable_cpu_fallback: false}",
        "fallback: {fallback_triggers: [igpu_error]}",
        "fallback: {degradation_steps: [full_cpu_mode, disable_pipelining]}",
    ] {
        assert_ne!(of(&read(text)), of(&usual), "{text}");
    }
    // What has one value only, or says what the default is.
    for text in [
        "memory: {expert_cache: {eviction_policy: lru}}",
        "memory: {usm_mode: host, use_usm: true}",
        "telemetry: {enable_vtune: false}",
        "pipelining: {stages: []}",
        "global: {scheduling_policy: bandwidth_aware}",
    ] {
        assert_eq!(of(&read(text)), of(&usual), "{text}");
    }
}

#[test]
fn conditions_decide_what_is_not_measured() {
    let text = "static_partition: {expert_ffn: auto}\n\
                dynamic_thresholds: {expert_to_cpu: {cpu_idle: 0.4, igpu_memory_pressure: 0.7}}";
    let at = |text: &str, tokens, igpu_memory_pressure, cpu_idle| {
        let partition = read(text).under(Conditions { igpu_memory_pressure, cpu_idle });
        let pass = PassSize { tokens, context: tokens };
        let decision = partition.decide(&config(), None, pass, O::ExpertFfnW1, Some(0));
        (decision.placement, decision.reason.to_string())
    };
    let cpu = |reason: &str| (Placement::Cpu, reason.to_owned());
    let igpu = |reason: &str| (Placement::Igpu, reason.to_owned());
    assert_eq!(at(text, 1, 0.0, 1.0), cpu("auto: fewer than 2 tokens an expert"));
    assert_eq!(at(text, 1, 0.7, 0.4), cpu("auto: fewer than 2 tokens an expert"));
    assert_eq!(at(text, 1, 0.0, 0.39), igpu("auto: other programs leave the CPU 39 % of its time"));
    assert_eq!(at(text, 64, 0.7, 1.0), igpu("auto: 2 tokens an expert or more"));
    let full = "auto: weights and KV cache take 71 % of the GPU's memory";
    assert_eq!(at(text, 64, 0.71, 0.0), cpu(full));
    // By default the CPU must be half idle, and four fifths may be taken.
    let usual = "static_partition: {expert_ffn: auto}";
    assert_eq!(at(usual, 1, 0.0, 0.49).0, Placement::Igpu);
    assert_eq!(at(usual, 64, 0.81, 1.0).0, Placement::Cpu);
}

const FOUR: &str = "pipelining:\n  stages:\n\
    \x20   - {name: cpu_router, device: cpu, operations: [router_logits, expert_selection]}\n\
    \x20   - {name: igpu_expert_0_7, device: igpu, operations: [expert_ffn], expert_range: [0, 7]}\n\
    \x20   - {name: igpu_expert_8_15, device: igpu, operations: [expert_ffn], expert_range: [8, 15]}\n\
    \x20   - {name: cpu_attention, device: cpu, operations: [attention_compute, attention_output_proj]}\n";

#[test]
fn stages_place_their_operations() {
    let place = |text: &str, operation: O| {
        plan(&read(text), 64, 64).placement(operation, operation.is_of_layers().then_some(3))
    };
    // The table would have attention of a prompt on the GPU.
    assert_eq!(place("", O::AttentionCompute), Placement::Igpu);
    assert_eq!(place(FOUR, O::AttentionCompute), Placement::Cpu);
    assert_eq!(place(FOUR, O::ExpertFfnW1), Placement::Igpu);
    let names: Vec<_> = read(FOUR).pipelining().stages.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names, ["cpu_router", "igpu_expert_0_7", "igpu_expert_8_15", "cpu_attention"]);
    // Half of the experts on each device.
    let half = FOUR.replace("igpu_expert_8_15, device: igpu", "igpu_expert_8_15, device: cpu");
    let range = ExpertRange { first: 0, last: 7 };
    assert_eq!(place(&half, O::ExpertFfnW1), Placement::Experts(range));
    assert_eq!(place(&half, O::ExpertFfnW2), Placement::Experts(range));
    assert_eq!(place(&half, O::ExpertFfnActivation), Placement::Cpu);
    // Overrides come before stages, and without pipelining there are none.
    let overridden = format!("{half}layer_overrides: {{layer_3_3: {{expert_ffn: cpu}}}}");
    assert_eq!(place(&overridden, O::ExpertFfnW1), Placement::Cpu);
    let off = format!("global: {{enable_pipelining: false}}\n{half}");
    assert_eq!(place(&off, O::ExpertFfnW1), Placement::Igpu);
    let split = "pipelining: {stages: [{name: a, device: split=0.2, operations: [lm_head]}]}";
    assert_eq!(place(split, O::LmHead), Placement::Split(0.2));
}

#[test]
fn what_makes_no_sense_in_settings_is_refused() {
    let stage = |text: &str| format!("pipelining:\n  stages:\n    - {{{text}}}");
    for (text, expected) in [
        (
            "global: {scheduling_policy: adaptve}".to_owned(),
            "p.yaml:1: global.scheduling_policy: expected static, bandwidth_aware or adaptive, found 'adaptve'",
        ),
        (
            "global: {enable_pipelining: 1}".to_owned(),
            "p.yaml:1: global.enable_pipelining: expected true or false, found 1",
        ),
        (
            "global: {micro_batch_size: 0}".to_owned(),
            "p.yaml:1: global.micro_batch_size: expected a whole number from 1 to 65536, found 0",
        ),
        (
            "bandwidth_control: {throttle_acton: x}".to_owned(),
            "p.yaml:1: bandwidth_control.throttle_acton: there is no such key; the nearest is `throttle_action`",
        ),
        (
            "bandwidth_control:\n  heavy_operations:\n    - lm_head\n    - lm_haed".to_owned(),
            "p.yaml:4: bandwidth_control.heavy_operations: expected expert_weight_load, attention_kv_cache_load, \
             embedding_lookup, lm_head or the name of an operation, found 'lm_haed'",
        ),
        (
            "bandwidth_control: {heavy_operations: lm_head}".to_owned(),
            "p.yaml:1: bandwidth_control.heavy_operations: expected a list, found 'lm_head'",
        ),
        (
            "memory: {usm_mode: shared}".to_owned(),
            "p.yaml:1: memory.usm_mode: expected host or device: older drivers do not cache `shared`",
        ),
        (
            "memory: {expert_cache: {eviction_policy: fifo}}".to_owned(),
            "p.yaml:1: memory.expert_cache.eviction_policy: expected lru, found 'fifo'",
        ),
        (
            "telemetry: {metrics: [queue_depth, queue_depth]}".to_owned(),
            "p.yaml:1: telemetry.metrics: expected every name once, found 'queue_depth'",
        ),
        (
            "telemetry: {output_format: console, output_path: a}".to_owned(),
            "p.yaml:1: telemetry.output_path: expected no path, where output_format is console, found 'a'",
        ),
        (
            "telemetry: {enable_level_zero_profiling: true, enable_device_event_profiling: false}"
                .to_owned(),
            "p.yaml:1: telemetry.enable_device_event_profiling: expected true, as enable_level_zero_profiling says",
        ),
        (
            "fallback: {fallback_triggers: [igpu_eror]}".to_owned(),
            "p.yaml:1: fallback.fallback_triggers: expected igpu_allocation_failure, igpu_kernel_timeout or \
             igpu_error, found 'igpu_eror'",
        ),
        (
            stage("name: a, device: cpu"),
            "p.yaml:3: pipelining.stages[0]: expected a stage with name, device and operations, found name, device",
        ),
        (
            stage("name: a, device: gpu, operations: [lm_head]"),
            "p.yaml:3: pipelining.stages[0].device: expected cpu, igpu, auto, split",
        ),
        (
            stage("name: a, device: cpu, operations: [lm_hed]"),
            "p.yaml:3: pipelining.stages[0].operations: expected the name of an operation, as in static_partition, \
             found 'lm_hed'",
        ),
        (
            stage("name: a, device: split, operations: [router_logits]"),
            "p.yaml:3: pipelining.stages[0].operations: expected an operation that can be split",
        ),
        (
            stage("name: a, device: igpu, operations: [lm_head], expert_range: [0, 7]"),
            "p.yaml:3: pipelining.stages[0].operations: expected expert_ffn or its parts",
        ),
        (
            stage("name: a, device: igpu, operations: [expert_ffn], expert_range: [0, 16]"),
            "p.yaml:3: pipelining.stages[0].expert_range: expected [A, B] with A up to B, and B up to 15, the last \
             expert, found a list",
        ),
        (
            stage("name: a, device: auto, operations: [expert_ffn], expert_range: [0, 1]"),
            "p.yaml:3: pipelining.stages[0].device: expected cpu or igpu, found 'auto'",
        ),
        (
            FOUR.replace("[8, 15]", "[7, 15]"),
            "p.yaml:5: pipelining.stages[2]: expected experts that no other stage has",
        ),
        (
            FOUR.replace("[8, 15]", "[9, 15]"),
            "p.yaml:2: pipelining: expected the GPU's experts in one run, with no others between",
        ),
        (
            FOUR.replace("attention_output_proj", "router_logits"),
            "p.yaml:6: pipelining.stages[3].operations: expected an operation that no other stage has, found \
             'router_logits'",
        ),
    ] {
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{text}:\n{message}\n{expected}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    if cfg!(not(feature = "itt")) {
        let message = parse("telemetry: {enable_vtune: true}").unwrap_err().to_string();
        assert!(message.contains("built without the feature `itt`"), "{message}");
    }
}

#[test]
fn what_counts_at_the_next_start_is_named() {
    let usual = read("");
    let needs = |text: &str| usual.needs_restart(&read(text));
    assert!(
        needs("global: {scheduling_policy: static}\nstatic_partition: {lm_head: igpu}").is_empty()
    );
    assert!(needs("bandwidth_control: {throttle_threshold: 0.5, heavy_operations: []}").is_empty());
    assert_eq!(
        needs("bandwidth_control: {monitoring_interval_ms: 5}\nmemory: {use_usm: false}"),
        ["bandwidth_control.monitoring_interval_ms", "memory"]
    );
}

#[test]
fn policies_are_made_as_the_config_says() {
    for kind in PolicyKind::ALL {
        let text = format!("global: {{scheduling_policy: {kind}}}");
        assert_eq!(read(&text).scheduling().policy, kind);
        assert_eq!(kind.policy(&read(&text)).kind(), kind);
    }
}

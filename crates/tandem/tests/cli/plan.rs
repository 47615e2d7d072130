//! `tandem plan` and the options that say where to compute. What a plan comes to is tested in tandem-runtime.

use std::path::PathBuf;

use serde_json::Value;
use tandem_testkit::scratch;

use crate::{error_line, random_model, stderr, stdout, tandem};

fn json(args: &[&str]) -> Value {
    let output = tandem().args(["plan", "--json", "-m"]).arg(random_model()).args(args).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn shipped() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs/partition.yaml")
}

/// Steps of an operation.
fn of<'a>(plan: &'a Value, operation: &'a str) -> impl Iterator<Item = &'a Value> {
    plan["steps"].as_array().unwrap().iter().filter(move |step| step["operation"] == operation)
}

#[test]
fn a_plan_has_every_step_with_bytes_and_reason() {
    let inspected =
        tandem().args(["inspect", "--json", "-m"]).arg(random_model()).output().unwrap();
    let inspected: Value = serde_json::from_str(&stdout(&inspected)).unwrap();
    let layers = inspected["config"]["num_hidden_layers"].as_u64().unwrap() as usize;
    let plan = json(&["--placement", "split=0.25", "--device", "no such device"]);
    assert_eq!(plan["steps"].as_array().unwrap().len(), 3 + 12 * layers);
    assert_eq!(of(&plan, "expert_ffn_w1").count(), layers);
    for step in of(&plan, "expert_ffn_w1") {
        assert_eq!(step["device"], "split=0.25");
        let [cpu, igpu] = ["cpu_bytes", "igpu_bytes"].map(|key| step[key].as_u64().unwrap());
        assert!(cpu > 0 && igpu.abs_diff(cpu / 3) <= 1, "{step}");
        assert_eq!(step["why"], "like everything");
    }
    assert!(of(&plan, "router_logits").all(|step| step["device"] == "cpu"));
    let total = ["cpu_bytes", "igpu_bytes"].map(|key| plan[key].as_u64().unwrap()).iter().sum();
    let weights = inspected["total"]["bytes_per_token"].as_u64().unwrap();
    assert!((weights..weights + weights / 10).contains(&total), "{total} and {weights}");
    assert!(plan["device"].is_null());
    assert!(plan["no_device"].as_str().unwrap().contains("OpenCL"), "{plan}");
}

#[test]
fn the_shipped_config_and_its_twin() {
    let by_file = json(&["--config", shipped().to_str().unwrap(), "--device", "no such device"]);
    let by_name = json(&["--placement", "default", "--device", "no such device"]);
    for operation in ["embedding", "attention_qkv_proj", "attention_compute", "expert_ffn_w2"] {
        let devices = |plan| of(plan, operation).map(|s| s["device"].clone()).collect::<Vec<_>>();
        assert_eq!(devices(&by_file), devices(&by_name), "{operation}");
    }
    let why = of(&by_file, "attention_qkv_proj").next().unwrap()["why"].as_str().unwrap();
    assert!(why.starts_with("line ") && why.ends_with(" of the config"), "{why}");
    let many = json(&["--placement", "default", "--tokens", "64", "--device", "no such device"]);
    let attention = of(&many, "attention_compute").next().unwrap();
    assert_eq!(attention["device"], "igpu");
    assert_eq!(attention["why"], "auto: 4 tokens or more");
}

#[test]
fn layers_that_are_alike_are_shown_once() {
    let folder = scratch("plan");
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, "layer_overrides: {layer_1_1: {attention_qkv_proj: cpu}}\n").unwrap();
    let text = |args: &[&str]| {
        let mut command = tandem();
        let command = command.args(["plan", "--device", "no such device", "-m"]);
        stdout(&command.arg(random_model()).args(args).output().unwrap())
    };
    let rows = |text: &str| text.lines().filter(|line| line.contains("router_logits")).count();
    assert_eq!(rows(&text(&["--placement", "default"])), 1);
    let with_override = text(&["--config", file.to_str().unwrap()]);
    assert!(rows(&with_override) >= 2, "{with_override}");
    assert!(with_override.contains("the CPU computes everything: no OpenCL"), "{with_override}");
}

#[test]
fn bad_configs_are_one_line() {
    let folder = scratch("plan-bad");
    let file = folder.path().join("p.yaml");
    let refused = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = tandem();
        error_line(command.args(["plan", "--config"]).arg(&file).arg("-m").arg(random_model()))
    };
    let message = refused("static_partition:\n  lm_head: gpu\n");
    assert!(message.contains("p.yaml:2: static_partition.lm_head: expected cpu"), "{message}");
    let message = refused("global: {cpu_memory_limit: 1, model_name: model}\n");
    assert!(message.contains("global.cpu_memory_limit: expected at least"), "{message}");
    let message = error_line(tandem().args(["plan", "--config", "/nowhere/p.yaml"]));
    assert!(message.contains("/nowhere/p.yaml: cannot be read"), "{message}");
    for (option, value) in [("--placement", "gpu"), ("--placement", "split=2"), ("--tokens", "0")] {
        let output = tandem().args(["plan", option, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("expected"), "{}", stderr(&output));
    }
}

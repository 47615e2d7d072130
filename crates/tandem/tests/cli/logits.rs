//! `tandem logits` and `tandem perplexity`: what others check us by.

use std::path::Path;

use tandem_formats::safetensors::SafetensorsFile;
use tandem_golden::{RouterChoices, WINDOW, check_logits, golden, stories_bf16, windowed_logits};
use tandem_testkit::{scratch, testdata};

use crate::{error_line, random_model, stderr, stdout, tandem};

fn logits(args: &[&str], ids: &[u32], out: &Path) -> SafetensorsFile {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let output = tandem()
        .args(["logits", "--kv-type", "f32", "--ids", &ids.join(","), "-m"])
        .arg(random_model())
        .arg("-o")
        .arg(out)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    SafetensorsFile::open(out).unwrap()
}

#[test]
fn both_engines_write_the_references_logits_and_router_choices() {
    let folder = scratch("logits");
    for engine in ["cpu", "reference"] {
        for prompt in golden() {
            let file =
                logits(&["--engine", engine], &prompt.ids, &folder.path().join("l.safetensors"));
            prompt.check_logits(&file.read_f32("logits").unwrap(), 1e-4);
            let experts = file.read_i32("router_idx").unwrap();
            prompt.check_router(
                &RouterChoices {
                    experts: experts.into_iter().map(|e| e.try_into().unwrap()).collect(),
                    weights: file.read_f32("router_w").unwrap(),
                },
                1e-4,
            );
        }
    }
}

#[test]
fn the_sliding_window_can_be_turned_off() {
    let folder = scratch("window");
    let out = folder.path().join("l.safetensors");
    let model = folder.path().join("windowed");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(random_model().join(file), model.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let narrow =
        config.replace("\"sliding_window\": 2047", &format!("\"sliding_window\": {WINDOW}"));
    assert_ne!(config, narrow);
    std::fs::write(model.join("config.json"), narrow).unwrap();
    let prompt = &golden()[2];
    let ids: Vec<String> = prompt.ids.iter().map(u32::to_string).collect();
    let run = |args: &[&str]| -> Vec<f32> {
        let mut command = tandem();
        command.args(["logits", "--kv-type", "f32", "--ids", &ids.join(","), "-m"]).arg(&model);
        let output = command.arg("-o").arg(&out).args(args).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        SafetensorsFile::open(&out).unwrap().read_f32("logits").unwrap()
    };
    let expected = windowed_logits();
    let narrow = run(&[]);
    check_logits("window", &expected, &narrow[narrow.len() - expected.len()..], 1e-4);
    prompt.check_logits(&run(&["--no-sliding-window"]), 1e-4);
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let folder = scratch("ids");
    let out = folder.path().join("l.safetensors");
    let mut command = tandem();
    let message = error_line(
        command.args(["logits", "--ids", "3,512", "-m"]).arg(random_model()).arg("-o").arg(&out),
    );
    assert_eq!(message, "error: --ids: expected ids below the vocabulary size 512, found 512");
    let mut command = tandem();
    let message = error_line(
        command.args(["logits", "--ids", "3,x", "-m"]).arg(random_model()).arg("-o").arg(&out),
    );
    assert!(message.contains("token id: expected a number, found `x`"), "{message}");
    assert!(!out.exists());
}

fn perplexity(model: &Path, args: &[&str]) -> f64 {
    let output = tandem()
        .arg("perplexity")
        .arg(testdata("stories/perplexity.json"))
        .args(["--json", "-m"])
        .arg(model)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(result["tokens_scored"], 10809);
    result["perplexity"].as_f64().unwrap()
}

/// The table of the model card. The reference's figure is 22.4294.
#[test]
fn perplexity_of_each_type() {
    let folder = scratch("perplexity");
    let exact = perplexity(&stories_bf16(), &[]);
    assert!((exact - 22.43).abs() < 0.05, "bf16: {exact}");
    for (dtype, allowed) in [("q8_0", 0.005), ("q4_0", 0.025)] {
        let gguf = folder.path().join(format!("{dtype}.gguf"));
        let output = tandem()
            .arg("quantize")
            .args([&stories_bf16(), &gguf])
            .args(["--type", dtype])
            .output();
        assert!(output.unwrap().status.success());
        let found = perplexity(&gguf, &[]);
        let moved = (found / exact - 1.0).abs();
        assert!(moved < allowed, "{dtype}: {found}, {:.2} % from {exact}", 100.0 * moved);
    }
}

#[test]
fn perplexity_of_plain_text_goes_in_pieces_of_the_context() {
    let folder = scratch("plain-text");
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Once upon a time, there was a little dragon. ".repeat(100)).unwrap();
    let output =
        tandem().arg("perplexity").arg(&file).args(["--json", "--ctx", "128"]).output().unwrap();
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let (tokens, texts) =
        (result["tokens_scored"].as_u64().unwrap(), result["texts"].as_u64().unwrap());
    assert!(texts > 5 && tokens > 127 * (texts - 1) && tokens <= 127 * texts, "{result}");
    let mut end = tandem();
    end.arg("perplexity").arg(testdata("stories/perplexity.json")).args(["--end-id", "99999999"]);
    let message = error_line(&mut end);
    assert_eq!(message, "error: token id 99999999: expected less than the vocabulary size 4096");
    std::fs::write(&file, "").unwrap();
    let message = error_line(tandem().arg("perplexity").arg(&file));
    assert!(message.contains("expected a text of at least two tokens"), "{message}");
}

//! llama.cpp, through the registry's package, with a model of the nearest shape that it can load.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use tandem_model::catalogue::Component;
use tandem_model::{Checkpoint, PhimoeConfig};

use super::{Contest, PeersArgs, Places, WeightType, checkpoint, script, tests};
use crate::shell::{root, run};

/// Of what one token needs, how far the two models may be apart.
const TOLERANCE: f64 = 0.01;

/// Built for the processor at hand, as Tandem chooses its kernels.
const BUILD: [(&str, &str); 1] = [("CMAKE_ARGS", "-DGGML_NATIVE=ON")];

/// Built without anything beyond AVX2; and not with what the cache has of the other build.
const BUILD_AVX2: [(&str, &str); 2] = [
    (
        "CMAKE_ARGS",
        "-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON",
    ),
    ("PIP_NO_CACHE_DIR", "1"),
];

pub(super) fn contests(places: &Places, args: &PeersArgs) -> anyhow::Result<Vec<Contest>> {
    let python = if args.avx2 {
        places.python_in("llama-avx2", "llama", &BUILD_AVX2)
    } else {
        places.python("llama", &BUILD)
    };
    let folder = places.work.join("lookalike");
    make_lookalike(&python, &folder)?;
    let mut contests = Vec::new();
    for &weight_type in &args.types {
        let tandem_model = places.tandem_model(&format!("{}.gguf", weight_type.name()))?;
        let peer_model = folder.join(format!("{}.gguf", weight_type.name()));
        let lookalike = checkpoint(&peer_model)?;
        ensure_alike(&checkpoint(&tandem_model)?, &lookalike)?;
        for &threads in &args.threads {
            let mut peer = Command::new(&python);
            peer.arg(script("llama_driver.py")).arg(&peer_model);
            contests.push(Contest {
                tandem_model: tandem_model.clone(),
                tandem_weights: weight_type.name(),
                peer,
                peer_takes_options: false,
                peer_weights: described(weight_type, &lookalike),
                peer_bytes_per_token: Some(lookalike.summary().total().bytes_per_token),
                threads,
                tests: tests(args.quick),
            });
        }
    }
    Ok(contests)
}

fn make_lookalike(python: &Path, folder: &Path) -> anyhow::Result<()> {
    let missing = [WeightType::Q4_0, WeightType::Q8_0]
        .iter()
        .any(|weight_type| !folder.join(format!("{}.gguf", weight_type.name())).exists());
    if missing {
        eprintln!("making the model for llama.cpp: takes minutes");
        let tokenizer = root().join("testdata/phi-tiny-moe/tokenizer.json");
        run(Command::new(python).arg(script("make_lookalike.py")).arg(folder).arg(tokenizer))?;
    }
    Ok(())
}

/// The type, and that of lm_head where llama.cpp has chosen another one for it.
fn described(weight_type: WeightType, model: &Checkpoint) -> String {
    let summary = model.summary();
    let heads = summary.components.get(&Component::LmHead).map(|c| &c.types);
    match heads.and_then(BTreeMap::first_key_value) {
        Some((head, _)) if head.name() != weight_type.name() => {
            format!("{} (lm_head {head})", weight_type.name())
        }
        _ => weight_type.name().to_owned(),
    }
}

/// Fails unless a token costs the same in both models.
///
/// lm_head's bytes are left out: llama.cpp's `q4_0` has it in another type. Its weights are not.
fn ensure_alike(ours: &Checkpoint, theirs: &Checkpoint) -> anyhow::Result<()> {
    let (our_costs, their_costs) = (costs(ours), costs(theirs));
    for ((name, a), (_, b)) in our_costs.iter().zip(&their_costs) {
        ensure!(
            (b / a - 1.0).abs() <= TOLERANCE,
            "{}: expected {name} within {TOLERANCE} of {a}, which Tandem's model has, found {b}",
            theirs.path().display()
        );
    }
    Ok(())
}

/// What one token takes.
fn costs(model: &Checkpoint) -> [(&'static str, f64); 4] {
    let summary = model.summary();
    let total = summary.total();
    let head = summary.components.get(&Component::LmHead).map_or(0, |c| c.bytes_per_token);
    [
        ("weights per token", total.weights_per_token as f64),
        ("bytes per token without lm_head", (total.bytes_per_token - head) as f64),
        ("keys and values per token", kv_values(model.config()) as f64),
        ("width of all attention heads", attention_width(model.config()) as f64),
    ]
}

fn kv_values(config: &PhimoeConfig) -> usize {
    2 * config.n_layers * config.kv_dim()
}

/// Multiply-adds per token and token looked at, halved.
fn attention_width(config: &PhimoeConfig) -> usize {
    config.n_layers * config.q_dim()
}

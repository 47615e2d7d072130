//! `tandem quantize`: what it writes, and what it leaves when it cannot.

use std::path::Path;
use std::process::{Command as Process, Stdio};

use tandem_golden::stories_bf16;
use tandem_testkit::{run_python, scratch};

use crate::{error_line, random_model, stderr, stdout, tandem};

fn quantize(input: &Path, output: &Path, dtype: &str) {
    let output =
        tandem().arg("quantize").args([input, output]).args(["--type", dtype]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn logits(model: &Path, out: &Path) -> Vec<f32> {
    let output = tandem()
        .args(["logits", "--ids", "5,77,300,12,499", "--kv-type", "f32", "-m"])
        .arg(model)
        .arg("-o")
        .arg(out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    tandem_formats::safetensors::SafetensorsFile::open(out).unwrap().read_f32("logits").unwrap()
}

#[test]
fn lossless_types_give_equal_logits() {
    let folder = scratch("lossless");
    let expected = logits(&random_model(), &folder.path().join("a.safetensors"));
    for dtype in ["f32", "bf16"] {
        let gguf = folder.path().join(format!("{dtype}.gguf"));
        quantize(&random_model(), &gguf, dtype);
        assert_eq!(logits(&gguf, &folder.path().join("b.safetensors")), expected, "{dtype}");
    }
}

/// Each tensor of the file, as the `gguf` package dequantizes it, lies as near to the original as the type allows:
/// of a block of 32 Gaussian weights the largest is about 2.2 sigma, so 8 bits err by 2.2 / 127 / sqrt(12) = 0.5 %.
#[test]
fn the_gguf_package_reads_what_we_write() {
    let folder = scratch("gguf-package");
    for (dtype, bound) in
        [("f32", 0.0), ("bf16", 0.0), ("f16", 1e-3), ("q8_0", 0.007), ("q4_0", 0.1)]
    {
        let gguf = folder.path().join(format!("{dtype}.gguf"));
        quantize(&stories_bf16(), &gguf, dtype);
        let worst = run_python(
            COMPARE,
            &[gguf.to_str().unwrap(), stories_bf16().join("model.safetensors").to_str().unwrap()],
        );
        let worst: f64 = worst.trim().parse().unwrap();
        assert!(worst <= bound, "{dtype}: relative error {worst}, allowed {bound}");
    }
}

/// Prints the largest root-mean-square error of a tensor, relative to the tensor's own root mean square.
const COMPARE: &str = r"
import sys, struct, json, numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
def bf16(path):
    raw = open(path, 'rb').read(); n = struct.unpack('<Q', raw[:8])[0]; head = json.loads(raw[8:8+n])
    for name, t in head.items():
        if name != '__metadata__':
            a, b = t['data_offsets']
            u = np.frombuffer(raw[8+n+a:8+n+b], np.uint16).astype(np.uint32) << 16
            yield name, u.view(np.float32).reshape(t['shape'])
hf = dict(bf16(sys.argv[2]))
names = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
layer = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
  'ffn_gate_inp': 'block_sparse_moe.gate'}
experts = {'ffn_gate_exps': 'w1', 'ffn_down_exps': 'w2', 'ffn_up_exps': 'w3'}
seen, worst = 0, 0.0
for t in GGUFReader(sys.argv[1]).tensors:
    stem, kind = t.name.rsplit('.', 1)
    got = np.asarray(dequantize(t.data, t.tensor_type), np.float32).reshape([int(d) for d in reversed(t.shape)])
    if stem in names: want = [hf.pop(f'{names[stem]}.{kind}')]; got = [got]
    else:
        _, n, tail = stem.split('.')
        if tail in experts:
            want = [hf.pop(f'model.layers.{n}.block_sparse_moe.experts.{e}.{experts[tail]}.weight') for e in range(len(got))]
        else: want = [hf.pop(f'model.layers.{n}.{layer[tail]}.{kind}')]; got = [got]
    for a, b in zip(got, want):
        assert a.shape == b.shape, (t.name, a.shape, b.shape)
        scale = np.sqrt((b.astype(np.float64) ** 2).mean())
        if scale > 0: worst = max(worst, float(np.sqrt(((a.astype(np.float64) - b) ** 2).mean()) / scale))
assert not hf, sorted(hf)[:5]
print(worst)
";

#[test]
fn the_tokenizer_travels_with_the_file() {
    let folder = scratch("tokenizer");
    let gguf = folder.path().join("model.gguf");
    quantize(&stories_bf16(), &gguf, "q8_0");
    let text = "One day, a  dragon🐉 said:\n\"Hello\" <|end|>";
    let ids = |model: &Path| {
        stdout(&tandem().args(["tokenize", "--ids", text, "-m"]).arg(model).output().unwrap())
    };
    assert_eq!(ids(&gguf), ids(&stories_bf16()));
}

#[test]
fn inputs_that_do_not_fit_are_refused_and_leave_nothing() {
    let folder = scratch("refused");
    let gguf = folder.path().join("out.gguf");
    let mut no_model = tandem();
    let message = error_line(no_model.args(["quantize", "absent.gguf"]).arg(&gguf));
    assert!(message.contains("absent.gguf"), "{message}");
    let mut no_folder = tandem();
    no_folder.arg("quantize").arg(random_model()).arg(folder.path().join("absent/out.gguf"));
    let message = error_line(&mut no_folder);
    assert!(message.contains("absent/out.gguf"), "{message}");
    for name in ["model.safetensors", "out"] {
        let mut other_name = tandem();
        let message = error_line(
            other_name.arg("quantize").arg(random_model()).arg(folder.path().join(name)),
        );
        assert!(message.contains("expected a name that ends in .gguf"), "{message}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    quantize(&random_model(), &gguf, "q8_0");
    let before = std::fs::read(&gguf).unwrap();
    let message = error_line(tandem().arg("quantize").arg(&gguf).arg(&gguf));
    assert!(message.contains("expected another file than the input"), "{message}");
    assert_eq!(std::fs::read(&gguf).unwrap(), before);
}

/// A file size limit stands in for a full disk: both make a write fail half-way.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_file() {
    let folder = scratch("full-disk");
    let gguf = folder.path().join("out.gguf");
    let script = format!(
        "ulimit -f 2000; trap '' XFSZ; exec '{}' quantize '{}' '{}' --type bf16",
        env!("CARGO_BIN_EXE_tandem"),
        stories_bf16().display(),
        gguf.display()
    );
    let output = Process::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("out.gguf"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_file() {
    let folder = scratch("interrupted");
    let gguf = folder.path().join("out.gguf");
    let child = Process::new(env!("CARGO_BIN_EXE_tandem"))
        .arg("quantize")
        .args([&stories_bf16(), &gguf])
        .args(["--type", "f32"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The temporary file shows that the work has begun.
    while std::fs::read_dir(folder.path()).unwrap().count() == 0 {
        std::thread::yield_now();
    }
    Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.code() {
        Some(130) => {
            assert!(stderr(&output).contains("was not written"), "{}", stderr(&output));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        }
        // The signal came after the last tensor: then the file is whole.
        Some(0) => assert!(tandem().arg("inspect").arg(&gguf).output().unwrap().status.success()),
        other => panic!("exit code {other:?}: {}", stderr(&output)),
    }
}

//! Every kernel as it is compiled for Phi-tiny-MoE: what the offline compiler is asked to judge.
//!
//! `cargo xtask kernels` compiles these for the GPU that Tandem is made for, without having one.

use tandem_memory::PAGE_TOKENS;

use crate::measure;
use crate::ops::sources as s;
use crate::path::Path;
use crate::program::{COMMON, Source};

/// A source with the numbers it is compiled for.
#[derive(Clone, Debug)]
pub struct TargetBuild {
    /// Name of the file.
    pub file: &'static str,
    /// Its text, with what every source begins with.
    pub text: String,
    /// Options of the compiler.
    pub options: String,
    /// Whether its kernels multiply quantized numbers, and so must use the instruction for it.
    pub needs_dot_product: bool,
}

/// What Phi-tiny-MoE is made of.
const HIDDEN: usize = 4096;
const HEAD_DIM: usize = 128;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const EXPERTS: usize = 16;

/// All builds, for a device with everything that the best path asks for.
pub fn target_builds() -> Vec<TargetBuild> {
    let mut builds = Vec::new();
    let mut add = |source: Source, defines: &[(&str, usize)]| {
        let mut options = Path::Dot.flags(true, true);
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        builds.push(TargetBuild {
            file: source.file,
            text: format!("{COMMON}\n{}", source.text),
            options: options.join(" "),
            needs_dot_product: source.file == s::MATMUL.file,
        });
    };
    for bits in [4, 8] {
        for (planes, tokens) in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2)] {
            let team =
                [("PLANES", planes), ("TOKENS", tokens), ("TILES", Path::Dot.team(planes).1)];
            // q, k and v; gate and up.
            for products in if Path::Dot.takes_several(planes * tokens) { 1..=3 } else { 1..=1 } {
                let each = [("BITS", bits), ("PRODUCTS", products)];
                add(s::MATMUL, &[&each, &team[..]].concat());
            }
        }
    }
    for planes in [1, 2] {
        add(s::QUANTIZE, &[("PLANES", planes)]);
        add(s::SILU_QUANTIZE, &[("PLANES", planes)]);
    }
    for kind in [16, 17, 32] {
        for tokens in [1, 8] {
            add(s::MATVEC_ROWS, &[("KIND", kind), ("TOKENS", tokens)]);
        }
    }
    for kind in [4, 8, 17] {
        add(s::EMBEDDING, &[("KIND", kind), ("COLS", HIDDEN)]);
    }
    for bits in [32, 16, 8] {
        let defines = [
            ("HEAD_DIM", HEAD_DIM),
            ("HEADS", HEADS),
            ("KV_HEADS", KV_HEADS),
            ("KV_PAGE", PAGE_TOKENS),
            ("KV_BITS", bits),
        ];
        add(s::ROPE, &defines);
        add(s::ATTENTION, &defines);
    }
    add(s::LAYER_NORM, &[("WIDTH", HIDDEN)]);
    add(s::NORM_QUANTIZE, &[("WIDTH", HIDDEN)]);
    add(s::ELEMENTWISE, &[]);
    add(s::ROUTER, &[("EXPERTS", EXPERTS)]);
    add(s::GROUPING, &[("EXPERTS", EXPERTS)]);
    add(s::GATHER, &[("COLS", HIDDEN)]);
    add(s::ARGMAX, &[]);
    add(measure::SOURCE, &[]);
    builds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that is never compiled for the target would never be judged.
    #[test]
    fn every_file_is_built() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let builds = target_builds();
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let built = builds.iter().any(|build| build.file == name);
            // What others begin with.
            let common = ["common.cl", "quantized.cl", "dots.cl", "ptx.cl", "kv.cl"];
            assert!(built || common.contains(&name.as_str()), "{name}");
        }
    }
}

//! Products of many tokens by oneDNN: of the very weights, packed or not, with activations that are not rounded.
//!
//! The oracle is that of products in f32. What oneDNN adds up may be one sum after the other: a rounding for each column,
//! and one for each tile of columns.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tandem_cpu::onednn::OneDnn;
use tandem_cpu::ops::{
    Input, Precision, Product, QuantizedActivations, Weights, matmul, matmul_all,
};
use tandem_cpu::{Cpu, MatrixRef};
use tandem_formats::{DType, blocks};
use tandem_memory::{AlignedBuffer, PackedLayout, PackedMatrix, PackedType};
use tandem_testkit::oracle::{assert_close, products};
use tandem_testkit::{onednn_library, scratch};

use super::{Random, every_cpu};

/// Every instruction set, with oneDNN.
fn cpus() -> Vec<Cpu> {
    let onednn = Arc::new(OneDnn::open(Some(&onednn_library())).unwrap());
    let mut cpus = every_cpu();
    cpus.iter_mut().for_each(|cpu| cpu.set_onednn(Some(Arc::clone(&onednn))));
    cpus
}

/// A matrix in a file's encoding, and packed where it can be.
struct Matrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    plain: Vec<f32>,
    packed: Option<(PackedLayout, AlignedBuffer)>,
}

impl Matrix {
    fn random(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Self {
        let mut bytes = vec![0; dtype.bytes_for(cols).unwrap() * rows];
        blocks::quantize(dtype, &random.numbers(rows * cols), &mut bytes).unwrap();
        let mut plain = vec![0.0; rows * cols];
        blocks::dequantize(dtype, &bytes, &mut plain);
        let packed = PackedType::of(dtype).map(|kind| {
            let layout = PackedLayout::new(kind, rows, cols).unwrap();
            let mut buffer = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
            let (quants, scales) = buffer.split_at_mut(layout.quant_bytes());
            layout.pack_tiles(&bytes, quants, scales);
            (layout, buffer)
        });
        Self { dtype, rows, cols, bytes, plain, packed }
    }

    fn weights(&self) -> Weights<'_> {
        match &self.packed {
            Some((layout, buffer)) => PackedMatrix::new(*layout, buffer).into(),
            None => MatrixRef::new(self.dtype, self.rows, self.cols, &self.bytes).into(),
        }
    }

    fn product(
        &self,
        cpu: &Cpu,
        bias: Option<&[f32]>,
        x: &[f32],
        tokens: Option<&[u32]>,
    ) -> Vec<f32> {
        let mut buffer = QuantizedActivations::default();
        let input = Input::new(cpu, x, &[self.weights()], Precision::Bits8, &mut buffer);
        let input = tokens.map_or(input, |tokens| input.select(tokens));
        let count = tokens.map_or(x.len() / self.cols, <[u32]>::len);
        let mut out = vec![f32::NAN; count * self.rows];
        matmul(cpu, self.weights(), bias, input, &mut out);
        out
    }

    fn check(&self, cpu: &Cpu, bias: Option<&[f32]>, x: &[f32]) {
        let expected = products(&self.plain, bias, x, self.cols, (self.cols + 16) as f64, 1.0);
        let what = format!("{} {} {} x {}", cpu.isa(), self.dtype, self.rows, self.cols);
        assert_close(&what, &self.product(cpu, bias, x, None), &expected);
    }
}

#[test]
fn every_encoding_shape_and_number_of_tokens() {
    let mut random = Random(51);
    let cpus = cpus();
    let types = [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0];
    for dtype in types {
        for (rows, cols) in [(64, 32), (70, 448), (200, 4096), (448, 96)] {
            let matrix = Matrix::random(&mut random, dtype, rows, cols);
            let bias = random.numbers(rows);
            for tokens in [32, 45] {
                let x = random.numbers(tokens * cols);
                for cpu in &cpus {
                    matrix.check(cpu, Some(&bias[..]).filter(|_| tokens == 45), &x);
                }
            }
        }
    }
}

#[test]
fn more_tokens_than_an_item_holds_and_sums_that_are_added() {
    let mut random = Random(52);
    let (rows, cols, tokens) = (130, 2080, 530);
    let matrix = Matrix::random(&mut random, DType::Q8_0, rows, cols);
    let (x, before) = (random.numbers(tokens * cols), random.numbers(tokens * rows));
    let mut expected = products(&matrix.plain, None, &x, cols, (cols + 32) as f64, 1.0);
    expected.iter_mut().zip(&before).for_each(|((sum, _), before)| *sum += f64::from(*before));
    for cpu in cpus() {
        matrix.check(&cpu, None, &x);
        let mut out = before.clone();
        let mut buffer = QuantizedActivations::default();
        let input = Input::new(&cpu, &x, &[matrix.weights()], Precision::Bits8, &mut buffer);
        let product = Product::new(matrix.weights(), None, input, &mut out);
        matmul_all(&cpu, &mut [Product { accumulate: true, ..product }]);
        assert_close("added", &out, &expected);
    }
}

/// As experts have them: some tokens of a batch, in any order. And the same to the last bit for any number of threads and
/// on any instruction set, since tiles are the same.
#[test]
fn results_depend_neither_on_threads_nor_on_places() {
    let mut random = Random(53);
    let cols = 448;
    let x = random.numbers(100 * cols);
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 100).collect();
    let gathered: Vec<f32> =
        tokens.iter().flat_map(|&t| &x[t as usize * cols..][..cols]).copied().collect();
    for dtype in [DType::BF16, DType::Q4_0] {
        let matrix = Matrix::random(&mut random, dtype, 256, cols);
        let mut all = Vec::new();
        for cpu in cpus() {
            let selected = matrix.product(&cpu, None, &x, Some(&tokens));
            assert_eq!(selected, matrix.product(&cpu, None, &gathered, None), "{dtype}");
            all.push(selected);
        }
        assert!(all.iter().all(|results| *results == all[0]), "{dtype}");
    }
}

/// What is small stays with the kernels that are for it: routers, whose choices jump, and few tokens.
#[test]
fn small_products_are_left_alone() {
    let mut random = Random(54);
    for (rows, tokens) in [(16, 100), (300, 31)] {
        let matrix = Matrix::random(&mut random, DType::F32, rows, 96);
        let x = random.numbers(tokens * 96);
        for (with, without) in cpus().iter().zip(every_cpu()) {
            let product = |cpu: &Cpu| matrix.product(cpu, None, &x, None);
            assert_eq!(product(with), product(&without));
        }
    }
}

/// A library with the functions of oneDNN, of some version and runtime, in a folder of its own.
fn stand_in(folder: &Path, code: &str) {
    let source = folder.join("library.c");
    std::fs::write(&source, code).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(folder.join("libdnnl.so")).arg(&source);
    assert!(cc.status().unwrap().success());
}

#[test]
fn libraries_that_will_not_do_are_refused() {
    let version = |major: u32, minor: u32, runtime: u32| {
        format!(
            "static const struct {{ int a, b, c; const char *hash; unsigned cpu, gpu; }} v = \
             {{{major}, {minor}, 7, \"\", {runtime}, 0}}; const void *dnnl_version(void) {{ return &v; }}"
        )
    };
    for (code, expected) in [
        (version(4, 0, 1), "expected oneDNN 1.2 to 3, found version 4.0.7"),
        (version(0, 21, 1), "expected oneDNN 1.2 to 3, found version 0.21.7"),
        (version(3, 13, 512), "expected a build for OpenMP or one thread, found one for SYCL;"),
        (version(3, 5, 4), "found one for TBB; `apt-get install libdnnl2`"),
        (version(3, 5, 1), "found a library without dnnl_sgemm"),
        ("int x;".to_owned(), "found a library without dnnl_version"),
    ] {
        let folder = scratch("stand-in");
        stand_in(folder.path(), &code);
        let error = OneDnn::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.starts_with("oneDNN: ") && !error.contains('\n'), "{error}");
    }
    let folder = scratch("no-library");
    let error = |path: &Path| OneDnn::open(Some(path)).unwrap_err().to_string();
    assert!(error(folder.path()).contains("found a folder without it; `apt-get install libdnnl2`"));
    std::fs::write(folder.path().join("libdnnl.so"), "none").unwrap();
    assert!(error(folder.path()).contains("file too short"), "{}", error(folder.path()));
}

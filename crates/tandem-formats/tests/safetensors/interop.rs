//! Files that the Python package `safetensors` reads and writes.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tandem_formats::safetensors::{Dtype, SafetensorsFile, Tensor, write};
use tandem_testkit::{Rng, run_python, testdata};
use tempfile::tempdir;

/// argv: file. Prints metadata and the tensors as name: [type, shape, hex].
const READ: &str = r"
import sys, json
from safetensors import safe_open
with safe_open(sys.argv[1], 'numpy') as f:
    tensors = {n: [f.get_tensor(n).dtype.str, list(f.get_tensor(n).shape), f.get_tensor(n).tobytes().hex()] for n in f.keys()}
    print(json.dumps([f.metadata(), tensors]))
";

/// argv: file. Writes tensors of every type that numpy has; prints them as name: [type, shape, hex].
const WRITE: &str = r"
import sys, json, numpy
from safetensors.numpy import save_file
rng = numpy.random.default_rng(1)
names = dict(BOOL='?', U8='u1', I8='i1', I16='i2', U16='u2', F16='f2', I32='i4', U32='u4', F32='f4', F64='f8', I64='i8', U64='u8')
tensors = {name: (rng.standard_normal((2, 3, 5)) * 50).astype(kind) for name, kind in names.items()}
tensors['scalar'] = numpy.array(7, dtype='i4')
tensors['empty'] = numpy.zeros((0, 4), dtype='f4')
save_file(tensors, sys.argv[1], metadata={'key': 'h\u00e9'})
print(json.dumps({n: [list(t.shape), t.tobytes().hex()] for n, t in tensors.items()}))
";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn python_reads_what_we_write() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("ours.safetensors");
    let mut rng = Rng::new(8);
    let mut data = [0; 64];
    rng.fill(&mut data);
    let kinds = [
        (Dtype::U8, "|u1"),
        (Dtype::I8, "|i1"),
        (Dtype::I16, "<i2"),
        (Dtype::U16, "<u2"),
        (Dtype::F16, "<f2"),
        (Dtype::I32, "<i4"),
        (Dtype::U32, "<u4"),
        (Dtype::F32, "<f4"),
        (Dtype::F64, "<f8"),
        (Dtype::I64, "<i8"),
        (Dtype::U64, "<u8"),
    ];
    let shapes = kinds.map(|(dtype, _)| [2, 32 / dtype.size()]);
    let tensors: Vec<Tensor<'_>> = kinds
        .iter()
        .zip(&shapes)
        .map(|((dtype, _), shape)| Tensor { name: dtype.name(), dtype: *dtype, shape, data: &data })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "é".to_owned())]);
    write(&path, &tensors, &metadata).unwrap();

    let read: Json = serde_json::from_str(&run_python(READ, &[path.to_str().unwrap()])).unwrap();
    assert_eq!(read[0], json!({"format": "é"}));
    let expected: BTreeMap<&str, Json> = kinds
        .iter()
        .zip(&shapes)
        .map(|((dtype, kind), shape)| (dtype.name(), json!([kind, shape, hex(&data)])))
        .collect();
    assert_eq!(read[1], json!(expected));
}

#[test]
fn we_read_what_python_writes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("python.safetensors");
    let tensors: BTreeMap<String, Json> =
        serde_json::from_str(&run_python(WRITE, &[path.to_str().unwrap()])).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.metadata(), &BTreeMap::from([("key".to_owned(), "hé".to_owned())]));
    assert_eq!((tensors.len(), file.tensors().len()), (14, 14));
    for (name, expected) in tensors {
        let info = &file.tensors()[&name];
        assert_eq!(json!([info.shape, hex(&file.read(&name).unwrap())]), expected, "{name}");
        let dtype = match name.as_str() {
            "scalar" => "I32",
            "empty" => "F32",
            same => same,
        };
        assert_eq!(info.dtype.name(), dtype);
    }
}

/// A checkpoint that Hugging Face's own writer made.
#[test]
fn a_checkpoint_opens() {
    let file = SafetensorsFile::open(&testdata("golden/model/model.safetensors")).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    let weights = file.read_f32("lm_head.weight").unwrap();
    assert_eq!(weights.len(), file.tensors()["lm_head.weight"].shape.iter().product::<usize>());
    assert!(weights.iter().all(|w| w.is_finite()) && weights.iter().any(|w| *w != 0.0));
}

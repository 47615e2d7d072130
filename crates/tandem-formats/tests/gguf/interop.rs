//! Files that the Python package `gguf` reads and writes.

use serde_json::{Value as Json, json};
use tandem_formats::DType;
use tandem_formats::blocks;
use tandem_formats::gguf::{Array, GgufFile, Metadata, TensorDecl, Value, Writer};
use tandem_testkit::{Rng, run_python};
use tempfile::tempdir;

/// argv: file. Prints metadata as [key, type names, value] and tensors as [name, type, dims fastest first, hex].
const READ: &str = r"
import sys, json, gguf
reader = gguf.GGUFReader(sys.argv[1])
fields = [[f.name, [t.name for t in f.types], f.contents()] for f in reader.fields.values() if not f.name.startswith('GGUF.')]
tensors = [[t.name, t.tensor_type.name, t.shape.tolist(), t.data.tobytes().hex()] for t in reader.tensors]
print(json.dumps([fields, tensors, int(reader.alignment), int(reader.data_offset)]))
";

/// argv: file. Writes every kind of value and of tensor; prints the tensors as [name, type, shape, hex].
const WRITE: &str = r"
import sys, json, numpy, gguf
from gguf import GGUFValueType as V, GGMLQuantizationType as Q
writer = gguf.GGUFWriter(sys.argv[1], 'test-arch')
writer.add_custom_alignment(64)
writer.add_uint8('u8', 255); writer.add_int8('i8', -128)
writer.add_uint16('u16', 65535); writer.add_int16('i16', -32768)
writer.add_uint32('u32', 4294967295); writer.add_int32('i32', -2147483648)
writer.add_uint64('u64', 18446744073709551615); writer.add_int64('i64', -9223372036854775808)
writer.add_float32('f32', 0.1); writer.add_float64('f64', 0.1)
writer.add_bool('true', True); writer.add_bool('false', False)
writer.add_string('text', 'h\u00e9\U0001f600')
for name, values in dict(u8=[0, 255], i8=[-128, 127], u16=[65535], i16=[-1], u32=[4294967295], i32=[-1, 2], u64=[2**64 - 1],
                         i64=[-2**63], f32=[0.5, -2.0], f64=[0.1], bool=[True, False], string=['', 'ab']).items():
    kind = dict(u8=V.UINT8, i8=V.INT8, u16=V.UINT16, i16=V.INT16, u32=V.UINT32, i32=V.INT32, u64=V.UINT64, i64=V.INT64,
                f32=V.FLOAT32, f64=V.FLOAT64, bool=V.BOOL, string=V.STRING)[name]
    writer.add_key_value('array.' + name, values, V.ARRAY, sub_type=kind)
rng = numpy.random.default_rng(1)
weights = rng.standard_normal((2, 3, 64)).astype(numpy.float32)
tensors = [('f32', Q.F32, weights), ('f16', Q.F16, weights.astype(numpy.float16))]
tensors += [(q.name.lower(), q, gguf.quants.quantize(weights, q)) for q in (Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0)]
for q in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
    block_bytes = gguf.GGML_QUANT_SIZES[q][1]
    tensors.append((q.name.lower(), q, rng.integers(0, 256, (3, 2 * block_bytes), dtype=numpy.uint8)))
for name, kind, data in tensors:
    writer.add_tensor(name, data, raw_dtype=kind)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
print(json.dumps([[name, kind.name, data.shape if data.dtype != numpy.uint8 else gguf.quant_shape_from_byte_shape(data.shape, kind),
                   data.tobytes().hex()] for name, kind, data in tensors]))
";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn python_reads_what_we_write() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("ours.gguf");
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "phimoe");
    metadata.insert("u8", 255u8);
    metadata.insert("i8", -128i8);
    metadata.insert("u16", 65535u16);
    metadata.insert("i16", -32768i16);
    metadata.insert("u32", u32::MAX);
    metadata.insert("i32", i32::MIN);
    metadata.insert("u64", u64::MAX);
    metadata.insert("i64", i64::MIN);
    metadata.insert("f32", 0.5f32);
    metadata.insert("f64", 0.1f64);
    metadata.insert("bool", true);
    metadata.insert("strings", vec!["é".to_owned(), String::new()]);
    metadata.insert("i32s", vec![1i32, -2, 3]);
    metadata.insert("f32s", vec![0.25f32, -8.0]);
    metadata.insert("bools", vec![true, false]);
    let expected_fields = json!([
        ["general.architecture", ["STRING"], "phimoe"],
        ["u8", ["UINT8"], 255],
        ["i8", ["INT8"], -128],
        ["u16", ["UINT16"], 65535],
        ["i16", ["INT16"], -32768],
        ["u32", ["UINT32"], u32::MAX],
        ["i32", ["INT32"], i32::MIN],
        ["u64", ["UINT64"], u64::MAX],
        ["i64", ["INT64"], i64::MIN],
        ["f32", ["FLOAT32"], 0.5],
        ["f64", ["FLOAT64"], 0.1],
        ["bool", ["BOOL"], true],
        ["strings", ["ARRAY", "STRING"], ["é", ""]],
        ["i32s", ["ARRAY", "INT32"], [1, -2, 3]],
        ["f32s", ["ARRAY", "FLOAT32"], [0.25, -8.0]],
        ["bools", ["ARRAY", "BOOL"], [true, false]],
    ]);

    let mut rng = Rng::new(5);
    let mut decls = Vec::new();
    let mut data = Vec::new();
    let mut expected_tensors = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0] {
        let weights: Vec<f32> = (0..2 * 3 * 64).map(|_| rng.normal()).collect();
        let mut bytes = vec![0; dtype.bytes_for(weights.len()).unwrap()];
        blocks::quantize(dtype, &weights, &mut bytes).unwrap();
        let name = format!("blk.0.{dtype}.weight");
        expected_tensors.push(json!([name, dtype.name().to_uppercase(), [64, 3, 2], hex(&bytes)]));
        decls.push(TensorDecl { name, dtype, shape: vec![2, 3, 64] });
        data.extend(bytes);
    }
    let mut writer = Writer::create(&path, &metadata, &decls).unwrap();
    writer.write_tensor_data(&data).unwrap();
    writer.finish().unwrap();

    let read: Json = serde_json::from_str(&run_python(READ, &[path.to_str().unwrap()])).unwrap();
    assert_eq!(read[0], expected_fields);
    assert_eq!(read[1], Json::Array(expected_tensors));
    assert_eq!(read[2], 32);
}

#[test]
fn we_read_what_python_writes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("python.gguf");
    let tensors: Json =
        serde_json::from_str(&run_python(WRITE, &[path.to_str().unwrap()])).unwrap();
    let file = GgufFile::open(&path).unwrap();

    let expected: Vec<(&str, Value)> = vec![
        ("general.architecture", "test-arch".into()),
        ("general.alignment", 64u32.into()),
        ("u8", 255u8.into()),
        ("i8", (-128i8).into()),
        ("u16", 65535u16.into()),
        ("i16", i16::MIN.into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", 0.1f32.into()),
        ("f64", 0.1f64.into()),
        ("true", true.into()),
        ("false", false.into()),
        ("text", "h\u{e9}\u{1f600}".into()),
        ("array.u8", vec![0u8, 255].into()),
        ("array.i8", vec![-128i8, 127].into()),
        ("array.u16", vec![65535u16].into()),
        ("array.i16", vec![-1i16].into()),
        ("array.u32", vec![u32::MAX].into()),
        ("array.i32", vec![-1i32, 2].into()),
        ("array.u64", vec![u64::MAX].into()),
        ("array.i64", vec![i64::MIN].into()),
        ("array.f32", vec![0.5f32, -2.0].into()),
        ("array.f64", vec![0.1f64].into()),
        ("array.bool", vec![true, false].into()),
        ("array.string", Value::Array(Array::String(vec![String::new(), "ab".to_owned()]))),
    ];
    let found: Vec<(&str, Value)> = file.metadata().iter().map(|(k, v)| (k, v.clone())).collect();
    assert_eq!(found, expected);

    let tensors = tensors.as_array().unwrap();
    assert_eq!((tensors.len(), file.tensors().len()), (11, 11));
    for tensor in tensors {
        let info = &file.tensors()[tensor[0].as_str().unwrap()];
        let bytes = file.read(&info.name).unwrap();
        let ours = json!([info.name, info.dtype.name().to_uppercase(), info.shape, hex(&bytes)]);
        assert_eq!(&ours, tensor);
        assert_eq!(info.offset % 64, 0);
    }
}

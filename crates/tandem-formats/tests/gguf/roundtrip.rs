//! What [`Writer`] writes, [`GgufFile`] reads, and what `Writer` refuses.

use std::fs;

use proptest::prelude::*;
use tandem_formats::gguf::{Array, GgufFile, Metadata, TensorDecl, Value, Writer};
use tandem_formats::{DType, FormatError};
use tandem_testkit::Rng;
use tempfile::tempdir;

fn decl(name: &str, dtype: DType, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn bytes_of(decl: &TensorDecl, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; decl.dtype.bytes_for(decl.shape.iter().product()).unwrap()];
    rng.fill(&mut bytes);
    bytes
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<String>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<i8>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<u16>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<f32>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(|v| Value::Array(Array::U64(v))),
    ]
}

fn any_decl() -> impl Strategy<Value = TensorDecl> {
    let dtype = prop::sample::select(DType::ALL.to_vec());
    (any::<String>(), dtype, 1usize..4, prop::collection::vec(1usize..4, 0..4)).prop_map(
        |(name, dtype, blocks, mut shape)| {
            shape.push(blocks * dtype.block_len());
            TensorDecl { name, dtype, shape }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn written_files_read_back(
        entries in prop::collection::btree_map("[a-z.]{0,9}", any_value(), 0..12),
        decls in prop::collection::vec(any_decl(), 0..8),
        alignment in prop::sample::select(vec![None, Some(8u32), Some(32), Some(256)]),
        chunk in 1usize..700,
        seed in any::<u64>(),
    ) {
        let mut decls = decls;
        decls.sort_by(|a, b| a.name.cmp(&b.name));
        decls.dedup_by(|a, b| a.name == b.name);
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        let mut rng = Rng::new(seed);
        let data: Vec<Vec<u8>> = decls.iter().map(|d| bytes_of(d, &mut rng)).collect();

        let dir = tempdir().unwrap();
        let path = dir.path().join("written.gguf");
        let mut writer = Writer::create(&path, &metadata, &decls).unwrap();
        for chunk in data.concat().chunks(chunk) {
            writer.write_tensor_data(chunk).unwrap();
        }
        writer.finish().unwrap();

        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.tensors().len(), decls.len());
        for (decl, data) in decls.iter().zip(data) {
            let info = &file.tensors()[&decl.name];
            prop_assert_eq!((info.dtype, &info.shape), (decl.dtype, &decl.shape));
            prop_assert_eq!(info.offset % u64::from(alignment.unwrap_or(32)), 0);
            prop_assert_eq!(file.read(&decl.name).unwrap(), data);
        }
    }
}

#[track_caller]
fn refused<T>(result: Result<T, FormatError>, message: &str) {
    let Err(error) = result else { panic!("accepted; should have said: {message}") };
    assert!(error.to_string().ends_with(&format!("out.gguf: {message}")), "{error}");
}

#[test]
fn declarations_are_checked_and_leave_no_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let create = |decls: &[TensorDecl]| Writer::create(&path, &Metadata::new(), decls);
    refused(
        create(&[decl("t", DType::F32, &[2]), decl("t", DType::F16, &[2])]),
        "tensor `t`: expected each name once, found a second declaration",
    );
    refused(
        create(&[decl("t", DType::F32, &[])]),
        "tensor `t` shape: expected 1 to 4 dimensions, found 0 dimensions",
    );
    refused(
        create(&[decl("t", DType::Q4_0, &[32, 48])]),
        "tensor `t` shape: expected rows of a multiple of 32 weights for q4_0, found rows of 48",
    );
    let huge = 1 << 61;
    refused(
        create(&["a", "b", "c"].map(|name| decl(name, DType::F32, &[huge]))),
        "tensor `b` offset: expected a file size that fits 64 bits, found 9223372036854775808 more bytes",
    );
    let mut metadata = Metadata::new();
    metadata.insert("general.alignment", 12u32);
    refused(
        Writer::create(&path, &metadata, &[]),
        "metadata `general.alignment`: expected a power of two that is a multiple of 8, found 12",
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn too_few_or_too_many_bytes_are_errors() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let decls = [decl("first", DType::F32, &[4]), decl("second", DType::F16, &[3])];

    let mut writer = Writer::create(&path, &Metadata::new(), &decls).unwrap();
    writer.write_tensor_data(&[0; 20]).unwrap();
    refused(writer.finish(), "tensor `second` data: expected 6 bytes, found 4 bytes");

    let mut writer = Writer::create(&path, &Metadata::new(), &decls).unwrap();
    refused(
        writer.write_tensor_data(&[0; 25]),
        "tensor data: expected no more bytes than the tensors' shapes ask for, found 3 bytes after the last tensor",
    );
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn reading_an_absent_tensor_names_it() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    Writer::create(&path, &Metadata::new(), &[]).unwrap().finish().unwrap();
    let file = GgufFile::open(&path).unwrap();
    refused(file.read("blk.0"), "tensor `blk.0`: expected to be in the file, found no such tensor");
    assert_eq!(file.file().path(), path);
}

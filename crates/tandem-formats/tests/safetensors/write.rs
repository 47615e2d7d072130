//! What [`write`] writes, [`SafetensorsFile`] reads, and what `write` refuses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tandem_formats::safetensors::{Dtype, SafetensorsFile, Tensor, write};
use tandem_formats::{DType, FormatError};
use tempfile::tempdir;

fn tensor<'a>(name: &'a str, dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> Tensor<'a> {
    Tensor { name, dtype, shape, data }
}

fn write_plain(path: &Path, tensors: &[Tensor<'_>]) -> Result<(), FormatError> {
    write(path, tensors, &BTreeMap::new())
}

#[track_caller]
fn refused<T>(result: Result<T, FormatError>, message: &str) {
    let Err(error) = result else { panic!("accepted; should have said: {message}") };
    assert!(error.to_string().ends_with(&format!("out.safetensors: {message}")), "{error}");
}

#[test]
fn written_files_read_back_and_every_tensor_is_aligned() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let data: Vec<u8> = (0..=255).collect();
    let shapes: Vec<[usize; 2]> = Dtype::ALL.iter().map(|d| [3, 16 / d.size()]).collect();
    let tensors: Vec<Tensor<'_>> = Dtype::ALL
        .iter()
        .zip(&shapes)
        .map(|(&d, shape)| tensor(d.name(), d, shape, &data[..48]))
        .collect();
    let odd = tensor("odd", Dtype::U8, &[3], &data[..3]);
    let metadata = BTreeMap::from([("key \"1\"".to_owned(), "é\n".to_owned())]);
    write(&path, &[&[odd], &tensors[..]].concat(), &metadata).unwrap();

    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.metadata(), &metadata);
    assert_eq!(file.tensors().len(), tensors.len() + 1);
    assert_eq!(file.read("odd").unwrap(), data[..3]);
    for tensor in tensors {
        let info = &file.tensors()[tensor.name];
        assert_eq!((info.dtype, &info.shape[..]), (tensor.dtype, tensor.shape));
        assert_eq!(file.read(tensor.name).unwrap(), tensor.data);
        assert_eq!(info.offset % tensor.dtype.size() as u64, 0, "{}", tensor.name);
    }
    write_plain(&path, &[]).unwrap();
    assert!(SafetensorsFile::open(&path).unwrap().tensors().is_empty());
}

#[test]
fn typed_reads_convert_or_name_the_type() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let tensors = [
        tensor("f32", Dtype::F32, &[], &[0, 0, 0xc0, 0x3f]),
        tensor("f16", Dtype::F16, &[1], &[0, 0x3e]),
        tensor("bf16", Dtype::BF16, &[1, 1], &[0xc0, 0x3f]),
        tensor("i32", Dtype::I32, &[2], &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]),
        tensor("none", Dtype::F32, &[0], &[]),
    ];
    write_plain(&path, &tensors).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    for name in ["f32", "f16", "bf16"] {
        assert_eq!(file.read_f32(name).unwrap(), [1.5], "{name}");
    }
    assert!(file.read_f32("none").unwrap().is_empty());
    assert_eq!(file.read_i32("i32").unwrap(), [1, -2]);
    refused(file.read_f32("i32"), "tensor `i32` dtype: expected F32, F16 or BF16, found I32");
    refused(file.read_i32("f32"), "tensor `f32` dtype: expected I32, found F32");
    refused(
        file.read_f32("absent"),
        "tensor `absent`: expected to be in the file, found no such tensor",
    );
    assert_eq!(Dtype::BF16.to_weights(), Some(DType::BF16));
    assert_eq!(Dtype::F64.to_weights(), None);
}

#[test]
fn tensors_are_checked_and_leave_no_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let good = tensor("t", Dtype::U8, &[2], &[1, 2]);
    refused(
        write_plain(&path, &[good, good]),
        "tensor `t`: expected a name of its own, found a name already taken",
    );
    refused(
        write_plain(&path, &[Tensor { name: "__metadata__", ..good }]),
        "tensor `__metadata__`: expected a name of its own, found a name already taken",
    );
    refused(
        write_plain(&path, &[Tensor { shape: &[3], ..good }]),
        "tensor `t` data: expected the size of U8 of shape [3], found 2 bytes",
    );
    refused(
        write_plain(&path, &[Tensor { shape: &[1 << 62, 16], ..good }]),
        "tensor `t` data: expected the size of U8 of shape [4611686018427387904, 16], found 2 bytes",
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

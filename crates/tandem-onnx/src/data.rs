//! The file of weights beside the graphs: where each weight lies, and how it gets there.
//!
//! Places are given out while graphs are built; weights are read and written afterwards, a few megabytes at a time. Graphs
//! that use the same weight share its place.

use std::collections::HashMap;

use tandem_formats::{AtomicFile, DType, FormatError};
use tandem_model::reencode::{Reencoder, chunks};
use tandem_model::{Checkpoint, ModelError, PhimoeConfig, Result, TensorId};

use crate::proto::{DataLocation, DataType, StringStringEntryProto, TensorProto};

/// Weights begin at whole pages, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

/// Weights of a block share a scale.
pub(crate) const BLOCK: usize = 32;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    F32,
    F16,
    /// Blocks of [`BLOCK`] whole numbers with an f32 scale each, as MatMulNBits reads them: quants with an offset of
    /// `2^(bits-1)`, lowest bits first, and the scales apart.
    Blocks {
        /// 4 or 8.
        bits: usize,
    },
}

impl Encoding {
    /// The encoding of this program that has the same numbers.
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Blocks { bits: 4 } => DType::Q4_0,
            Self::Blocks { .. } => DType::Q8_0,
        }
    }
}

/// A weight in the file; the scales of blocks follow at the next page.
struct Place {
    id: TensorId,
    encoding: Encoding,
    offset: u64,
}

/// The file as planned.
pub(crate) struct DataFile {
    name: String,
    places: Vec<Place>,
    tensors: HashMap<TensorId, Vec<TensorProto>>,
    len: u64,
}

impl DataFile {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), places: Vec::new(), tensors: HashMap::new(), len: 0 }
    }

    /// The tensors of a weight: one, or quants and scales. Vectors have one dimension.
    ///
    /// # Panics
    /// If rows are no whole number of blocks, or the weight has another encoding elsewhere.
    pub(crate) fn tensors(
        &mut self,
        config: &PhimoeConfig,
        id: TensorId,
        encoding: Encoding,
    ) -> &[TensorProto] {
        if !self.tensors.contains_key(&id) {
            let (rows, cols) = id.shape(config);
            self.places.push(Place { id, encoding, offset: self.len.next_multiple_of(ALIGNMENT) });
            let shape = if id.is_vector() { vec![cols] } else { vec![rows, cols] };
            let name = id.hf_name();
            let tensors = match encoding {
                Encoding::F32 => vec![self.place(name, DataType::Float, &shape)],
                Encoding::F16 => vec![self.place(name, DataType::Float16, &shape)],
                Encoding::Blocks { bits } => {
                    assert!(cols.is_multiple_of(BLOCK), "{name}: {cols} columns");
                    let blocks = cols / BLOCK;
                    let quants = [rows, blocks, BLOCK * bits / 8];
                    vec![
                        self.place(format!("{name}.quants"), DataType::Uint8, &quants),
                        self.place(format!("{name}.scales"), DataType::Float, &[rows * blocks]),
                    ]
                }
            };
            self.tensors.insert(id, tensors);
        }
        &self.tensors[&id]
    }

    /// Gives a tensor the next place in the file.
    fn place(&mut self, name: String, kind: DataType, shape: &[usize]) -> TensorProto {
        let element = match kind {
            DataType::Float => 4,
            DataType::Float16 => 2,
            _ => 1,
        };
        let offset = self.len.next_multiple_of(ALIGNMENT);
        let length = (shape.iter().product::<usize>() * element) as u64;
        self.len = offset + length;
        let entry =
            |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        TensorProto {
            dims: shape.iter().map(|&n| n as i64).collect(),
            data_type: kind.into(),
            name,
            external_data: vec![
                entry("location", self.name.clone()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: Some(DataLocation::External.into()),
            ..TensorProto::default()
        }
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes all weights in the order of their places. `progress` is told the number of weights done since it was last
    /// called; it answers whether to go on.
    pub(crate) fn write(
        &self,
        checkpoint: &Checkpoint,
        file: AtomicFile,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let mut output = Output { file, position: 0 };
        let mut reencoder = Reencoder::default();
        for place in &self.places {
            output.pad_to(place.offset)?;
            let entry = checkpoint.entry(place.id);
            let dtype = place.encoding.dtype();
            let mut scales = Vec::new();
            for rows in chunks(entry) {
                let weights = (rows.len() * entry.cols) as u64;
                let bytes = reencoder.rows(checkpoint, place.id, rows, dtype)?;
                match place.encoding {
                    Encoding::F32 | Encoding::F16 => output.append(bytes)?,
                    Encoding::Blocks { bits } => {
                        output.append(&take_apart(bytes, bits, &mut scales))?;
                    }
                }
                if !progress(weights) {
                    return Err(ModelError::Interrupted);
                }
            }
            if !scales.is_empty() {
                output.pad_to(output.position.next_multiple_of(ALIGNMENT))?;
                output.append(&scales)?;
            }
        }
        Ok(output.file.commit()?)
    }
}

/// The file and how far it is.
struct Output {
    file: AtomicFile,
    position: u64,
}

impl Output {
    fn append(&mut self, bytes: &[u8]) -> std::result::Result<(), FormatError> {
        self.position += bytes.len() as u64;
        self.file.append(bytes)
    }

    fn pad_to(&mut self, offset: u64) -> std::result::Result<(), FormatError> {
        let missing = usize::try_from(offset - self.position).unwrap_or_default();
        self.append(&vec![0; missing])
    }
}

/// Blocks of q4_0 or q8_0 as MatMulNBits' quants; their scales go to `scales`, as f32.
fn take_apart(blocks: &[u8], bits: usize, scales: &mut Vec<u8>) -> Vec<u8> {
    let dtype = Encoding::Blocks { bits }.dtype();
    let mut all = Vec::with_capacity(blocks.len());
    for block in blocks.chunks_exact(dtype.block_bytes()) {
        let (scale, quants) = block.split_at(2);
        let scale = half::f16::from_le_bytes([scale[0], scale[1]]).to_f32();
        scales.extend_from_slice(&scale.to_le_bytes());
        match bits {
            // A byte of q4_0 has weights i and i + 16, one of MatMulNBits 2i and 2i + 1.
            4 => {
                let (pairs, _) = quants.as_chunks::<2>();
                all.extend(pairs.iter().map(|[a, b]| a & 15 | b << 4));
                all.extend(pairs.iter().map(|[a, b]| a >> 4 | b & 0xf0));
            }
            // q8_0 has signed numbers.
            _ => all.extend(quants.iter().map(|q| q.wrapping_add(128))),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_formats::blocks;

    /// What MatMulNBits' description says the quants mean.
    fn dequantize(quants: &[u8], scales: &[u8], bits: usize) -> Vec<f32> {
        let scale = |block: usize| f32::from_le_bytes(scales[4 * block..][..4].try_into().unwrap());
        let quant = |n: usize| match bits {
            4 => f32::from(quants[n / 2] >> (4 * (n % 2)) & 15) - 8.0,
            _ => f32::from(quants[n]) - 128.0,
        };
        (0..quants.len() * 8 / bits).map(|n| quant(n) * scale(n / BLOCK)).collect()
    }

    #[test]
    fn blocks_taken_apart_are_the_same_weights() {
        let weights: Vec<f32> = (0..64u8).map(|i| (f32::from(i) * 0.7).sin()).collect();
        for (dtype, bits) in [(DType::Q4_0, 4), (DType::Q8_0, 8)] {
            let mut bytes = vec![0; dtype.bytes_for(64).unwrap()];
            blocks::quantize(dtype, &weights, &mut bytes).unwrap();
            let mut expected = vec![0.0; 64];
            blocks::dequantize(dtype, &bytes, &mut expected);
            let mut scales = Vec::new();
            let quants = take_apart(&bytes, bits, &mut scales);
            assert_eq!(dequantize(&quants, &scales, bits), expected, "{dtype}");
        }
    }

    #[test]
    fn places_are_pages_apart_and_shared() {
        let path = tandem_testkit::testdata("golden/model/config.json");
        let json = std::fs::read(&path).unwrap();
        let config = PhimoeConfig::from_json_bytes(&path, &json).unwrap();
        let mut file = DataFile::new("weights");
        let first = file.tensors(&config, TensorId::OutputNormBias, Encoding::F32).to_vec();
        let blocks = Encoding::Blocks { bits: 4 };
        let head = file.tensors(&config, TensorId::LmHeadWeight, blocks).to_vec();
        assert_eq!(file.tensors(&config, TensorId::OutputNormBias, Encoding::F32), first);
        let offsets: Vec<&str> =
            first.iter().chain(&head).map(|t| t.external_data[1].value.as_str()).collect();
        assert_eq!(offsets, ["0", "4096", "36864"]); // 512 x 128 weights of 4 bits
        assert_eq!(file.len(), 36864 + 512 * 4 * 4);
    }
}

//! GGUF headers put together by hand, so that each part of them can be made wrong.

/// Metadata type numbers of the format.
pub(crate) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const U32: u32 = 4;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// An array's bytes: element type, a length that may be a lie, elements.
pub(crate) fn array(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes(), &len.to_le_bytes()[..], elements].concat()
}

/// One tensor info; dimensions fastest first, as in the file.
#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) name: Vec<u8>,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
}

pub(crate) fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> RawTensor {
    RawTensor { name: string(name), dims: dims.to_vec(), kind, offset }
}

/// A whole file. Starts out valid, with one metadata entry of each sort and two tensors.
#[derive(Clone)]
pub(crate) struct RawFile {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) n_tensors: Option<u64>,
    pub(crate) n_entries: Option<u64>,
    pub(crate) entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<RawTensor>,
    pub(crate) alignment: usize,
    pub(crate) data_len: usize,
}

impl RawFile {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_entries: None,
            entries: vec![
                (string("general.name"), kind::STRING, string("tiny")),
                (string("flag"), kind::BOOL, vec![1]),
                (
                    string("words"),
                    kind::ARRAY,
                    array(kind::STRING, 2, &[string("a"), string("bc")].concat()),
                ),
                (string("counts"), kind::ARRAY, array(kind::U32, 1, &[7, 0, 0, 0])),
            ],
            // 16 floats; 2 rows of one Q8_0 block: 64 + 68 bytes, up to a multiple of the alignment.
            tensors: vec![tensor("floats", &[8, 2], 0, 0), tensor("blocks", &[32, 2], 8, 64)],
            alignment: 32,
            data_len: 132,
        }
    }

    pub(crate) fn entry(mut self, key: &str, kind: u32, value: Vec<u8>) -> Self {
        self.entries.push((string(key), kind, value));
        self
    }

    pub(crate) fn tensors(mut self, tensors: &[RawTensor]) -> Self {
        self.tensors = tensors.to_vec();
        self
    }

    /// Everything in front of the padding and the data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend(key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(&tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend((0..self.data_len).map(|i| i as u8));
        out
    }
}

//! Tensors in frames of their own: raw numbers, little-endian, the last dimension's next to each other.

use half::{bf16, f16};

use super::Fault;

/// How a tensor's numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point of IEEE 754.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 32-bit whole numbers, for ids.
    U32,
    /// The same with a sign; negative ids are refused.
    I32,
    /// 64-bit whole numbers with a sign, for ids.
    I64,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::U32, Self::I32, Self::I64];

    /// As answers have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::I64 => "int64",
        }
    }

    const fn short(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// Bytes of a number.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Whether it is for ids.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::U32 | Self::I32 | Self::I64)
    }

    /// The name of PyTorch and NumPy (`float16`), or the short one (`f16`).
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn parse(name: &str) -> Result<Self, Fault> {
        let known = |dtype: &Self| dtype.name() == name || dtype.short() == name;
        Self::ALL.into_iter().find(known).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let found: String = name.chars().take(32).collect();
            Fault::request(format!("input_dtype: expected one of {names}, found {found:?}"))
        })
    }
}

/// A tensor's numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// Rows of activations.
    Numbers(Vec<f32>),
    /// Ids of tokens.
    Ids(Vec<u32>),
}

impl Tensor {
    /// Reads a frame, whose length the shape and the type must give.
    ///
    /// # Errors
    /// Where they do not, or a number is NaN, infinite, or an id that cannot be.
    pub fn read(frame: &[u8], dtype: Dtype, len: usize) -> Result<Self, Fault> {
        let expected = len.saturating_mul(dtype.size());
        if frame.len() != expected {
            let (name, found) = (dtype.name(), frame.len());
            return Err(Fault::request(format!(
                "the tensor frame: expected {expected} bytes ({len} x {name}), found {found}"
            )));
        }
        if dtype.is_whole() {
            let ids: Result<Vec<u32>, i64> = match dtype {
                Dtype::I32 => {
                    numbers(frame, i32::from_le_bytes).map(|id| id_of(id.into())).collect()
                }
                Dtype::I64 => numbers(frame, i64::from_le_bytes).map(id_of).collect(),
                _ => numbers(frame, u32::from_le_bytes).map(Ok).collect(),
            };
            return ids.map(Self::Ids).map_err(|found| {
                Fault::request(format!("the tensor frame: expected ids of tokens, found {found}"))
            });
        }
        let values: Vec<f32> = match dtype {
            Dtype::F16 => numbers(frame, f16::from_le_bytes).map(f32::from).collect(),
            Dtype::Bf16 => numbers(frame, bf16::from_le_bytes).map(f32::from).collect(),
            _ => numbers(frame, f32::from_le_bytes).collect(),
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Self::Numbers(values)),
            Some(index) => {
                let found = values[index];
                Err(Fault::request(format!(
                    "the tensor frame: expected finite numbers, found {found} at {index}"
                )))
            }
        }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Ids(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Numbers as a frame has them.
pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn numbers<const N: usize, T>(
    frame: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> impl Iterator<Item = T> {
    frame.as_chunks::<N>().0.iter().map(move |&bytes| read(bytes))
}

fn id_of(id: i64) -> Result<u32, i64> {
    u32::try_from(id).map_err(|_| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_numbers() {
        let frame = |values: &[f32]| bytes(values);
        let read = |frame: &[u8], dtype, len| Tensor::read(frame, dtype, len);
        assert_eq!(read(&frame(&[1.5, -2.0]), Dtype::F32, 2), Ok(Tensor::Numbers(vec![1.5, -2.0])));
        assert_eq!(
            read(&[0x00, 0x3c, 0x00, 0xc0], Dtype::F16, 2),
            Ok(Tensor::Numbers(vec![1.0, -2.0]))
        );
        assert_eq!(
            read(&[0x80, 0x3f, 0x00, 0xc0], Dtype::Bf16, 2),
            Ok(Tensor::Numbers(vec![1.0, -2.0]))
        );
        assert_eq!(read(&7i64.to_le_bytes(), Dtype::I64, 1), Ok(Tensor::Ids(vec![7])));
        assert_eq!(read(&7u32.to_le_bytes(), Dtype::U32, 1), Ok(Tensor::Ids(vec![7])));
        assert_eq!(read(&[], Dtype::F32, 0), Ok(Tensor::Numbers(vec![])));
    }

    #[test]
    fn what_is_no_such_tensor_is_refused() {
        let message =
            |frame: &[u8], dtype, len| Tensor::read(frame, dtype, len).unwrap_err().message;
        assert_eq!(
            message(&[0; 7], Dtype::F32, 2),
            "the tensor frame: expected 8 bytes (2 x float32), found 7"
        );
        assert_eq!(
            message(&bytes(&[1.0, f32::NAN]), Dtype::F32, 2),
            "the tensor frame: expected finite numbers, found NaN at 1"
        );
        assert_eq!(
            message(&(-1i32).to_le_bytes(), Dtype::I32, 1),
            "the tensor frame: expected ids of tokens, found -1"
        );
        assert!(
            message(&[], Dtype::F32, usize::MAX).contains("expected 18446744073709551615 bytes")
        );
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::parse(dtype.name()), Ok(dtype));
            assert_eq!(Dtype::parse(dtype.short()), Ok(dtype));
        }
        assert_eq!(
            Dtype::parse("float64").unwrap_err().message,
            "input_dtype: expected one of float32, float16, bfloat16, uint32, int32, int64, found \"float64\""
        );
    }
}

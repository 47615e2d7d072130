//! The element types that safetensors headers name.

use crate::DType;

macro_rules! dtypes {
    ($($name:ident $size:literal $what:literal),+ $(,)?) => {
        /// The type of a tensor's elements.
        #[allow(non_camel_case_types)] // the names in the files
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype {
            $(#[doc = $what] $name,)+
        }

        impl Dtype {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Bytes of one element.
            pub const fn size(self) -> usize {
                match self {
                    $(Self::$name => $size,)+
                }
            }

            /// The name in headers.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

dtypes! {
    BOOL 1 "Boolean, one byte.",
    U8 1 "8-bit unsigned integer.",
    I8 1 "8-bit signed integer.",
    F8_E4M3 1 "8-bit float, 4 bits of exponent.",
    F8_E5M2 1 "8-bit float, 5 bits of exponent.",
    I16 2 "16-bit signed integer.",
    U16 2 "16-bit unsigned integer.",
    F16 2 "IEEE 754 binary16.",
    BF16 2 "The upper half of binary32.",
    I32 4 "32-bit signed integer.",
    U32 4 "32-bit unsigned integer.",
    F32 4 "IEEE 754 binary32.",
    F64 8 "IEEE 754 binary64.",
    I64 8 "64-bit signed integer.",
    U64 8 "64-bit unsigned integer.",
}

impl Dtype {
    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.name() == name)
    }

    /// The encoding of weights this is, if it is one of those that Tandem computes with.
    pub const fn to_weights(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

//! Metadata values: numbers, booleans, strings and arrays of those.
//!
//! Arrays are typed vectors. A tokenizer's vocabulary has tens of thousands of entries, so a vector of
//! [`Value`]s would cost several times the file's own size.

use std::fmt;

use crate::text::Quoted;

macro_rules! kinds {
    ($($kind:ident($ty:ty) = $id:literal $name:literal $what:literal),+ $(,)?) => {
        /// The type of a metadata value, or of an array's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum ValueType {
            $(#[doc = $what] $kind = $id,)+
            /// An array, whose elements have a type of their own.
            Array = 9,
        }

        impl ValueType {
            /// The type with that number in GGUF files.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$kind),)+
                    9 => Some(Self::Array),
                    _ => None,
                }
            }

            /// The name used in messages.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                    Self::Array => "array",
                }
            }
        }

        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = $what] $kind($ty),)+
            /// Many values of one type.
            Array(Array),
        }

        impl Value {
            /// The type of this value.
            pub const fn value_type(&self) -> ValueType {
                match self {
                    $(Self::$kind(_) => ValueType::$kind,)+
                    Self::Array(_) => ValueType::Array,
                }
            }

            pub(super) fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$kind(x) => x.put(out),)+
                    Self::Array(array) => {
                        (array.element_type() as u32).put(out);
                        (array.len() as u64).put(out);
                        array.encode(out);
                    }
                }
            }
        }

        /// An array of values of one type. GGUF also has arrays of arrays; nothing uses them and they are refused.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = $what] $kind(Vec<$ty>),)+
        }

        impl Array {
            /// The type of the elements.
            pub const fn element_type(&self) -> ValueType {
                match self {
                    $(Self::$kind(_) => ValueType::$kind,)+
                }
            }

            /// The number of elements.
            pub const fn len(&self) -> usize {
                match self {
                    $(Self::$kind(v) => v.len(),)+
                }
            }

            /// Whether there are no elements.
            pub const fn is_empty(&self) -> bool {
                self.len() == 0
            }

            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$kind(v) => v.iter().for_each(|x| x.put(out)),)+
                }
            }
        }

        $(
            impl From<$ty> for Value {
                fn from(x: $ty) -> Self {
                    Self::$kind(x)
                }
            }

            impl From<Vec<$ty>> for Value {
                fn from(v: Vec<$ty>) -> Self {
                    Self::Array(Array::$kind(v))
                }
            }
        )+
    };
}

kinds! {
    U8(u8) = 0 "u8" "8-bit unsigned integer.",
    I8(i8) = 1 "i8" "8-bit signed integer.",
    U16(u16) = 2 "u16" "16-bit unsigned integer.",
    I16(i16) = 3 "i16" "16-bit signed integer.",
    U32(u32) = 4 "u32" "32-bit unsigned integer.",
    I32(i32) = 5 "i32" "32-bit signed integer.",
    F32(f32) = 6 "f32" "32-bit float.",
    Bool(bool) = 7 "bool" "Boolean, one byte.",
    String(String) = 8 "string" "UTF-8 text.",
    U64(u64) = 10 "u64" "64-bit unsigned integer.",
    I64(i64) = 11 "i64" "64-bit signed integer.",
    F64(f64) = 12 "f64" "64-bit float.",
}

impl Value {
    /// The value as an unsigned integer, whichever integer type holds it; `None` for negative ones and other types.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::U64(x) => Some(x),
            Self::I8(x) => x.try_into().ok(),
            Self::I16(x) => x.try_into().ok(),
            Self::I32(x) => x.try_into().ok(),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::String(s.to_owned())
    }
}

/// Type and value, as in "u32 7"; arrays by length and element type only.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.value_type().name())?;
        match self {
            Self::Array(a) => write!(f, " of {} {}", a.len(), a.element_type().name()),
            Self::String(s) => write!(f, " {}", Quoted(s)),
            Self::U8(x) => write!(f, " {x}"),
            Self::I8(x) => write!(f, " {x}"),
            Self::U16(x) => write!(f, " {x}"),
            Self::I16(x) => write!(f, " {x}"),
            Self::U32(x) => write!(f, " {x}"),
            Self::I32(x) => write!(f, " {x}"),
            Self::U64(x) => write!(f, " {x}"),
            Self::I64(x) => write!(f, " {x}"),
            Self::F32(x) => write!(f, " {x}"),
            Self::F64(x) => write!(f, " {x}"),
            Self::Bool(x) => write!(f, " {x}"),
        }
    }
}

/// Appends a value's bytes as GGUF stores them.
pub(super) trait Put {
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! put_number {
    ($($ty:ty)+) => {
        $(impl Put for $ty {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })+
    };
}

put_number!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl Put for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Put for str {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }
}

impl Put for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_str().put(out);
    }
}

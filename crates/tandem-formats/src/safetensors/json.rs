//! The header's JSON, as it stands in the file.
//!
//! Deserialising into a map would silently keep the last of two tensors with one name, so the top level and the
//! metadata are visited entry by entry.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::text::Quoted;

/// The entry of the top level that is no tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// One tensor as the header describes it. Fields the format does not know are ignored, as its own library does.
#[derive(Deserialize)]
pub(super) struct RawTensor {
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: [u64; 2],
}

/// The top level.
#[derive(Default)]
pub(super) struct RawHeader {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA_KEY {
                        let tensor = map.next_value()?;
                        insert_once(&mut header.tensors, name, tensor)?;
                    } else if metadata.replace(map.next_value::<Unique<String>>()?).is_some() {
                        return Err(repeated(METADATA_KEY));
                    }
                }
                header.metadata = metadata.map_or_else(BTreeMap::new, |m| m.0);
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map that refuses a key that comes twice.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    insert_once(&mut entries, key, value)?;
                }
                Ok(Unique(entries))
            }
        }

        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

fn insert_once<T, E: Error>(map: &mut BTreeMap<String, T>, key: String, value: T) -> Result<(), E> {
    match map.entry(key) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert(value);
            Ok(())
        }
        std::collections::btree_map::Entry::Occupied(old) => Err(repeated(old.key())),
    }
}

fn repeated<E: Error>(name: &str) -> E {
    E::custom(format_args!("{} appears twice", Quoted(name)))
}

//! GGUF files: against the Python package, round trips, and every way a header can be wrong.

mod bytes;
mod interop;
mod malformed;
mod metadata;
mod roundtrip;

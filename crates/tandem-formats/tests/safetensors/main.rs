//! safetensors files: against the Python package, round trips, and every way a header can be wrong.

mod interop;
mod malformed;
mod write;

//! One file per command.

pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod export_onnx;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod policies;
pub(crate) mod quantize;
pub(crate) mod report_session;
pub(crate) mod run;
pub(crate) mod scheduler;
pub(crate) mod serve;
pub(crate) mod tokenize;

//! What clients and the scheduler say to each other: `docs/protocol.md`.
//!
//! A message is one frame of JSON, perhaps with tensors in frames after it. Everything in it comes from a stranger: sizes
//! are checked before anything is made of them, and what is wrong is told in one line that names the field.

mod answer;
mod generate;
mod logprobs;
mod packet;
mod result;
mod sampling;
mod tensor;

pub use answer::{Answer, Code, Fault};
pub use generate::{Generate, StopStrings, TextSide};
pub use logprobs::{IdLogprob, TokenLogprob};
pub use packet::{DeviceTarget, PacketResult, TensorSource, WorkPacket};
pub use result::GenerateResult;
pub use sampling::SamplingFields;
pub(crate) use tensor::bytes as tensor_bytes;
pub use tensor::{Dtype, Tensor};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The version of the protocol that this is, as `health_check` tells it.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest JSON frame: the ids of the longest context there is take a megabyte.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// The longest tensor frame: the widest input of the largest batch takes a quarter of that.
pub const MAX_TENSOR_BYTES: usize = 64 << 20;
/// Frames of a message, at most: JSON, a tensor, and none for the future.
pub const MAX_FRAMES: usize = 2;
/// The longest `id`, as text.
const MAX_ID_BYTES: usize = 256;

/// A client's message.
#[derive(Debug)]
pub struct Message {
    /// What the client calls the message; answers have it too.
    pub id: Option<Value>,
    /// What it wants.
    pub request: Request,
}

/// What a client wants.
#[derive(Debug)]
pub enum Request {
    /// Whether the scheduler is well.
    HealthCheck,
    /// One operation of one layer.
    WorkPacket(Box<WorkPacket>),
    /// A text.
    Generate(Box<Generate>),
    /// The end of a text.
    Cancel(Cancel),
    /// What operations took.
    GetTelemetry,
    /// How much memory bandwidth is in use.
    GetBandwidthStats,
    /// What the engine does now, as the dashboard shows it.
    GetState,
    /// The recent past, as a trace for Perfetto.
    GetTrace,
    /// Another scheduling policy.
    SetPolicy(SetPolicy),
    /// The partition config, read anew.
    ReloadConfig(ReloadConfig),
    /// The end of the scheduler.
    Shutdown,
}

/// The types of messages.
pub const TYPES: [&str; 11] = [
    "health_check",
    "work_packet",
    "generate",
    "cancel",
    "get_telemetry",
    "get_bandwidth_stats",
    "get_state",
    "get_trace",
    "set_policy",
    "reload_config",
    "shutdown",
];

/// Which texts are to end.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The `id` of the client's message that began the text; without it all texts of this client.
    #[serde(default)]
    pub target: Option<Value>,
}

/// How operations are to be scheduled from now on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// `static`, `bandwidth_aware` or `adaptive`.
    pub policy: String,
    /// Whether micro-batches are pipelined; as before where it is not said.
    #[serde(default)]
    pub enable_pipelining: Option<bool>,
}

/// What the config is to be read from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ReloadConfig {
    /// The config itself, as YAML; without it the file that the scheduler was started with is read anew.
    #[serde(default)]
    pub yaml: Option<String>,
}

/// No fields beside `type` and `id`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// The only field of a work packet's message.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    data: WorkPacket,
}

impl Message {
    /// Reads a JSON frame.
    ///
    /// # Errors
    /// What is wrong with it, with the `id` where there is one: the answer shall have it.
    pub fn parse(frame: &[u8]) -> Result<Self, (Option<Value>, Fault)> {
        let mut fields = object(frame).map_err(|fault| (None, fault))?;
        let id = fields.remove("id");
        match id.as_ref().map_or(Ok(()), check_id) {
            Ok(()) => {}
            Err(fault) => return Err((None, fault)),
        }
        match request(fields) {
            Ok(request) => Ok(Self { id, request }),
            Err(fault) => Err((id, fault)),
        }
    }
}

impl Request {
    /// What messages of this kind are called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::HealthCheck => "health_check",
            Self::WorkPacket(_) => "work_packet",
            Self::Generate(_) => "generate",
            Self::Cancel(_) => "cancel",
            Self::GetTelemetry => "get_telemetry",
            Self::GetBandwidthStats => "get_bandwidth_stats",
            Self::GetState => "get_state",
            Self::GetTrace => "get_trace",
            Self::SetPolicy(_) => "set_policy",
            Self::ReloadConfig(_) => "reload_config",
            Self::Shutdown => "shutdown",
        }
    }
}

fn object(frame: &[u8]) -> Result<Map<String, Value>, Fault> {
    if frame.len() > MAX_JSON_BYTES {
        let found = frame.len();
        return Err(Fault::request(format!(
            "the JSON frame: expected at most {MAX_JSON_BYTES} bytes, found {found}"
        )));
    }
    match serde_json::from_slice(frame) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => {
            let found = kind(&other);
            Err(Fault::request(format!("a message: expected a JSON object, found {found}")))
        }
        Err(error) => Err(Fault::request(format!("a message: not valid JSON: {error}"))),
    }
}

fn check_id(id: &Value) -> Result<(), Fault> {
    match id {
        Value::String(text) if text.len() > MAX_ID_BYTES => Err(Fault::request(format!(
            "id: expected at most {MAX_ID_BYTES} bytes, found {}",
            text.len()
        ))),
        Value::String(_) | Value::Number(_) => Ok(()),
        other => {
            let found = kind(other);
            Err(Fault::request(format!("id: expected a string or a number, found {found}")))
        }
    }
}

fn request(mut fields: Map<String, Value>) -> Result<Request, Fault> {
    let expected = || format!("expected one of {}", TYPES.join(", "));
    let kind = match fields.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(other) => {
            let found = kind(&other);
            return Err(Fault::request(format!("type: {}, found {found}", expected())));
        }
        None => return Err(Fault::request(format!("type is missing: {}", expected()))),
    };
    match kind.as_str() {
        "health_check" => nothing(fields, &kind).map(|()| Request::HealthCheck),
        "work_packet" => {
            let Data { data } = read(fields, &kind)?;
            Ok(Request::WorkPacket(Box::new(data)))
        }
        "generate" => read(fields, &kind).map(|generate| Request::Generate(Box::new(generate))),
        "cancel" => read(fields, &kind).map(Request::Cancel),
        "get_telemetry" => nothing(fields, &kind).map(|()| Request::GetTelemetry),
        "get_bandwidth_stats" => nothing(fields, &kind).map(|()| Request::GetBandwidthStats),
        "get_state" => nothing(fields, &kind).map(|()| Request::GetState),
        "get_trace" => nothing(fields, &kind).map(|()| Request::GetTrace),
        "set_policy" => read(fields, &kind).map(Request::SetPolicy),
        "reload_config" => read(fields, &kind).map(Request::ReloadConfig),
        "shutdown" => nothing(fields, &kind).map(|()| Request::Shutdown),
        _ => {
            let kind: String = kind.chars().take(64).collect();
            let message = format!("type: {}, found {kind:?}", expected());
            Err(Fault { code: Code::UnknownType, ..Fault::request(message) })
        }
    }
}

fn nothing(fields: Map<String, Value>, kind: &str) -> Result<(), Fault> {
    read::<Nothing>(fields, kind).map(|Nothing {}| ())
}

fn read<T: DeserializeOwned>(fields: Map<String, Value>, kind: &str) -> Result<T, Fault> {
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| Fault::request(format!("{kind}: {error}")))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (Option<Value>, String) {
        let (id, fault) = Message::parse(text.as_bytes()).unwrap_err();
        (id, fault.message)
    }

    #[test]
    fn every_type_is_known_by_its_name() {
        for name in TYPES {
            let text = match name {
                "work_packet" => {
                    r#"{"type":"work_packet","data":{"packet_id":1,"operation":"lm_head","input_shape":[1,8]}}"#
                        .to_owned()
                }
                "generate" => r#"{"type":"generate","prompt":"Once"}"#.to_owned(),
                "set_policy" => r#"{"type":"set_policy","policy":"static"}"#.to_owned(),
                name => format!(r#"{{"type":"{name}","id":7}}"#),
            };
            assert_eq!(Message::parse(text.as_bytes()).unwrap().request.name(), name);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_message_s_id() {
        let id = || Some(Value::from("a"));
        for (text, id, expected) in [
            ("", None, "a message: not valid JSON: EOF while parsing a value at line 1 column 0"),
            ("[1]", None, "a message: expected a JSON object, found an array"),
            (r#"{"id":"a"}"#, id(), "type is missing: expected one of health_check, work_packet"),
            (r#"{"id":"a","type":3}"#, id(), "type: expected one of health_check, work_packet"),
            (r#"{"id":"a","type":"hello"}"#, id(), "type: expected one of health_check"),
            (
                r#"{"id":["a"],"type":"shutdown"}"#,
                None,
                "id: expected a string or a number, found an array",
            ),
            (r#"{"id":"a","type":"shutdown","now":1}"#, id(), "shutdown: unknown field `now`"),
            (r#"{"id":"a","type":"work_packet"}"#, id(), "work_packet: missing field `data`"),
            (
                r#"{"id":"a","type":"set_policy","policy":1}"#,
                id(),
                "set_policy: invalid type: integer `1`, expected a string",
            ),
            (
                r#"{"id":"a","type":"generate","promt":"x"}"#,
                id(),
                "generate: unknown field `promt`, expected one of `prompt`",
            ),
        ] {
            let (found, message) = fault(text);
            assert_eq!(found, id, "{text}");
            assert!(message.starts_with(expected), "{text}: {message}");
        }
        let long = format!(r#"{{"type":"shutdown","id":"{}"}}"#, "a".repeat(300));
        assert_eq!(fault(&long).1, "id: expected at most 256 bytes, found 300");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(fault(&deep).1.contains("recursion limit exceeded"));
    }
}

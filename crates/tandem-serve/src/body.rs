//! A request's body: JSON, within limits of size and time.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use crate::app::Shared;
use crate::error::ApiError;

/// A body that is JSON of a type.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Shared> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, ApiError> {
        let limits = app.options.limits;
        // A page of another origin can send other types without asking first.
        if !is_json(request.headers()) {
            let message = "expected the header Content-Type: application/json";
            return Err(ApiError::of_client(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let too_large = || {
            let message = format!("the body is longer than {} bytes", limits.body_bytes);
            ApiError::of_client(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        if content_length(request.headers()).is_some_and(|length| length > limits.body_bytes) {
            return Err(too_large());
        }
        let read = to_bytes(request.into_body(), limits.body_bytes);
        let bytes = match tokio::time::timeout(limits.body_timeout, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if is_too_large(&error) => return Err(too_large()),
            Ok(Err(_)) => return Err(ApiError::invalid("", "the body could not be read")),
            Err(_) => {
                let seconds = limits.body_timeout.as_secs();
                let message = format!("the body was not complete within {seconds} s");
                return Err(ApiError::of_client(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        parse(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = text.and_then(|text| text.split(';').next()).map(str::trim);
    essence.is_some_and(|essence| {
        let essence = essence.to_ascii_lowercase();
        essence == "application/json"
            || essence.starts_with("application/") && essence.ends_with("+json")
    })
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause = Some(error as &dyn std::error::Error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error names the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => {
                ApiError::invalid(path.clone(), format!("{path}: {inner}"))
            }
            _ => ApiError::invalid("", format!("the body: {inner}")),
        }
    })?;
    json.end().map_err(|error| ApiError::invalid("", format!("the body: {error}")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only parsed")]
        n: u8,
    }

    #[test]
    fn errors_name_the_field() {
        let error = |json: &str| {
            let error = parse::<Vec<Inner>>(json.as_bytes()).unwrap_err().detail;
            (error.param.unwrap_or_default(), error.message)
        };
        let (param, message) = error(r#"[{"n":1},{"n":"x"}]"#);
        assert_eq!(param, "[1].n");
        assert!(message.starts_with("[1].n: invalid type: string \"x\", expected u8"), "{message}");
        assert_eq!(error(r#"[{"m":1}]"#).0, "[0].m");
        assert!(error("[").1.starts_with("the body: EOF"));
        assert!(error("[] []").1.starts_with("the body: trailing characters"));
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let of = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]))
        };
        assert!(of("application/json") && of("Application/JSON; charset=utf-8"));
        assert!(of("application/vnd.api+json"));
        assert!(!of("text/plain") && !of("multipart/form-data") && !of("text/json+json"));
        assert!(!is_json(&HeaderMap::new()));
    }
}

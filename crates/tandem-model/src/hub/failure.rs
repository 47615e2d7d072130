//! What went wrong, and what the user can do about it.

use hf_hub::api::sync::ApiError;

use super::{HubModel, HubOptions};
use crate::ModelError;
use crate::error::one_line;

/// The message of an error; the model's name comes in front of it at the end.
#[derive(Debug)]
pub(super) struct Failure(String);

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The cache cannot be written.
    pub(super) fn cache(error: &std::io::Error, options: &HubOptions) -> Self {
        Self(format!("cache folder {}: {error}", options.cache.display()))
    }

    /// An error of `hf-hub` in words that help; `file` is the one that was being fetched, if any.
    pub(super) fn from_api(
        error: &ApiError,
        model: &HubModel,
        options: &HubOptions,
        file: Option<&str>,
    ) -> Self {
        let what = match file {
            Some(file) => format!("cannot fetch {file}"),
            None => format!("cannot look up revision {:?}", model.revision()),
        };
        let hint = match (root(error), status(error)) {
            (_, Some(status)) => for_status(status, model, options),
            (ApiError::IoError(e), None) if is_local(e) => return Self::cache(e, options),
            (ApiError::RequestError(_) | ApiError::IoError(_), None) => format!(
                "no connection to {} ({}); check the network, or set HF_HUB_OFFLINE=1 to use the cache only",
                options.endpoint,
                root(error)
            ),
            (ApiError::LockAcquisition(_), None) => {
                "another process is fetching it; try again later".to_owned()
            }
            (other, None) => {
                format!("{} does not answer as a Hugging Face hub does ({other})", options.endpoint)
            }
        };
        Self(format!("{what}: {hint}"))
    }

    pub(super) fn for_model(self, id: &str) -> ModelError {
        ModelError::Hub { id: one_line(id), message: one_line(&self.0) }
    }
}

fn for_status(status: u16, model: &HubModel, options: &HubOptions) -> String {
    let page = format!("{}/{}", options.endpoint, model.name());
    let has_token = options.token.is_some();
    match status {
        // The hub answers 401 for what does not exist, too, so as not to tell private names.
        401 if has_token => {
            format!("the hub refuses the token (HTTP 401); check HF_TOKEN and the name, {page}")
        }
        401 => format!(
            "no such model, or not a public one (HTTP 401); check the name, {page}, or set HF_TOKEN"
        ),
        403 if has_token => {
            format!("the token gives no access (HTTP 403); accept the model's terms at {page}")
        }
        403 => format!(
            "access needs a login (HTTP 403); accept the model's terms at {page} and set HF_TOKEN"
        ),
        404 => format!("not found (HTTP 404); check the name and the revision at {page}"),
        429 => "the hub asks for fewer requests (HTTP 429); try again later, or set HF_TOKEN"
            .to_owned(),
        500.. => format!("the hub has a problem (HTTP {status}); try again later"),
        _ => format!("the hub answered HTTP {status}"),
    }
}

/// Whether a later attempt may succeed.
pub(super) fn is_transient(error: &ApiError) -> bool {
    match (root(error), status(error)) {
        (_, Some(status)) => status == 408 || status == 429 || status >= 500,
        (ApiError::IoError(e), None) => !is_local(e),
        (ApiError::RequestError(_), None) => true,
        _ => false,
    }
}

fn root(error: &ApiError) -> &ApiError {
    match error {
        ApiError::TooManyRetries(inner) => root(inner),
        other => other,
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match root(error) {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an I/O error is the disk's and not the network's; `hf-hub` has one variant for both.
fn is_local(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    matches!(
        error.kind(),
        AlreadyExists
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | QuotaExceeded
            | ReadOnlyFilesystem
            | StorageFull
    )
}

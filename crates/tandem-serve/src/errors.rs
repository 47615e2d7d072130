//! Errors that several operations of the OpenAPI document may answer with.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder, ResponsesBuilder};

/// Those of requests with a body.
pub(crate) struct BodyErrors;

impl IntoResponses for BodyErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors(&[
            (400, "Something about the request cannot be"),
            (401, "No key, or a wrong one"),
            (408, "The body did not come in time"),
            (413, "The body is too long"),
            (415, "The body is not JSON"),
        ])
    }
}

/// Those of requests that the model answers.
pub(crate) struct AnswerErrors;

impl IntoResponses for AnswerErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors(&[
            (404, "There is no such model"),
            (500, "The server failed"),
            (503, "The queue is full: try again later"),
            (504, "The answer took too long"),
        ])
    }
}

fn errors(all: &[(u16, &str)]) -> BTreeMap<String, RefOr<Response>> {
    let response = |description: &str| {
        let schema = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
        ResponseBuilder::new().description(description).content("application/json", schema.build())
    };
    let add = |responses: ResponsesBuilder, (status, description): &(u16, &str)| {
        responses.response(status.to_string(), response(description).build())
    };
    all.iter().fold(ResponsesBuilder::new(), add).build().into()
}

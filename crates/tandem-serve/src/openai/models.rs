//! `/v1/models`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Shared};
use crate::error::{ApiError, ErrorBody};

/// A model.
#[derive(Serialize, ToSchema)]
pub(crate) struct Model {
    /// Its name.
    id: String,
    /// `model`
    object: &'static str,
    /// When the server was started, in seconds since 1970.
    created: u64,
    /// `tandem`
    owned_by: &'static str,
    /// Tokens that one text may have.
    max_model_len: usize,
}

/// The models there are.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`
    object: &'static str,
    /// The models.
    data: Vec<Model>,
}

impl Model {
    fn of(app: &App) -> Self {
        let model = app.backend.model();
        Self {
            id: model.id.clone(),
            object: "model",
            created: app.created,
            owned_by: "tandem",
            max_model_len: model.context,
        }
    }
}

/// Makes sure that a request means the model that there is.
pub(crate) fn check_model(app: &App, wanted: Option<&str>) -> Result<(), ApiError> {
    let id = &app.backend.model().id;
    match wanted {
        Some(wanted) if wanted != id => {
            let message = format!("there is no model {wanted:?}; this server has {id:?}");
            let mut error =
                ApiError::of_client(StatusCode::NOT_FOUND, message).code("model_not_found");
            error.detail.param = Some("model".to_owned());
            Err(error)
        }
        _ => Ok(()),
    }
}

/// The models there are: one.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", security((), ("key" = [])), responses(
    (status = 200, description = "The models", body = ModelList),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
))]
pub(crate) async fn list(State(app): State<Shared>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![Model::of(&app)] })
}

/// A model by its name.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "OpenAI", security((), ("key" = [])),
    params(("model" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 400, description = "The name is not UTF-8", body = ErrorBody),
        (status = 401, description = "No key, or a wrong one", body = ErrorBody),
        (status = 404, description = "There is none of that name", body = ErrorBody),
    ))]
pub(crate) async fn retrieve(
    State(app): State<Shared>,
    path: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(name) = path.map_err(|_| ApiError::invalid("model", "the name is not UTF-8"))?;
    check_model(&app, Some(&name))?;
    Ok(Json(Model::of(&app)))
}

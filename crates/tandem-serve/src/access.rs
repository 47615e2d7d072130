//! Who may ask.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use crate::app::Shared;
use crate::error::ApiError;

/// Lets only those through who send a key, where there are keys.
pub(crate) async fn require_key(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    match check_key(request.headers(), &app.options.api_keys) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_key(headers: &HeaderMap, keys: &[String]) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let Some(given) = given.and_then(bearer) else {
        return Err(ApiError::unauthorized("expected the header Authorization: Bearer KEY"));
    };
    // The time tells neither how much of a key is right nor which of them it is; only whether its length is.
    let same = keys.iter().fold(Choice::from(0), |same, key| same | key.as_bytes().ct_eq(given));
    if bool::from(same) { Ok(()) } else { Err(ApiError::unauthorized("the API key is wrong")) }
}

/// What comes after `Bearer`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// On a server that only this machine reaches and that wants no key, refuses requests that a browser sends for a page
/// which has its own name point here (DNS rebinding).
pub(crate) async fn require_host(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if !app.checks_host
        || is_local_name(request.headers(), request.uri(), &app.options.allowed_hosts)
    {
        return next.run(request).await;
    }
    let message =
        "this server answers to localhost and addresses only; --allow-host NAME adds a name";
    ApiError::of_client(StatusCode::MISDIRECTED_REQUEST, message).into_response()
}

fn is_local_name(headers: &HeaderMap, uri: &Uri, allowed: &[String]) -> bool {
    let header = headers.get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    let Some(authority) = uri.authority().map(|authority| authority.as_str()).or(header) else {
        // HTTP/1.0 knows no such header, and no browser is that old.
        return true;
    };
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    };
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    is("localhost") || name.parse::<IpAddr>().is_ok() || allowed.iter().any(|name| is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn a_key_must_be_one_of_the_keys() {
        let keys = ["first".to_owned(), "second".to_owned()];
        let status = |value: &str| {
            let headers = headers(header::AUTHORIZATION, value);
            check_key(&headers, &keys).map_err(|error| error.detail.message)
        };
        assert_eq!(status("Bearer first"), Ok(()));
        assert_eq!(status("bearer second "), Ok(()));
        for wrong in ["Bearer firs", "Bearer firstfirst", "Bearer ", "Bearer thirdd"] {
            assert_eq!(status(wrong), Err("the API key is wrong".to_owned()), "{wrong}");
        }
        for none in ["first", "Basic first", "Bearer", ""] {
            assert!(status(none).unwrap_err().starts_with("expected the header"), "{none}");
        }
        assert!(check_key(&HeaderMap::new(), &keys).is_err());
        assert!(check_key(&HeaderMap::new(), &[]).is_ok());
    }

    #[test]
    fn names_that_others_can_have_point_here_are_refused() {
        let allowed = ["tandem.lan".to_owned()];
        let ok =
            |host: &str| is_local_name(&headers(header::HOST, host), &Uri::default(), &allowed);
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:80",
            "[::1]:8080",
            "10.0.0.7",
            "tandem.lan:1",
        ] {
            assert!(ok(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io", ""]
        {
            assert!(!ok(host), "{host}");
        }
        assert!(is_local_name(&HeaderMap::new(), &Uri::default(), &[]));
    }
}

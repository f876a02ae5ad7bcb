//! OpenAPI documents, made from the schemas that the server itself uses.

use http::{HeaderMap, Uri};

use super::api::Api;
use super::http::Reply;
use super::status::ApiError;

/// Answers below `/openapi`.
pub fn answer(_api: &Api, _path: &str, _uri: &Uri, _headers: &HeaderMap) -> Result<Reply, ApiError> {
    Err(ApiError::no_such_path())
}

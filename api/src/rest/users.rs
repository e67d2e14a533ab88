//! Passwords and tokens of users.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use muster_storage::command::PutMode;
use muster_storage::model::{Object, Token, User};
use muster_storage::{Command, State as Remembered};
use serde::Deserialize;
use serde_json::json;

use super::DONE;
use super::extract::{Json, On};
use super::write::write;
use crate::problem::Problem;
use crate::{Shared, auth, input, view};

/// Longest life of a token, in seconds: ten years.
const TTL_SECS_MAX: u64 = 10 * 365 * 24 * 3600;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/{name}/tokens", post(new_token).delete(revoke_tokens))
        .route("/{name}/password", axum::routing::put(set_password))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    ttl_secs: u64,
}

async fn new_token(
    State(app): State<Shared>,
    On(caller): On,
    Path(user): Path<String>,
    Json(body): Json,
) -> Result<Response, Problem> {
    let NewToken { ttl_secs } = input::parse(body)?;
    if ttl_secs == 0 || ttl_secs > TTL_SECS_MAX {
        return Err(Problem::invalid(
            "ttl_secs",
            format!("must be 1 to {TTL_SECS_MAX}"),
        ));
    }
    let (token, hash) = auth::new_token()?;
    let expires_at = app.cluster.now().plus_secs(ttl_secs);
    let stored = Token {
        hash,
        user: user.clone(),
        expires_at,
    };
    let once = caller.without_key();
    write(&app, once, None, Command::AddToken(stored)).await?;
    let body = json!({"token": token, "user": user, "expires_at": view::time(expires_at)});
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

async fn revoke_tokens(
    State(app): State<Shared>,
    On(caller): On,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    write(&app, caller, None, Command::RevokeTokens { user }).await?;
    Ok(DONE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: String,
}

async fn set_password(
    State(app): State<Shared>,
    On(caller): On,
    Path(name): Path<String>,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let NewPassword { password } = input::parse(body)?;
    let known = |state: &Remembered| state.user(&name).is_some();
    if !app.cluster.read(known) {
        return Err(Problem::not_found("user", &name));
    }
    let password_hash = auth::hash_password(password).await?;
    let object = Object::User(User {
        name,
        password_hash,
    });
    let mode = PutMode::Replace;
    let once = caller.without_key();
    write(&app, once, None, Command::Put { object, mode }).await?;
    Ok(DONE)
}

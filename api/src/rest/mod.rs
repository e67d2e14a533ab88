//! The routes. One generic file serves all kinds of objects; what differs has a file of its own.

mod artifacts;
mod backup;
mod boot;
mod bundle;
mod cluster;
mod diagnosis;
mod events;
mod extract;
mod health;
mod incoming;
mod installs;
mod keyring;
mod layers;
mod leases;
mod nodes;
mod objects;
mod openapi;
mod trial;
mod uploads;
mod users;
mod write;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::get;
use muster_storage::model::ObjectKind;

use crate::problem::Problem;
use crate::{Shared, auth};

pub(crate) use backup::BACKUPS_MAX;
pub use extract::BODY_MAX;
pub use objects::{PAGE_DEFAULT, PAGE_MAX};
pub use openapi::document as openapi_document;

/// Everything that a node in a cluster serves.
pub fn router(app: Shared) -> Router {
    let mut v1 = Router::new();
    for kind in ObjectKind::ALL {
        let resource = match kind {
            ObjectKind::Artifact => artifacts::router(),
            ObjectKind::Machine => objects::plain_router()
                .merge(boot::machine_router())
                .merge(installs::machine_router()),
            ObjectKind::User => objects::plain_router().merge(users::router()),
            ObjectKind::Subnet
            | ObjectKind::Reservation
            | ObjectKind::Template
            | ObjectKind::Bootenv
            | ObjectKind::Profile
            | ObjectKind::Param
            | ObjectKind::Settings => objects::router(),
        };
        v1 = v1.nest(
            &format!("/{}", kind.plural()),
            resource.layer(axum::Extension(kind)),
        );
    }
    let v1 = v1
        .nest("/leases", leases::router())
        .nest("/nodes", nodes::router())
        .nest("/cluster", cluster::router())
        .nest("/boot", boot::router())
        .nest("/uploads", uploads::router())
        .route("/diagnosis", get(diagnosis::diagnose))
        .route("/events", get(events::get))
        .route("/apply", axum::routing::post(bundle::apply))
        .layer(middleware::from_fn(layers::idempotency))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            layers::consistency,
        ));
    let guarded = Router::new()
        .nest("/api/v1", v1)
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::get))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(
            app.clone(),
            auth::authenticate,
        ));
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .merge(guarded)
        .layer(middleware::from_fn_with_state(
            app.clone(),
            layers::describe,
        ))
        .with_state(app)
}

/// What a node serves before it belongs to a cluster: that it is alive, and why it does not serve.
pub fn waiting(why: &'static str) -> Router {
    let not_ready = move || async move { Problem::new("not_ready", why) };
    Router::new()
        .route("/healthz", get(health::alive))
        .fallback(not_ready)
}

/// What a node serves when nothing that it says can be trusted any more: why, and its metrics.
pub fn out_of_service(app: Shared, why: String) -> Router {
    let not_ready = move || {
        let why = format!("this node is out of service: {why}");
        async move { Problem::new("not_ready", why) }
    };
    let guarded = Router::new().route("/metrics", get(health::metrics)).layer(
        middleware::from_fn_with_state(app.clone(), auth::authenticate),
    );
    Router::new()
        .route("/healthz", get(health::healthz))
        .merge(guarded)
        .fallback(not_ready)
        .with_state(app)
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::new("not_found", format!("nothing is served at {}", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> impl IntoResponse {
    Problem::new(
        "method_not_allowed",
        format!("{method} is not possible on {}", uri.path()),
    )
}

/// An answer without a body.
const DONE: StatusCode = StatusCode::NO_CONTENT;

/// Says what the API's metrics mean.
pub fn describe_metrics() {
    layers::describe_metrics();
}

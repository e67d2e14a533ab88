//! A node of one behind the API's router, without sockets.
#![allow(dead_code)]

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use muster_api::App;
use muster_api::auth::Peer;
use muster_raft::Cluster;
use muster_storage::{Actor, Command, Proposal, RequestId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use uuid::Uuid;

pub struct Api {
    pub router: Router,
    pub cluster: Cluster,
    pub stop: CancellationToken,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Panics with the answer unless it has this status.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// The code and the detail of a problem.
    pub fn problem(self, status: u16) -> (String, String) {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let body = answer.json();
        assert_eq!(body["status"], status);
        (
            body["code"].as_str().unwrap().to_owned(),
            body["detail"].as_str().unwrap().to_owned(),
        )
    }
}

impl Api {
    pub async fn new() -> Self {
        Self::on(Cluster::solo().await)
    }

    pub fn on(cluster: Cluster) -> Self {
        let stop = CancellationToken::new();
        let app = App::new(cluster.clone(), || "# metrics\n".to_owned(), stop.clone());
        let router = muster_api::rest::router(app);
        Self {
            router,
            cluster,
            stop,
        }
    }

    /// Writes what a node writes.
    pub async fn propose(&self, command: Command) {
        let proposal = Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor("node:n1".to_owned()),
            if_match: None,
            remember: None,
            command,
        };
        let outcome = self.cluster.propose(proposal).await.unwrap();
        outcome.result.unwrap();
        self.cluster.applied(outcome.revision).await;
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// As root on the socket; `headers` are `name: value`.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path);
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let mut request = request.body(body.into()).unwrap();
        request.extensions_mut().insert(Peer::Local { uid: 0 });
        self.send(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path, &[], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call("PATCH", path, &[], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[], Body::empty()).await
    }

    pub async fn apply(&self, objects: &Value) -> Answer {
        self.post("/api/v1/apply", objects).await
    }
}

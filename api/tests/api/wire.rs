//! Server and client over real sockets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::Api;
use muster_api::client::{Call, Client, Credentials, Error, Payload, Target, Upload};
use muster_api::rest;
use muster_api::server::{self, Serving};
use reqwest::Method;
use serde_json::json;
use sha2::Digest as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(10);

fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn socket_client(dir: &Path, timeout: Duration) -> Client {
    let target = Target::Socket(dir.join("muster.sock"));
    Client::new(target, None, timeout).unwrap()
}

fn machines() -> Call {
    Call::new(Method::GET, &["machines"])
}

#[tokio::test]
async fn root_uses_the_socket_and_others_use_https() {
    install_provider();
    let api = Api::new().await;
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::new(api.router.clone(), api.cluster.api_tls());
    let unix = server::listen_unix(&dir.path().join("muster.sock")).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let tls = tokio::spawn(server::serve_tls(tcp, serving.clone(), api.stop.clone()));
    let local = tokio::spawn(server::serve_unix(unix, serving, api.stop.clone()));
    assert!(
        server::listen_unix(&dir.path().join("muster.sock")).is_err(),
        "it is in use"
    );

    let root = socket_client(dir.path(), TIMEOUT);
    let body = json!({"name": "eve", "password": "secret"});
    let create = Call::new(Method::POST, &["users"]).payload(Payload::Json(body));
    root.json(create.clone()).await.unwrap();
    match root.json(create).await {
        Err(Error::Problem {
            status: 409, code, ..
        }) => assert_eq!(code, "exists"),
        other => panic!("{other:?}"),
    }
    let token = Call::new(Method::POST, &["users", "eve", "tokens"]);
    let token = root
        .json(token.payload(Payload::Json(json!({"ttl_secs": 60}))))
        .await
        .unwrap();
    let token = token["token"].as_str().unwrap().to_owned();

    let remote = |endpoints: &[String], credentials| {
        let target = Target::Https {
            endpoints: endpoints.to_vec(),
            ca_pem: Some(api.cluster.ca_pem().into()),
        };
        Client::new(target, credentials, TIMEOUT).unwrap()
    };
    let here = format!("https://127.0.0.1:{port}");
    let dead = "https://127.0.0.1:1".to_owned();
    let password = Credentials::Password {
        username: "eve".into(),
        password: "secret".into(),
    };
    for credentials in [Credentials::Token(token), password.clone()] {
        let client = remote(&[dead.clone(), here.clone()], Some(credentials));
        assert_eq!(client.json(machines()).await.unwrap()["items"], json!([]));
    }
    match remote(std::slice::from_ref(&here), None)
        .json(machines())
        .await
    {
        Err(Error::Problem { status: 401, .. }) => {}
        other => panic!("{other:?}"),
    }

    // A key with a slash, a body from a file, and the event that it makes.
    let mut events = root.events(&[("kind", "artifact")], Some("0".into()));
    let file = dir.path().join("file");
    std::fs::write(&file, vec![1; 1 << 20]).unwrap();
    let upload = Upload {
        file: &file,
        path: "lab/vmlinuz",
        sha256: muster_storage::model::Sha256(sha2::Sha256::digest(vec![1; 1 << 20]).into()),
        size: 1 << 20,
    };
    let told = Arc::new(AtomicU64::new(0));
    let shown = Arc::clone(&told);
    // To whichever node takes it.
    let client = remote(&[dead, here], Some(password));
    let at = move |octets| shown.store(octets, Ordering::Relaxed);
    client.upload(&upload, at).await.unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 1 << 20);
    let kept = Call::new(Method::GET, &["artifacts", "lab/vmlinuz"]);
    assert_eq!(root.json(kept).await.unwrap()["size"], 1 << 20);
    let event = tokio::time::timeout(TIMEOUT, events.next())
        .await
        .unwrap()
        .unwrap();
    assert!(event.data.contains("lab/vmlinuz"), "{event:?}");

    api.stop.cancel();
    tls.await.unwrap();
    local.await.unwrap();
}

#[tokio::test]
async fn a_client_waits_for_a_node_that_comes() {
    install_provider();
    let api = Api::new().await;
    let dir = tempfile::tempdir().unwrap();
    let client = socket_client(dir.path(), TIMEOUT);
    let asked = tokio::spawn(async move { client.json(machines()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let serving = Serving::new(rest::waiting("not yet"), api.cluster.api_tls());
    let unix = server::listen_unix(&dir.path().join("muster.sock")).unwrap();
    tokio::spawn(server::serve_unix(unix, serving.clone(), api.stop.clone()));
    let impatient = socket_client(dir.path(), Duration::from_millis(500));
    match impatient.json(machines()).await {
        Err(Error::Problem {
            status: 503,
            code,
            detail,
        }) => {
            assert_eq!((code.as_str(), detail.as_str()), ("not_ready", "not yet"));
        }
        other => panic!("{other:?}"),
    }
    serving.set(api.router.clone(), api.cluster.api_tls());
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named() {
    install_provider();
    let dir = tempfile::tempdir().unwrap();
    let client = socket_client(dir.path(), Duration::from_millis(300));
    let error = client.json(machines()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("muster.sock"), "{error}");
}

#[tokio::test]
async fn who_says_nothing_is_left() {
    use tokio::io::AsyncReadExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("muster.sock");
    let api = Api::new().await;
    let listener = server::listen_unix(&path).unwrap();
    let serving = Serving::new(api.router.clone(), api.cluster.api_tls());
    let stop = CancellationToken::new();
    let task = tokio::spawn(server::serve_unix(listener, serving, stop.clone()));
    let mut silent = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut octets = Vec::new();
    let closed = silent.read_to_end(&mut octets);
    let closed = tokio::time::timeout(Duration::from_secs(15), closed).await;
    closed.expect("the connection is closed").unwrap();
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn one_address_does_not_take_all_connections() {
    let shares = server::Shares::of(8, "test");
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let mut open: Vec<_> = (0..4).map(|_| shares.take(a).unwrap()).collect();
    assert!(shares.take(a).is_none());
    assert!(shares.take(b).is_some());
    open.pop();
    assert!(shares.take(a).is_some());
}

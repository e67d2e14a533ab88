//! What changed: streamed, resumed, filtered, and read as history.

use std::time::Duration;

use crate::common::Api;
use axum::body::{Body, BodyDataStream};
use axum::http::Request;
use futures::StreamExt as _;
use muster_api::auth::Peer;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// A stream of events being read.
struct Stream {
    body: BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(api: &Api, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::builder().uri(path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer::Local { uid: 0 });
        let response = api.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }

    /// The next event: its id, and what it says.
    async fn next(&mut self) -> Option<(Option<String>, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = event.lines();
                    lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
                };
                let found =
                    field("data:").map(|data| (field("id:"), serde_json::from_str(&data).unwrap()));
                self.text = rest.to_owned();
                if found.is_some() {
                    return found;
                }
                continue;
            }
            let piece = tokio::time::timeout(Duration::from_secs(5), self.body.next());
            let piece = piece.await.expect("an event in time")?;
            self.text
                .push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
    }

    /// Keys of the next events, and the id of the last.
    async fn keys(&mut self, count: usize) -> (Vec<String>, Option<String>) {
        let (mut keys, mut last) = (Vec::new(), None);
        for _ in 0..count {
            let (id, event) = self.next().await.unwrap();
            keys.push(event["key"].as_str().unwrap().to_owned());
            last = id;
        }
        (keys, last)
    }
}

fn template(name: &str) -> Value {
    json!({"kind": "template", "name": name, "contents": ""})
}

#[tokio::test]
async fn a_stream_is_resumed_where_it_broke() {
    let api = Api::new().await;
    let mut stream = Stream::open(&api, "/api/v1/events", None).await;
    api.post("/api/v1/templates", &template("a"))
        .await
        .expect(201);
    // A bundle changes several things in one revision: only its last event has an id.
    api.apply(&json!([template("b"), template("c")]))
        .await
        .expect(200);
    let (first, event) = stream.next().await.unwrap();
    assert_eq!(event["kind"], "template");
    assert_eq!(event["action"], "created");
    assert_eq!(event["actor"], "admin");
    assert_eq!(event["object"]["name"], "a");
    assert_eq!(
        first.as_deref(),
        Some(event["revision"].to_string().as_str())
    );
    assert_eq!(stream.next().await.unwrap().0, None);
    let (last, _) = stream.next().await.unwrap();
    assert!(last.is_some());
    drop(stream);

    let mut resumed = Stream::open(&api, "/api/v1/events", first.as_deref()).await;
    assert_eq!(resumed.keys(2).await, (vec!["b".into(), "c".into()], last));
    api.delete("/api/v1/templates/a").await.expect(204);
    assert_eq!(resumed.next().await.unwrap().1["action"], "deleted");
    api.stop.cancel();
    assert_eq!(
        resumed.next().await,
        None,
        "a stream ends when the node stops"
    );
}

#[tokio::test]
async fn a_stream_shows_what_was_asked_for() {
    let api = Api::new().await;
    let mut machines = Stream::open(&api, "/api/v1/events?kind=machine", None).await;
    let mut all = Stream::open(&api, "/api/v1/events?after=0", None).await;
    api.post("/api/v1/params", &json!({"name": "pw", "secure": true}))
        .await
        .expect(201);
    api.post(
        "/api/v1/machines",
        &json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"pw": "s3cret"}}),
    )
    .await
    .expect(201);
    let (_, event) = machines.next().await.unwrap();
    assert_eq!(event["key"], "m1");
    assert_eq!(event["object"]["params"]["pw"], "<secure>");
    loop {
        let (_, event) = all.next().await.unwrap();
        assert!(!event.to_string().contains("s3cret"));
        assert!(event["object"].get("password_hash").is_none());
        if event["key"] == "m1" {
            break;
        }
    }
}

#[tokio::test]
async fn a_stream_of_few_things_is_resumed_after_all_that_it_left_out() {
    let api = Api::new().await;
    let mut machines = Stream::open(&api, "/api/v1/events?kind=machine", None).await;
    let written = api.post("/api/v1/templates", &template("t")).await;
    let revision = written.expect(201).json()["revision"].to_string();
    while !machines.text.contains(&format!("id: {revision}")) {
        let piece = tokio::time::timeout(Duration::from_secs(5), machines.body.next());
        let piece = piece.await.expect("an id in time").unwrap().unwrap();
        machines.text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(!machines.text.contains("data:"), "{}", machines.text);
}

#[tokio::test]
async fn history_is_read_in_pages_of_whole_revisions() {
    let api = Api::new().await;
    let bundle: Vec<Value> = ["a", "b", "c", "d", "e"].map(template).to_vec();
    api.apply(&json!(bundle)).await.expect(200);
    for name in ["f", "g"] {
        api.post("/api/v1/templates", &template(name))
            .await
            .expect(201);
    }
    let accept = ["accept: application/json"];
    let mut path = "/api/v1/events?kind=template&limit=2".to_owned();
    let mut keys = Vec::new();
    loop {
        let page = api.call("GET", &path, &accept, "").await.expect(200).json();
        keys.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["key"].clone()),
        );
        match page["next"].as_str() {
            Some(next) => path = format!("/api/v1/events?kind=template&limit=2&after={next}"),
            None => break,
        }
    }
    assert_eq!(keys, ["a", "b", "c", "d", "e", "f", "g"]);
    let bad = api
        .call("GET", "/api/v1/events", &["last-event-id: x"], "")
        .await;
    assert_eq!(bad.problem(400).0, "malformed");
}

#[tokio::test]
async fn history_keeps_no_secret_when_its_declaration_goes() {
    let api = Api::new().await;
    let param = json!({"name": "pw", "secure": true});
    api.post("/api/v1/params", &param).await.expect(201);
    let machine = json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"pw": "s3cret"}});
    api.post("/api/v1/machines", &machine).await.expect(201);
    api.delete("/api/v1/machines/m1").await.expect(204);
    api.delete("/api/v1/params/pw").await.expect(204);
    let json = ["Accept: application/json"];
    let history = api.call("GET", "/api/v1/events", &json, "").await;
    let history = history.expect(200).text;
    assert!(
        history.contains("m1") && !history.contains("s3cret"),
        "{history}"
    );
}

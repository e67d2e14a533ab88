//! Whatever is sent, the node lives, and says 4xx.

use crate::common::Api;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

const RESOURCES: &[&str] = &[
    "machines",
    "subnets",
    "reservations",
    "templates",
    "bootenvs",
    "profiles",
    "params",
    "settings",
    "users",
    "artifacts",
    "leases",
    "nodes",
    "events",
    "cluster",
    "apply",
    "cluster/join-tokens",
    "cluster/transfer",
    "users/admin/tokens",
    "users/admin/password",
    "boot/explain",
    "machines/m1/render",
];

const FIELDS: &[&str] = &[
    "name",
    "kind",
    "macs",
    "cidr",
    "pools",
    "address",
    "mac",
    "client_id",
    "machine",
    "params",
    "profiles",
    "contents",
    "files",
    "path",
    "template",
    "kernel",
    "initrds",
    "kernel_args",
    "schema",
    "default",
    "secure",
    "uuid",
    "bootenv",
    "options",
    "classes",
    "circuit_id",
    "shared_network",
    "mode",
    "match",
    "lease_secs",
    "password",
    "ttl_secs",
    "node",
    "revision",
    "unknown_bootenv",
    "nonsense",
];

/// Values that have the shape of what is expected, or nearly.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[{}%#a-z\"|. ()\n-]{0,40}".prop_map(Value::from),
        prop::sample::select(vec![
            "52:54:00:00:00:50",
            "10.0.0.0/24",
            "10.0.0.1-10.0.0.9",
            "255.255.255.255",
            "m1",
            "local",
            "machine",
            "template",
            "../..",
            "{{ machine.name }}",
            "{% include \"t\" %}",
            "<secure>",
            "",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(FIELDS), inner), 0..6).prop_map(|pairs| {
                let pairs = pairs
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value));
                Value::Object(pairs.collect::<Map<_, _>>())
            }),
        ]
    })
}

/// Paths and queries: almost right, or anything that is a URL.
fn tail() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("/m1".to_owned()),
        "[a-zA-Z0-9%./:_-]{0,20}".prop_map(|text| format!("/{text}")),
        "[a-z]{1,10}=[a-zA-Z0-9%.:-]{0,20}".prop_map(|text| format!("?{text}")),
        prop::sample::select(vec![
            "?limit=0",
            "?limit=-1",
            "?limit=99999999999999999999",
            "?after=%00",
            "?after=%ff",
            "?min_revision=x",
            "?consistency=none",
            "?mac=",
            "?template=%F0%9F",
        ])
        .prop_map(str::to_owned),
    ]
}

#[test]
fn nothing_that_is_sent_makes_the_node_fail() {
    let runtime = Runtime::new().unwrap();
    let api = runtime.block_on(async {
        let api = Api::new().await;
        let machine = json!({"name": "m1", "macs": ["52:54:00:00:00:50"]});
        api.post("/api/v1/machines", &machine).await.expect(201);
        api
    });
    let methods = prop::sample::select(vec![
        "POST", "PUT", "PATCH", "DELETE", "GET", "HEAD", "BREW",
    ]);
    let bodies = prop_oneof![
        value().prop_map(|value| value.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..64),
        Just("[".repeat(100_000).into_bytes()),
    ];
    let resources = prop::sample::select(RESOURCES);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let sent = (methods, resources, tail(), bodies);
    runner
        .run(&sent, |(method, resource, tail, body)| {
            // A stream of events has no end to wait for.
            let headers = ["accept: application/json"];
            let path = format!("/api/v1/{resource}{tail}");
            if path.parse::<axum::http::Uri>().is_err() {
                return Ok(());
            }
            let answer = runtime.block_on(api.call(method, &path, &headers, body));
            let status = answer.status.as_u16();
            prop_assert!(
                (200..500).contains(&status),
                "{method} {path}: {status} {}",
                answer.text
            );
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        api.get("/healthz").await.expect(200);
        api.get("/api/v1/machines?limit=1").await.expect(200);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The template engine takes any text; what does not compile is refused with its place.
    #[test]
    fn any_text_is_a_template_or_a_problem(
        text in prop_oneof!["\\PC{0,60}", "[{}%#a-z0-9\"'|.,:~=<>! ()\\[\\]\n-]{0,80}"],
    ) {
        if let Err(problem) = muster_api::template::compile("t", &text) {
            prop_assert!(!problem.message.is_empty());
            prop_assert!(!problem.message.contains("engine failed"), "{text:?}: {problem}");
        }
    }
}

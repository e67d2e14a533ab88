//! The description of the API, made from a table of its routes.

use axum::Json;
use muster_storage::model::ObjectKind;
use serde_json::{Map, Value, json};

/// What can be done: method, path below `/api/v1`, summary.
const ROUTES: &[(&str, &str, &str)] = &[
    (
        "get",
        "/cluster",
        "State of the cluster as this node sees it",
    ),
    (
        "post",
        "/cluster/join-tokens",
        "Make a token by which nodes join: {ttl_secs}",
    ),
    ("delete", "/cluster/join-tokens", "Revoke all join tokens"),
    ("post", "/cluster/transfer", "Hand leadership over: {node}"),
    (
        "post",
        "/cluster/drain",
        "Make a node ready to be stopped: {node}, or this one",
    ),
    (
        "get",
        "/cluster/upgrade",
        "How far an upgrade to the version ?to= is, which nodes are left, and why none may be taken down now",
    ),
    (
        "post",
        "/cluster/finalize",
        "Go on to the newest schema that all nodes support: older versions cannot be started again",
    ),
    (
        "post",
        "/cluster/replace",
        "Put a node that has joined in the place of one that does not answer: {dead, new}",
    ),
    (
        "post",
        "/cluster/renew-certificates",
        "Give a node a new key and certificate: {node}, or all one after the other",
    ),
    (
        "post",
        "/cluster/rotate-keys",
        "Seal all secrets with a new key, and forget the older ones",
    ),
    (
        "get",
        "/cluster/backup",
        "A backup, with the bytes of artifacts by ?artifacts=true; Muster-Passphrase seals its keys",
    ),
    ("get", "/nodes", "All nodes"),
    ("get", "/nodes/{key}", "A node by name or id"),
    ("delete", "/nodes/{key}", "Remove a node for good"),
    ("get", "/leases", "A page of leases"),
    ("get", "/leases/{key}", "A lease by address"),
    ("delete", "/leases/{key}", "End a lease"),
    (
        "get",
        "/leases/{key}/why",
        "The story of an address or a MAC: who had what, what DHCP would answer now, and what it refused",
    ),
    (
        "get",
        "/events",
        "What changes, as server-sent events; history as JSON when only that is accepted",
    ),
    (
        "get",
        "/diagnosis",
        "What is wrong with the site, and the facts that it follows from; with ?probe=true nodes look for other DHCP servers",
    ),
    (
        "get",
        "/nodes/{key}/facts",
        "What a node says of itself and the machine that it runs on",
    ),
    (
        "get",
        "/nodes/{key}/metrics",
        "The metrics of a node, in the text format of Prometheus",
    ),
    (
        "post",
        "/nodes/{key}/fail",
        "Have a node fail for a drill: {failure: kill, force} or {failure: pause, millis}",
    ),
    (
        "get",
        "/nodes/{key}/log",
        "The last lines that a node logged",
    ),
    (
        "post",
        "/apply",
        "Write an array of objects, all or nothing",
    ),
    (
        "get",
        "/boot/explain",
        "What ?mac= would be served now, and why",
    ),
    (
        "get",
        "/machines/{key}/render",
        "The text of ?template= for a machine",
    ),
    (
        "post",
        "/machines/{key}/install",
        "Order a machine to be installed: {bootenv, attempts}",
    ),
    (
        "get",
        "/machines/{key}/install",
        "The last order to install a machine, and how far it has come",
    ),
    (
        "delete",
        "/machines/{key}/install",
        "Cancel the install of a machine, which boots its disk",
    ),
    (
        "put",
        "/machines/{key}/lock",
        "Keep a machine from being changed, installed or deleted: {reason}",
    ),
    ("delete", "/machines/{key}/lock", "Unlock a machine"),
    (
        "patch",
        "/machines/{key}/labels",
        "Set labels of a machine, and remove those that are null: {name: value}",
    ),
    (
        "get",
        "/machines/{key}/timeline",
        "What nodes saw of how a machine boots, the last facts",
    ),
    (
        "post",
        "/machines/{key}/render",
        "The text of ?template= for a machine, if it had these contents: {contents}",
    ),
    (
        "get",
        "/machines/{key}/params",
        "The params of a machine, each with its value and who says so",
    ),
    (
        "post",
        "/users/{name}/tokens",
        "Make a token of a user: {ttl_secs}",
    ),
    (
        "delete",
        "/users/{name}/tokens",
        "Revoke all tokens of a user",
    ),
    (
        "put",
        "/users/{name}/password",
        "Set the password of a user: {password}",
    ),
    (
        "put",
        "/artifacts/{key}",
        "Upload a file; ?sha256= is checked",
    ),
    (
        "options",
        "/uploads",
        "What of tus.io, by which uploads go on where they broke off, is spoken here",
    ),
    (
        "post",
        "/uploads",
        "Begin an upload: Upload-Length, and Upload-Metadata with path and sha256",
    ),
    (
        "head",
        "/uploads/{id}",
        "How far an upload has got: Upload-Offset",
    ),
    (
        "patch",
        "/uploads/{id}",
        "Octets of an upload from Upload-Offset on; with the last one it is an artifact",
    ),
    ("delete", "/uploads/{id}", "Give an upload up"),
];

/// The same for every kind of object.
const OBJECT_ROUTES: &[(&str, bool, &str)] = &[
    ("get", false, "A page of {}: ?limit= and ?after="),
    ("post", false, "Create one of {}"),
    ("get", true, "One of {}"),
    ("put", true, "Create or replace one of {}"),
    ("patch", true, "Merge into one of {} (RFC 7396)"),
    ("delete", true, "Delete one of {}"),
];

/// Which requests take a parameter.
enum When {
    Reading,
    Writing,
    /// Of one object.
    WritingOne,
}

/// What may be sent with many requests: name, place, when, and what it is for.
const OPTIONS: &[(&str, &str, When, &str)] = &[
    (
        "consistency",
        "query",
        When::Reading,
        "`linear`: sees every write that was answered before, or gives 503; `local`: what this \
         node has. Without it as `linear` while there is a quorum; else what this node has, marked \
         by the header Muster-Stale",
    ),
    (
        "min_revision",
        "query",
        When::Reading,
        "Waits until this node has it, as an earlier answer told in Muster-Revision",
    ),
    (
        "force",
        "query",
        When::Writing,
        "`true`: writes also what takes texts from machines, or does not fit values that are there",
    ),
    (
        "If-Match",
        "header",
        When::WritingOne,
        "Only if the object has one of these ETags",
    ),
    (
        "Idempotency-Key",
        "header",
        When::Writing,
        "A request that is sent again with its key within a day is done once",
    ),
];

pub async fn get() -> Json<Value> {
    Json(document())
}

/// The OpenAPI document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for kind in ObjectKind::ALL {
        for (method, keyed, summary) in OBJECT_ROUTES {
            let uploaded = kind == ObjectKind::Artifact && !matches!(*method, "get" | "delete");
            if !uploaded {
                let path = format!("/{}{}", kind.plural(), if *keyed { "/{key}" } else { "" });
                add(
                    &mut paths,
                    method,
                    &path,
                    &summary.replace("{}", kind.plural()),
                );
            }
        }
    }
    for (method, path, summary) in ROUTES {
        add(&mut paths, method, path, summary);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Muster", "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": "/"}],
        "security": [{"basic": []}, {"bearer": []}],
        "components": {"securitySchemes": {
            "basic": {"type": "http", "scheme": "basic"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }},
        "paths": paths,
    })
}

fn add(paths: &mut Map<String, Value>, method: &str, path: &str, summary: &str) {
    let keys: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let of_one_object = path.ends_with("/{key}") && method != "get";
    let others = OPTIONS.iter().filter(|(_, _, when, _)| match when {
        When::Reading => method == "get",
        When::Writing => method != "get",
        When::WritingOne => of_one_object,
    });
    let others = others.map(|(name, place, _, description)| {
        json!({"name": name, "in": place, "description": description,
            "schema": {"type": "string"}})
    });
    let parameters: Vec<Value> = keys.into_iter().chain(others).collect();
    let operation = json!({
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "2XX": {"description": "Done"},
            "default": {
                "description": "A problem (RFC 9457)",
                "content": {"application/problem+json": {"schema": {"type": "object"}}},
            },
        },
    });
    let path = paths
        .entry(format!("/api/v1{path}"))
        .or_insert_with(|| json!({}));
    if let Some(path) = path.as_object_mut() {
        path.insert(method.to_owned(), operation);
    }
}

//! What is written is tried out for the machines that it concerns.

use crate::common::Api;
use serde_json::{Value, json};

const M1: &str = "/api/v1/machines/m1";

/// Two machines on `lab`, which has one file; `m1` has a color.
async fn site(contents: &str) -> Api {
    let api = Api::new().await;
    let bundle = json!([
        {"kind": "template", "name": "head", "contents": "# {{ machine.name }}\n"},
        {"kind": "template", "name": "t", "contents": contents},
        {"kind": "bootenv", "name": "lab", "files": [{"path": "a.cfg", "template": "t"}],
         "kernel_args": "url={{ machine.url }}"},
        {"kind": "profile", "name": "p", "params": {"color": "red"}},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "bootenv": "lab",
         "profiles": ["p"]},
        {"kind": "machine", "name": "m2", "macs": ["52:54:00:00:00:51"], "bootenv": "local"},
    ]);
    api.apply(&bundle).await.expect(200);
    api
}

fn failure(answer: &Value) -> Value {
    let failures = answer["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "{answer}");
    failures[0].clone()
}

#[tokio::test]
async fn a_write_that_takes_a_text_from_a_machine_is_refused_with_the_place() {
    let api = site("{% include \"head\" %}{{ params.color }}\n").await;
    assert_eq!(api.get(M1).await.json()["available"], true);
    let rows = [
        (
            "PUT",
            "/api/v1/templates/t",
            json!({"contents": "a\n b {{ params.size }}"}),
            json!({"template": "t", "line": 2, "column": 14, "param": "size"}),
        ),
        (
            "PUT",
            "/api/v1/templates/head",
            json!({"contents": "{{ params.size }}"}),
            json!({"template": "head", "line": 1, "column": 11, "param": "size"}),
        ),
        (
            "PUT",
            "/api/v1/profiles/p",
            json!({"params": {}}),
            json!({"template": "t", "line": 1, "column": 31, "param": "color"}),
        ),
        (
            "PATCH",
            M1,
            json!({"profiles": []}),
            json!({"template": "t", "line": 1, "column": 31, "param": "color"}),
        ),
    ];
    for (method, path, body, place) in rows {
        let answer = api
            .call(method, path, &[], body.to_string())
            .await
            .expect(422);
        let answer = answer.json();
        assert_eq!(answer["code"], "unrenderable", "{answer}");
        let found = failure(&answer);
        for (name, value) in place.as_object().unwrap() {
            assert_eq!(found[name], *value, "{path} {name}: {answer}");
        }
        assert_eq!(found["machine"], "m1", "{answer}");
        assert_eq!(found["place"], "files.a.cfg", "{answer}");
    }
    let args = json!({"kernel_args": "a={{ params.size }}"});
    let answer = api
        .patch("/api/v1/bootenvs/lab", &args)
        .await
        .expect(422)
        .json();
    assert_eq!(failure(&answer)["place"], "kernel_args");
    let bundle = json!([{"kind": "template", "name": "t", "contents": "{{ params.size }}"}]);
    api.apply(&bundle).await.problem(422);
    // With what it needs it is taken.
    let both = json!([
        {"kind": "template", "name": "t", "contents": "{{ params.size }}"},
        {"kind": "param", "name": "size", "default": 7},
    ]);
    let answer = api.apply(&both).await.expect(200).json();
    let expected = json!({"machines": 1, "of": 1, "texts": 2, "complete": true, "failures": []});
    assert_eq!(answer["trial"], expected);
    api.delete("/api/v1/params/size").await.problem(422);
    api.delete("/api/v1/templates/head").await.expect(204);
}

#[tokio::test]
async fn by_force_it_is_written_and_says_what_it_broke() {
    let api = site("{{ params.color }}").await;
    let broken = json!({"contents": "{{ params.size }}"});
    let answer = api.put("/api/v1/templates/t?force=true", &broken).await;
    assert_eq!(
        failure(&answer.expect(200).json()["trial"])["param"],
        "size"
    );
    let read = api.get(M1).await.json();
    assert_eq!(read["available"], false);
    let problem = read["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("files.a.cfg") && problem.contains("params.size"),
        "{problem}"
    );
    // The others are as well as before; and what is broken may be written.
    assert_eq!(
        api.get("/api/v1/machines/m2").await.json()["available"],
        true
    );
    let patch = json!({"params": {"rack": 3}});
    let answer = api.patch(M1, &patch).await.expect(200).json();
    assert_eq!(answer["available"], false);
    let mended = json!({"params": {"size": 1}});
    assert_eq!(
        api.patch(M1, &mended).await.expect(200).json()["available"],
        true
    );
}

#[tokio::test]
async fn a_new_machine_may_lack_what_comes_later() {
    let api = site("{{ params.color }} {{ machine.address }}").await;
    let new = json!({"name": "m3", "macs": ["52:54:00:00:00:53"], "bootenv": "lab"});
    let answer = api.post("/api/v1/machines", &new).await.expect(201).json();
    assert_eq!(answer["available"], false);
    assert_eq!(failure(&answer["trial"])["param"], "color");
    let patch = json!({"params": {"color": "blue"}});
    let answer = api
        .patch("/api/v1/machines/m3", &patch)
        .await
        .expect(200)
        .json();
    assert_eq!(answer["available"], true, "{answer}");
}

#[tokio::test]
async fn only_so_many_machines_are_tried_and_the_answer_says_so() {
    let api = site("{{ params.color }}").await;
    let machines: Vec<Value> = (0..80)
        .map(|n| {
            json!({"kind": "machine", "name": format!("n{n:02}"), "bootenv": "lab",
                   "macs": [format!("52:54:00:00:01:{n:02x}")], "profiles": ["p"]})
        })
        .collect();
    api.apply(&json!(machines)).await.expect(200);
    let contents = json!({"contents": "{{ params.color }}!"});
    let answer = api
        .put("/api/v1/templates/t", &contents)
        .await
        .expect(200)
        .json();
    assert_eq!(answer["trial"]["of"], 81);
    assert_eq!(answer["trial"]["machines"], 50);
    assert_eq!(answer["trial"]["complete"], false);
}

#[tokio::test]
async fn a_text_for_everybody_has_no_secrets_and_says_why() {
    let api = site("{{ params.pw }}").await;
    api.post(
        "/api/v1/params",
        &json!({"name": "pw", "secure": true, "default": "s3cret"}),
    )
    .await
    .expect(201);
    assert_eq!(api.get(M1).await.json()["available"], true);
    let args = json!({"kernel_args": "pw={{ params.pw }}"});
    let (code, detail) = api.patch("/api/v1/bootenvs/lab", &args).await.problem(422);
    assert_eq!(code, "unrenderable");
    assert!(detail.contains("is secure"), "{detail}");
}

#[tokio::test]
async fn a_draft_is_rendered_and_not_kept() {
    let api = site("{{ params.color }}").await;
    let path = "/api/v1/machines/m1/render?template=t";
    let draft = |contents: &str| json!({"contents": contents});
    let text = api.post(path, &draft("{{ params.color }}!")).await;
    assert_eq!(text.expect(200).text, "red!");
    assert_eq!(api.get(path).await.expect(200).text, "red");
    let new = "/api/v1/machines/m1/render?template=none";
    assert_eq!(api.post(new, &draft("x")).await.expect(200).text, "x");
    let (code, _) = api.post(path, &draft("{% if")).await.problem(422);
    assert_eq!(code, "template");
}

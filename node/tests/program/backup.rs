//! Backup, restore and recovery as an operator does them: with the program, on directories.
use std::fs;
use std::path::Path;
use std::process::Output;

use crate::process::{muster, serve, started};
use serde_json::Value;

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = muster();
    command.args(["-o", "json", "--data-dir"]).arg(dir);
    command.args(arguments).output().unwrap()
}

fn done(dir: &Path, arguments: &[&str]) -> Value {
    let output = run(dir, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn refused(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(dir, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn apply(dir: &Path, scratch: &Path, name: &str) {
    let file = scratch.join(format!("{name}.yaml"));
    fs::write(&file, format!("kind: profile\nname: {name}\n")).unwrap();
    done(dir, &["apply", "-f", file.to_str().unwrap()]);
}

fn profiles(dir: &Path) -> Vec<String> {
    let list = done(dir, &["profiles", "list"]);
    let list = list.as_array().unwrap().iter();
    list.map(|item| item["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_cluster_is_backed_up_restored_and_recovered() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (old, new) = (path("old"), path("new"));
    let (file, pass, wrong) = (path("backup"), path("passphrase"), path("wrong"));
    fs::write(&pass, "correct horse\n").unwrap();
    fs::write(&wrong, "battery staple\n").unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (file_text, pass_text, wrong_text) = (text(&file), text(&pass), text(&wrong));

    let node = started(serve(&old).arg("--found"), &old);
    apply(&old, scratch.path(), "kept");
    let kernel = path("vmlinuz");
    fs::write(&kernel, "kernel").unwrap();
    let upload = ["artifacts", "upload", kernel.to_str().unwrap()];
    done(&old, &[&upload[..], &["--path", "lab/vmlinuz"]].concat());
    let make = ["backup", &file_text, "--passphrase-file", &pass_text];
    let made = done(&old, &[&make[..], &["--artifacts"]].concat());
    assert_eq!(made["artifacts"]["included"], 1);
    apply(&old, scratch.path(), "late");
    assert_eq!(node.stop(), 0);
    // Nothing is left of one that could not be made, and the last one stays.
    let before = fs::read(&file).unwrap();
    refused(&old, &[&make[..], &["--timeout", "1s"]].concat(), 5);
    assert_eq!(fs::read(&file).unwrap(), before);
    let names = fs::read_dir(scratch.path()).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name());
    assert!(!names.any(|name| name.to_string_lossy().starts_with(".backup")));

    let check = ["backup", "--check", &file_text];
    assert_eq!(done(&old, &check)["digest"], made["digest"]);
    let with = |pass| [&check[..], &["--passphrase-file", pass]].concat();
    done(&old, &with(&pass_text));
    refused(&old, &with(&wrong_text), 1);

    let restore = ["restore", &file_text, "--passphrase-file", &pass_text];
    let not_empty = refused(&old, &restore, 1);
    assert!(not_empty.contains("not empty"), "{not_empty}");
    let restored = done(&new, &restore);
    assert_eq!(restored["artifacts_missing"], serde_json::json!([]));
    let node = started(&mut serve(&new), &new);
    crate::process::check_private(&new);
    let status = done(&new, &["cluster", "status"]);
    assert_eq!(status["cluster_id"], restored["cluster_id"]);
    assert_eq!(status["nodes"][0]["name"], "n1");
    assert_eq!(profiles(&new), ["kept"]);
    apply(&new, scratch.path(), "after");
    // Not while it runs.
    let recover = ["node", "recover", "--i-know-writes-may-be-lost"];
    let running = refused(&new, &recover, 1);
    assert!(running.contains("still running"), "{running}");
    assert_eq!(node.stop(), 0);

    let asked = refused(&new, &recover[..2], 2);
    assert!(asked.contains("WRITES MAY BE LOST"), "{asked}");
    let recovered = done(&new, &recover);
    assert_ne!(recovered["cluster_id"], restored["cluster_id"]);
    assert!(
        Path::new(recovered["old_data"].as_str().unwrap())
            .join("log")
            .is_dir()
    );
    let node = started(&mut serve(&new), &new);
    assert_eq!(profiles(&new), ["after", "kept"]);
    assert_eq!(node.stop(), 0);
}

//! `muster doctor` and `muster support bundle`, with the program: what they find, and what they give away.
use std::fs::File;
use std::io::Read as _;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Output};

use crate::process::{muster, serve, started};
use flate2::read::GzDecoder;
use serde_json::Value;

/// In every secret that is planted.
const SECRET: &str = "correct-horse-battery";

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = muster();
    command.args(["-o", "json", "--timeout", "2s", "--data-dir"]);
    command.arg(dir).args(arguments);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn done(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// What the doctor finds on the machine of a directory, with its exit code.
fn diagnosed(dir: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = run(dir, &[&["doctor"], arguments].concat());
    let findings = serde_json::from_slice(&output.stdout);
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.code(),
        findings.unwrap_or_else(|_| panic!("{}", said())),
    )
}

fn of<'a>(findings: &'a [Value], check: &str) -> Vec<&'a Value> {
    let all = findings.iter();
    all.filter(|finding| finding["check"] == check).collect()
}

#[test]
fn a_machine_without_a_node_is_looked_at_by_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("none");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let loaders = scratch.path().join("loaders");
    std::fs::create_dir(&loaders).unwrap();
    std::fs::write(loaders.join("undionly.kpxe"), "").unwrap();
    let loaders = loaders.to_str().unwrap();
    let arguments = [
        "--tftp-port",
        &port,
        "--loader-dir",
        loaders,
        "--dhcp-interfaces",
        "no-such-if",
    ];
    let (code, findings) = diagnosed(&dir, &arguments);
    assert_eq!(code, Some(1), "{findings:#?}");
    let text = |check| {
        let of = of(&findings, check);
        assert_eq!(of.len(), 1, "{check}: {findings:#?}");
        of[0]["finding"].as_str().unwrap().to_owned()
    };
    assert!(text("process").contains("no node answers"));
    assert!(text("settings").contains("belongs to no cluster"));
    assert!(text("data").contains("does not exist"));
    assert!(text("loaders").contains("snponly.efi"));
    assert!(text("interfaces").contains("no-such-if"));
    let own = format!("(process {})", std::process::id());
    let ports = of(&findings, "ports");
    let mut said = ports.iter().filter_map(|port| port["finding"].as_str());
    assert!(said.any(|said| said.contains(&own)), "{findings:#?}");
}

#[test]
fn a_node_that_runs_tells_of_itself_and_of_what_is_not_available() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("n1");
    let node = started(serve(&dir).arg("--found"), &dir);
    let (code, findings) = diagnosed(&dir, &[]);
    // One node alone is worth a warning, not an alarm.
    assert_eq!(code, Some(0), "{findings:#?}");
    assert_eq!(of(&findings, "voters").len(), 1, "{findings:#?}");

    let file = scratch.path().join("objects.yaml");
    std::fs::write(
        &file,
        "kind: bootenv\nname: lab\nkernel: not/there\n---\n\
         kind: subnet\nname: far\ncidr: 10.99.0.0/24\npools: [10.99.0.1-10.99.0.9]\n",
    )
    .unwrap();
    done(&dir, &["apply", "-f", file.to_str().unwrap()]);
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.join("copy-of-key"), "").unwrap();
    let (code, findings) = diagnosed(&dir, &[]);
    assert_eq!(code, Some(0), "{findings:#?}");
    let object = of(&findings, "objects")[0]["finding"].as_str().unwrap();
    assert!(object.contains("lab") && object.contains("not/there"));
    let relays = of(&findings, "relays")[0]["finding"].as_str().unwrap();
    assert!(relays.contains("`far`"), "{relays}");
    assert_eq!(of(&findings, "data").len(), 1, "{findings:#?}");
    let shown = muster().args(["doctor", "--data-dir"]).arg(&dir).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(shown.contains("warning  voters: ") && shown.contains("next:  "));
    assert_eq!(node.stop(), 0);
}

/// All that is in an archive, by path.
fn unpacked(file: &Path) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(file).unwrap()));
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (path, text)
        })
        .collect()
}

#[test]
fn a_support_bundle_has_what_helps_and_no_secret() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (dir, password) = (path("n1"), path("password"));
    std::fs::write(&password, format!("{SECRET}-admin\n")).unwrap();
    let mut command = serve(&dir);
    command.args(["--found", "--admin-password-file"]);
    let node = started(command.arg(&password), &dir);
    let objects = path("objects.yaml");
    std::fs::write(
        &objects,
        format!(
            "kind: param\nname: pw\nsecure: true\ndefault: {SECRET}-1\n---\n\
             kind: profile\nname: p\nparams: {{pw: {SECRET}-2, wifi_password: {SECRET}-3}}\n---\n\
             kind: template\nname: t\ncontents: |\n  rootpw --plaintext {SECRET}-4\n  \
             d-i passwd/root-password password {SECRET}-5\n  curl http://joe:{SECRET}-6@host/\n---\n\
             kind: bootenv\nname: lab\n\
             kernel_args: 'console=ttyS0 a.token={{{{ machine.token }}}} b.token={SECRET}-7'\n---\n\
             kind: user\nname: joe\npassword: {SECRET}-8\n---\n\
             kind: machine\nname: m1\nmacs: ['52:54:00:00:00:50']\nprofiles: [p]\nbootenv: lab\n\
             params: {{pw: {SECRET}-9, color: blue}}\n"
        ),
    )
    .unwrap();
    done(&dir, &["apply", "-f", objects.to_str().unwrap()]);
    let token = done(&dir, &["users", "token", "joe"]);
    let join = done(&dir, &["cluster", "join-token"]);
    // A token that somebody wrote where it does not belong.
    let noted = format!(
        "kind: machine\nname: m2\nmacs: ['52:54:00:00:00:51']\nparams: {{note: 'use {}'}}\n",
        token.trim()
    );
    std::fs::write(&objects, noted).unwrap();
    done(&dir, &["apply", "-f", objects.to_str().unwrap()]);

    let file = path("bundle.tar.gz");
    done(&dir, &["support", "bundle", file.to_str().unwrap()]);
    let found = unpacked(&file);
    let named = |end: &str| {
        let found = found.iter().find(|(path, _)| path.ends_with(end));
        &found.unwrap_or_else(|| panic!("{end} is missing")).1
    };
    assert!(named("objects/machines.json").contains("blue"));
    assert!(named("objects/bootenvs.json").contains("console=ttyS0"));
    assert!(named("objects/templates.json").contains("rootpw"));
    assert!(named("nodes/n1/metrics.txt").contains("muster_raft_is_leader 1"));
    assert!(named("nodes/n1/log.json").contains("serving"));
    assert!(named("events.json").contains("m1"));
    assert!(named("findings.txt").contains("one voter"));
    let diagnosis: Value = serde_json::from_str(named("diagnosis.json")).unwrap();
    let sizes = &diagnosis["nodes"][0]["host"]["sizes"];
    assert!(sizes["log"].as_u64().unwrap() > 0, "{sizes}");
    assert_eq!(
        diagnosis["nodes"][0]["configuration"]["dhcp_interfaces"],
        "none"
    );
    assert_eq!(named("problems.txt"), "");
    let keys = ["keyring", "node.key"].map(|name| std::fs::read_to_string(dir.join(name)));
    let keys = keys.into_iter().flatten();
    let secrets = [SECRET.to_owned(), token, join, "$argon2".to_owned()];
    for secret in secrets.into_iter().chain(keys) {
        let secret = secret.trim();
        for (path, text) in &found {
            assert!(!text.contains(secret), "{secret} is in {path}: {text}");
        }
    }
    assert_eq!(node.stop(), 0);
}

//! Secrets and hostile templates, with the program: what is on the disk, and what is left standing.
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::process::{muster, serve, started};

const SECRET: &str = "correct-horse-battery";

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = muster();
    command.args(["-o", "json", "--data-dir"]).arg(dir);
    command.args(arguments);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn done(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn apply(dir: &Path, documents: &str) {
    let file = dir.with_extension("yaml");
    fs::write(&file, documents).unwrap();
    done(dir, &["apply", "-f", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
}

/// The files below a path that have these octets in them.
fn holders(path: &Path, wanted: &[u8]) -> Vec<String> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries
            .flat_map(|entry| holders(&entry.unwrap().path(), wanted))
            .collect();
    }
    let found = path.is_file() && {
        let bytes = fs::read(path).unwrap();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    found
        .then(|| path.display().to_string())
        .into_iter()
        .collect()
}

#[test]
fn a_secret_is_nowhere_on_the_disk_and_opens_after_a_restore() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (old, new, file, pass) = (path("old"), path("new"), path("backup"), path("pass"));
    fs::write(&pass, "a passphrase\n").unwrap();
    let node = started(serve(&old).arg("--found"), &old);
    apply(
        &old,
        &format!(
            "kind: param\nname: pw\nsecure: true\ndefault: {SECRET}-1\n---\n\
             kind: profile\nname: p\nparams: {{pw: {SECRET}-2}}\n---\n\
             kind: template\nname: t\ncontents: 'open-text {{{{ params.pw }}}}'\n---\n\
             kind: machine\nname: m1\nmacs: ['52:54:00:00:00:50']\nprofiles: [p]\n\
             params: {{pw: {SECRET}-3}}\n"
        ),
    );
    let secret = format!("open-text {SECRET}-3");
    assert_eq!(done(&old, &["render", "m1", "t"]), secret);
    for shown in [
        done(&old, &["machines", "list"]),
        done(&old, &["machines", "params", "m1"]),
        done(&old, &["profiles", "get", "p"]),
        done(&old, &["events", "list"]),
    ] {
        assert!(
            shown.contains("<secure>") && !shown.contains(SECRET),
            "{shown}"
        );
    }
    let (file, pass) = (file.to_str().unwrap(), pass.to_str().unwrap());
    done(&old, &["backup", file, "--passphrase-file", pass]);
    assert_eq!(node.stop(), 0);
    assert_ne!(
        holders(&old, b"open-text"),
        Vec::<String>::new(),
        "it is looked for in vain"
    );
    for place in [&old, Path::new(file), &old.with_extension("log")] {
        assert_eq!(holders(place, SECRET.as_bytes()), Vec::<String>::new());
    }
    let dump = done(&old, &["node", "dump"]);
    assert!(dump.contains("<sealed>") && dump.contains("<secure>"));
    assert!(!dump.contains(SECRET) && !dump.contains("octets"), "{dump}");

    done(&new, &["restore", file, "--passphrase-file", pass]);
    let node = started(&mut serve(&new), &new);
    assert_eq!(done(&new, &["render", "m1", "t"]), secret);
    done(&new, &["cluster", "rotate-keys"]);
    assert_eq!(done(&new, &["render", "m1", "t"]), secret);
    assert_eq!(node.stop(), 0);
}

/// Templates that the engine would work on for hours, or until there is no memory left.
const HOSTILE: &[(&str, &str)] = &[
    (
        "loops over loops",
        "{% for a in params.list %}{% for b in params.list %}{% include \"inner\" %}{% endfor %}{% endfor %}",
    ),
    (
        "a doubled text",
        "{% set a = \"0123456789abcdef\" %}DOUBLE{{ a }}",
    ),
    (
        "a list of lists",
        "{% set a = [1, 2, 3, 4] %}SPREAD{{ a | length }}",
    ),
    (
        "a captured text",
        "{% set a %}{% for a in params.list %}{% for b in params.list %}0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef{% endfor %}{% endfor %}{% endset %}",
    ),
    (
        "a replaced text",
        "{% set a = range(end=9000) | join(sep=\",\") %}{% set b = a | replace(from=\",\", to=a) %}{{ b | replace(from=\",\", to=b) | length }}",
    ),
];

#[test]
fn a_hostile_template_costs_its_own_text_only() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("n1");
    let node = started(serve(&dir).arg("--found"), &dir);
    let list: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    apply(
        &dir,
        &format!(
            "kind: machine\nname: m1\nmacs: ['52:54:00:00:00:50']\nparams: {{list: [{}]}}\n---\n\
             kind: template\nname: inner\ncontents: '{{% for c in params.list %}}{{% endfor %}}'\n---\n\
             kind: template\nname: fine\ncontents: fine\n",
            list.join(", ")
        ),
    );
    let file = dir.with_extension("tera");
    for (name, contents) in HOSTILE {
        let doubled = "{% set a = a ~ a %}".repeat(60);
        let spread = "{% set a = [...a, ...a] %}".repeat(60);
        let contents = contents
            .replace("DOUBLE", &doubled)
            .replace("SPREAD", &spread);
        fs::write(&file, contents).unwrap();
        let render = ["render", "m1", "draft", "-f", file.to_str().unwrap()];
        let all: Vec<_> = (0..4)
            .map(|_| command(&dir, &render).spawn().unwrap())
            .collect();
        let output = run(&dir, &render);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        let why = said(&output);
        assert!(
            ["takes longer", "takes too long", "more than 256 MiB"]
                .iter()
                .any(|known| why.contains(known)),
            "{name}: {why}"
        );
        for mut other in all {
            assert_eq!(other.wait().unwrap().code(), Some(1), "{name}");
        }
        assert_eq!(done(&dir, &["render", "m1", "fine"]), "fine", "{name}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", node.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 512 << 10, "the node itself took {peak} kB");
    assert_eq!(node.stop(), 0);
}

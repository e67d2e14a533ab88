//! Takes secrets out of what is given away: by the names that they go by, and by what they look like.
//! Rather too much is taken out than too little.

use serde_json::Value;

/// What stands for a secret.
const SCRUBBED: &str = "<scrubbed>";

/// What is said of secrets already where they are not shown.
const HIDDEN: [&str; 4] = ["<secure>", "<sealed>", "<token>", SCRUBBED];

/// In names of secrets.
const WORDS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "private",
    "sealed",
    "rootpw",
    "apikey",
    "_key",
    "-key",
];

/// With what secrets begin: tokens of users, of installs, of boots, and of nodes that join; hashes of
/// passwords.
const PREFIXES: [&str; 13] = [
    "mst_", "mmt_", "mbt_", "muster1-", "$1$", "$2a$", "$2b$", "$2y$", "$5$", "$6$", "$7$", "$y$",
    "$argon2",
];

/// Lines of answer files that set passwords without any sign between name and value.
const COMMANDS: [&str; 4] = ["d-i ", "rootpw ", "user ", "sshpw "];

const BEGINS: &str = "-----BEGIN";
const KEY_BEGINS: &str = "PRIVATE KEY-----";
const KEY_ENDS: &str = "-----END";

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let file = name.ends_with("_file");
    !file && WORDS.iter().any(|word| name.contains(word))
}

/// A value without secrets.
pub fn value(value: &Value) -> Value {
    match value {
        Value::String(it) => text(it).into(),
        Value::Array(items) => items.iter().map(self::value).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, it)| {
                let kept = match it {
                    Value::Null | Value::Bool(_) => it.clone(),
                    Value::String(it) if HIDDEN.contains(&it.as_str()) => it.as_str().into(),
                    _ if names_secret(name) => SCRUBBED.into(),
                    it => self::value(it),
                };
                (name.clone(), kept)
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// A text without secrets.
pub fn text(text: &str) -> String {
    let mut in_key = false;
    let mut scrubbed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if in_key && !line.contains(KEY_ENDS) {
            continue;
        }
        in_key = false;
        match key(line) {
            Some((before, ends)) => {
                in_key = !ends;
                scrubbed.push_str(&self::line(before));
                scrubbed.push_str(SCRUBBED);
                scrubbed.push('\n');
            }
            None => scrubbed.push_str(&self::line(line)),
        }
    }
    scrubbed
}

/// What is before a private key that begins on this line, and whether the key ends there too.
fn key(line: &str) -> Option<(&str, bool)> {
    let (before, key) = line.split_at_checked(line.find(BEGINS)?)?;
    key.contains(KEY_BEGINS)
        .then(|| (before, key.contains(KEY_ENDS)))
}

fn line(line: &str) -> String {
    if line.contains("chpasswd") {
        return SCRUBBED.to_owned() + if line.ends_with('\n') { "\n" } else { "" };
    }
    let bare = line.trim_start().to_ascii_lowercase();
    if COMMANDS.iter().any(|command| bare.starts_with(command)) && names_secret(&bare) {
        let word = line.split_whitespace().next().unwrap_or_default();
        let end = if line.ends_with('\n') { "\n" } else { "" };
        return format!("{word} {SCRUBBED}{end}");
    }
    assignments(&users_in_urls(&prefixes(line)))
}

/// Whether a character may be in the middle of a secret.
fn inside(c: char) -> bool {
    !c.is_whitespace()
        && !matches!(
            c,
            '"' | '\'' | '&' | ',' | ';' | ')' | ']' | '}' | '<' | '>'
        )
}

/// Takes out what begins as secrets do.
fn prefixes(line: &str) -> String {
    let mut rest = line;
    let mut kept = String::with_capacity(line.len());
    loop {
        let found = PREFIXES.iter().filter_map(|prefix| rest.find(prefix));
        let Some((before, from)) = found.min().and_then(|at| rest.split_at_checked(at)) else {
            kept.push_str(rest);
            return kept;
        };
        kept.push_str(before);
        kept.push_str(SCRUBBED);
        let end = from.find(|c| !inside(c)).unwrap_or(from.len());
        rest = from.get(end..).unwrap_or_default();
    }
}

/// Takes out `user:password` of URLs.
fn users_in_urls(line: &str) -> String {
    let mut parts = line.split("://");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str("://");
        let end = part.find(|c| c == '/' || !inside(c)).unwrap_or(part.len());
        let (host, rest) = part.split_at_checked(end).unwrap_or((part, ""));
        match host.rsplit_once('@') {
            Some((_, host)) => {
                kept.push_str(SCRUBBED);
                kept.push('@');
                kept.push_str(host);
            }
            None => kept.push_str(host),
        }
        kept.push_str(rest);
    }
    kept
}

/// Takes out what is after `name=` or `name:` where the name is a secret's.
fn assignments(line: &str) -> String {
    let mut rest = line;
    let mut kept = String::with_capacity(line.len());
    while let Some(at) = rest.find(['=', ':']) {
        let Some((before, from)) = rest.split_at_checked(at) else {
            break;
        };
        let named = before.trim_end_matches(['"', '\'', ' ']);
        let begin = named.rfind(|c| !inside(c) && !matches!(c, '"' | '\''));
        let name = named.get(begin.unwrap_or_default()..).unwrap_or_default();
        kept.push_str(before);
        let value = from.get(1..).unwrap_or_default();
        let bare = value.trim_start_matches([' ', '\t']);
        let quoted = bare.trim_start_matches(['"', '\'']);
        // As in YAML: the value is the rest of the line.
        let whole = from.starts_with(": ") && !before.ends_with(['"', '\'']);
        let sign = from.len().saturating_sub(quoted.len());
        // What a template puts there is not in the template.
        if !names_secret(name) || quoted.starts_with("{{") || quoted.starts_with(SCRUBBED) {
            kept.push_str(from.get(..1).unwrap_or_default());
            rest = value;
            continue;
        }
        kept.push_str(from.get(..sign).unwrap_or_default());
        // `Authorization: Bearer …` has two words.
        let words = ["Bearer ", "bearer ", "Basic ", "basic "];
        let word = words.iter().find(|word| quoted.starts_with(**word));
        let quoted = word.map_or(quoted, |word| quoted.get(word.len()..).unwrap_or_default());
        let end = match bare.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            Some(quote) => quoted.find(quote),
            None if whole => quoted.find('\n'),
            None => quoted.find(|c| !inside(c)),
        };
        let end = end.unwrap_or(quoted.len());
        if end > 0 {
            kept.push_str(SCRUBBED);
        }
        rest = quoted.get(end..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_in_texts_are_taken_out_and_the_rest_stays() {
        for (given, expected) in [
            ("nothing here: 4 of 5", "nothing here: 4 of 5"),
            ("at=12 node=n1", "at=12 node=n1"),
            (
                "console=ttyS0 lab.token=abc x=1",
                "console=ttyS0 lab.token=<scrubbed> x=1",
            ),
            ("token={{ machine.token }} x", "token={{ machine.token }} x"),
            ("got mmt_1_7_00ff, then", "got <scrubbed>, then"),
            ("'muster1-abc_-1' mst_x", "'<scrubbed>' <scrubbed>"),
            ("root:$6$salt$hash:1", "root:<scrubbed>"),
            ("Authorization: Bearer abc.def", "Authorization: <scrubbed>"),
            (
                r#"{"password": "hunter2", "a": 1}"#,
                r#"{"password": "<scrubbed>", "a": 1}"#,
            ),
            (
                "password: hunter2\nname: x\n",
                "password: <scrubbed>\nname: x\n",
            ),
            (
                "http://joe:pw@host/a?token=x&b=1",
                "http://<scrubbed>@host/a?token=<scrubbed>&b=1",
            ),
            ("https://host:8092/a", "https://host:8092/a"),
            (
                "d-i passwd/root-password password hunter2\n",
                "d-i <scrubbed>\n",
            ),
            ("rootpw --plaintext hunter2", "rootpw <scrubbed>"),
            ("user the owner", "user the owner"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\nabc\n-----END EC PRIVATE KEY-----\nb\n",
                "a\n<scrubbed>\n-----END EC PRIVATE KEY-----\nb\n",
            ),
            (
                "ssh_key: \"-----BEGIN EC PRIVATE KEY-----\\nMHc\\n-----END EC PRIVATE KEY-----\"\nb\n",
                "ssh_key: \"<scrubbed>\nb\n",
            ),
            (
                "password: \"correct horse\" # x",
                "password: \"<scrubbed>\" # x",
            ),
            ("password: correct horse\nb\n", "password: <scrubbed>\nb\n"),
            ("echo root:hunter2 | chpasswd\n", "<scrubbed>\n"),
            ("", ""),
        ] {
            assert_eq!(text(given), expected);
            assert_eq!(text(&text(given)), expected, "twice");
        }
    }

    #[test]
    fn secrets_in_objects_go_by_their_names() {
        let given = json!({
            "name": "admin",
            "password_hash": "x",
            "tokens": [{"a": 1}],
            "secure": true,
            "join_token_file": "/etc/token",
            "params": {"root_password": 1234, "color": "blue", "pw": "<secure>", "my-key": "k"},
            "list": ["lab.secret=x"],
        });
        let expected = json!({
            "name": "admin",
            "password_hash": "<scrubbed>",
            "tokens": "<scrubbed>",
            "secure": true,
            "join_token_file": "/etc/token",
            "params": {"root_password": "<scrubbed>", "color": "blue", "pw": "<secure>", "my-key": "<scrubbed>"},
            "list": ["lab.secret=<scrubbed>"],
        });
        assert_eq!(value(&given), expected);
    }
}

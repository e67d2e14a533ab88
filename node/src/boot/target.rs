//! The URL layout: what a path means. The same for HTTP and TFTP.

use muster_storage::model::{Mac, Sha256};
use uuid::Uuid;

use super::names::{self, Config, Named};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/boot.ipxe`, and `autoexec.ipxe` in any directory: the script for the machine with this MAC,
    /// or else the one that leases the client's address.
    Script {
        /// `?mac=`
        mac: Option<Mac>,
    },
    /// What another loader than iPXE asks for by a name of its own, in any directory.
    Config(Config),
    /// `/artifacts/PATH`
    Artifact {
        /// Path of the artifact.
        path: String,
        /// `?sha256=`: these bytes and no others.
        sha256: Option<Sha256>,
    },
    /// `/machines/UUID/PATH`
    File {
        /// Whose tree.
        machine: Uuid,
        /// Path in it.
        path: String,
        /// What proves that it is the machine that asks: `/machines/UUID/t/TOKEN/PATH`, for
        /// clients that put names behind a base URL, or `?token=`.
        token: Option<String>,
    },
    /// `/machines/UUID/report`
    Report {
        /// Who reports.
        machine: Uuid,
        /// As that of a file.
        token: Option<String>,
    },
    /// Anything else: a first-stage loader or what it loads, from the loader directory when it is at
    /// the top, or an artifact by its bare path.
    Loader {
        /// Name of the file.
        name: String,
    },
}

impl Target {
    /// Reads a path with its query. None for a path that nothing can be at.
    ///
    /// TFTP clients write `\` for `/`, and begin with none, one or several.
    pub fn parse(path: &str, query: Option<&str>) -> Option<Self> {
        let path = decode(path)?.replace('\\', "/");
        let path = path.trim_start_matches('/');
        let plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if !path.split('/').all(plain) || path.contains(|c: char| c.is_control()) {
            return None;
        }
        match path.split_once('/') {
            None if path == "boot.ipxe" => Some(Self::script(query)),
            Some(("artifacts", path)) => Some(Self::Artifact {
                path: path.to_owned(),
                sha256: match parameter(query, "sha256") {
                    Some(text) => Some(text.parse().ok()?),
                    None => None,
                },
            }),
            Some(("machines", rest)) => {
                let (uuid, path) = rest.split_once('/')?;
                let machine = uuid.parse().ok()?;
                let (token, path) = match path.strip_prefix(SHOWN).map(|rest| rest.split_once('/'))
                {
                    Some(Some((token, path))) => (Some(token.to_owned()), path),
                    Some(None) => return None,
                    None => (parameter(query, TOKEN), path),
                };
                Some(match path {
                    "report" => Self::Report { machine, token },
                    path => Self::File {
                        machine,
                        path: path.to_owned(),
                        token,
                    },
                })
            }
            _ => Self::of_loader(path, query),
        }
    }

    /// With a token that was shown elsewhere, if it takes one: that is the one that counts.
    #[must_use]
    pub fn with_token(mut self, shown: Option<String>) -> Self {
        if let Self::File { token, .. } | Self::Report { token, .. } = &mut self
            && shown.is_some()
        {
            *token = shown;
        }
        self
    }

    fn script(query: Option<&str>) -> Self {
        Self::Script {
            // A MAC that cannot be read is as good as none: the script asks for it.
            mac: parameter(query, "mac").and_then(|text| text.parse().ok()),
        }
    }

    /// What loaders ask for by names that they were built with.
    fn of_loader(path: &str, query: Option<&str>) -> Option<Self> {
        if path == "autoexec.ipxe" || path.ends_with("/autoexec.ipxe") {
            return Some(Self::script(query));
        }
        match names::parse(path) {
            Some(Named::Config(config)) => Some(Self::Config(config)),
            Some(Named::Nothing) => None,
            None if path.starts_with('.') => None,
            None => Some(Self::Loader {
                name: path.to_owned(),
            }),
        }
    }

    /// What kind of thing it is, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Script { .. } => "script",
            Self::Config(_) => "config",
            Self::Artifact { .. } => "artifact",
            Self::File { .. } => "file",
            Self::Report { .. } => "report",
            Self::Loader { .. } => "loader",
        }
    }
}

/// The parameter that shows a token, where no header can be sent.
pub(super) const TOKEN: &str = "token";

/// Below a machine, what a token follows.
const SHOWN: &str = "t/";

/// A path as it may be logged: decoded, without its query, and without the token.
pub fn without_token(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let path = decode(path).map_or_else(|| path.to_owned(), |path| path.replace('\\', "/"));
    let token = path.split_once("machines/").and_then(|(_, machine)| {
        let (_, rest) = machine.split_once('/')?;
        rest.strip_prefix(SHOWN)?.split('/').next()
    });
    match token {
        Some(token) if !token.is_empty() => path.replace(token, "…"),
        _ => path,
    }
}

/// A parameter of a query, decoded.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| decode(value))
}

/// Undoes percent-encoding (RFC 3986 §2.1): iPXE encodes more than it must.
fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        if octet == b'%' {
            let digits = [octets.next()?, octets.next()?];
            decoded.extend(hex::decode(digits).ok()?);
        } else {
            decoded.push(octet);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::super::names::Who;
    use super::super::script::Language;
    use super::*;

    const UUID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

    fn check(path: &str, query: Option<&str>, expected: Option<Target>) {
        assert_eq!(Target::parse(path, query), expected, "{path} {query:?}");
    }

    #[test]
    fn scripts() {
        let mac = Some(Mac([0x52, 0x54, 0, 0, 0, 0x50]));
        check("/boot.ipxe", None, Some(Target::Script { mac: None }));
        check("autoexec.ipxe", None, Some(Target::Script { mac: None }));
        for query in [
            "mac=52:54:00:00:00:50",
            "a=b&mac=52%3A54%3a00%3A00%3A00%3A50",
        ] {
            check("/boot.ipxe", Some(query), Some(Target::Script { mac }));
        }
        for query in [
            "mac=",
            "mac=%",
            "mac",
            "Mac=52:54:00:00:00:50",
            "mac=${netX/mac}",
        ] {
            check(
                "/boot.ipxe",
                Some(query),
                Some(Target::Script { mac: None }),
            );
        }
    }

    #[test]
    fn artifacts() {
        let artifact = |sha256| {
            Some(Target::Artifact {
                path: "lab/vmlinuz".to_owned(),
                sha256,
            })
        };
        for path in [
            "/artifacts/lab/vmlinuz",
            "artifacts/lab/vmlinuz",
            "\\artifacts\\lab\\vmlinuz",
        ] {
            check(path, None, artifact(None));
        }
        let digest = format!("sha256={}", "ab".repeat(32));
        check(
            "/artifacts/lab/vmlinuz",
            Some(&digest),
            artifact(Some(Sha256([0xab; 32]))),
        );
        check("/artifacts/lab/vmlinuz", Some("sha256=12"), None);
        let hidden = Target::Artifact {
            path: ".disk/info".to_owned(),
            sha256: None,
        };
        check("/artifacts/.disk/info", None, Some(hidden));
    }

    #[test]
    fn machines() {
        let machine = UUID.parse().unwrap_or_default();
        let file = |token: Option<&str>| {
            Some(Target::File {
                machine,
                path: "a/hello.cfg".to_owned(),
                token: token.map(str::to_owned),
            })
        };
        let report = |token: Option<&str>| {
            let token = token.map(str::to_owned);
            Some(Target::Report { machine, token })
        };
        let (hello, called) = ("a/hello.cfg", "report");
        check(&format!("/machines/{UUID}/{hello}"), None, file(None));
        check(&format!("/machines/{UUID}/{called}"), None, report(None));
        let (query, token) = (Some("token=mbt_1"), Some("mbt_1"));
        check(&format!("/machines/{UUID}/{hello}"), query, file(token));
        check(&format!("/machines/{UUID}/{called}"), query, report(token));
        check(
            &format!("/machines/{UUID}/t/mbt_1/{hello}"),
            None,
            file(token),
        );
        check(
            &format!("/machines/{UUID}/t/mbt_1/{called}"),
            None,
            report(token),
        );
        check(&format!("/machines/{UUID}/t/mbt_1"), None, None);
        check(&format!("/machines/{UUID}"), None, None);
        check("/machines/m1/hello.cfg", None, None);
    }

    #[test]
    fn tokens_are_not_logged() {
        for (path, logged) in [
            ("/machines/m/t/mbt_1/a", "/machines/m/t/…/a"),
            ("machines/m/t/mbt_1", "machines/m/t/…"),
            ("/machines/m/t/", "/machines/m/t/"),
            ("/machines/m/a/t/b", "/machines/m/a/t/b"),
            ("/artifacts/t/b", "/artifacts/t/b"),
            ("/machines/m/a?token=mbt_1", "/machines/m/a"),
            ("\\machines\\m\\%74\\mbt%5f1\\a", "/machines/m/t/…/a"),
            ("/machines/m/t/%zz/a", "/machines/m/t/…/a"),
        ] {
            assert_eq!(without_token(path), logged);
        }
    }

    #[test]
    fn loaders_are_named_as_they_are_built() {
        let loader = |name: &str| {
            let name = name.to_owned();
            Some(Target::Loader { name })
        };
        for (path, name) in [
            ("//undionly.kpxe", "undionly.kpxe"),
            ("/boot/x64/grubx64.efi", "boot/x64/grubx64.efi"),
            ("\\EFI\\BOOT\\grubx64.efi", "EFI/BOOT/grubx64.efi"),
            ("grub/x86_64-efi/command.lst", "grub/x86_64-efi/command.lst"),
            ("/etc/passwd", "etc/passwd"),
            ("/artifacts", "artifacts"),
        ] {
            check(path, None, loader(name));
        }
        let mac = Mac([0x52, 0x54, 0, 0, 0, 0x50]);
        for path in ["autoexec.ipxe", "/boot/x64/autoexec.ipxe"] {
            check(path, None, Some(Target::Script { mac: None }));
            let query = Some("mac=52-54-00-00-00-50");
            check(path, query, Some(Target::Script { mac: Some(mac) }));
        }
        let config = Target::Config(Config {
            language: Language::Pxelinux,
            who: Who::Mac(mac),
            directory: "bios/".to_owned(),
        });
        let path = "\\bios\\pxelinux.cfg\\01-52-54-00-00-00-50";
        check(path, None, Some(config));
        check("/pxelinux.cfg/0A4D00", None, None);
    }

    #[test]
    fn what_leads_elsewhere_is_nothing() {
        for path in [
            "",
            "/",
            "//",
            "/.",
            "/..",
            "/../etc/passwd",
            "/%2e%2e/etc/passwd",
            "/..%2fetc",
            "..\\x",
            "/artifacts/",
            "/artifacts/../x",
            "/artifacts/./x",
            "/artifacts/%2e%2e/x",
            "/.a/artifacts/x",
            "/artifacts//x",
            "/artifacts/a/",
            "/.hidden",
            "/%00",
            "/%",
            "/%zz",
            "/%ff",
            "/a\nb",
        ] {
            check(path, None, None);
        }
    }
}

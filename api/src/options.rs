//! DHCP options as people write them in a subnet: by number or name, encoded by registered type
//! (RFC 2132 and the IANA registry).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::LazyLock;

use dhcproto::Name;
use dhcproto::v4::{DhcpOption, OptionCode};
use dhcproto::{Encodable, Encoder};

/// Why an option of a subnet cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOption {
    /// Neither a number from 1 to 254 nor a registered name.
    #[error("`{0}` is no DHCP option: write a number from 1 to 254, or a name such as ntp-servers")]
    Unknown(String),
    /// The server makes this option itself.
    #[error("option {0} is made by the server and cannot be set")]
    Reserved(u8),
    /// The value is not of the option's type.
    #[error("option {code}: `{value}` is not {wanted}")]
    Value {
        /// The option.
        code: u8,
        /// What was written.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// The template did not render.
    #[error("option {code}: {problem}")]
    Template {
        /// The option.
        code: u8,
        /// What the renderer said.
        problem: String,
    },
}

/// How an option's value is written and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Addresses,
    Bool,
    U8,
    U16,
    U32,
    I32,
    Text,
    Domains,
    Routes,
    Vendors,
}

/// Options that say what the exchange is, so that no subnet may set them.
const OWN: [u8; 11] = [50, 51, 52, 53, 54, 55, 57, 58, 59, 61, 82];

fn type_of(code: u8) -> Type {
    match code {
        1
        | 3..=11
        | 16
        | 21
        | 28
        | 32
        | 33
        | 41
        | 42
        | 44
        | 45
        | 48
        | 49
        | 65
        | 68..=76
        | 85
        | 89
        | 118
        | 136
        | 138
        | 150 => Type::Addresses,
        19 | 20 | 27 | 29 | 30 | 31 | 34 | 36 | 39 => Type::Bool,
        23 | 37 | 46 | 116 => Type::U8,
        13 | 22 | 25 | 26 | 117 => Type::U16,
        24 | 35 | 38 | 108 | 211 => Type::U32,
        2 => Type::I32,
        119 => Type::Domains,
        121 | 249 => Type::Routes,
        124 | 125 => Type::Vendors,
        _ => Type::Text,
    }
}

/// Whether a value has something to render.
pub fn is_template(value: &str) -> bool {
    value.contains("{{") || value.contains("{%")
}

/// The number of an option: `42`, `ntp-servers`, `ntp_servers` or `NtpServers`.
///
/// # Errors
/// When there is no such option, or the server alone sets it.
pub fn code_of(key: &str) -> Result<u8, BadOption> {
    let unknown = || BadOption::Unknown(key.to_owned());
    let code = match key.trim().parse::<u8>() {
        Ok(code) => code,
        Err(_) => {
            let wanted = plain(key);
            NAMES.get(&wanted).copied().ok_or_else(unknown)?
        }
    };
    match code {
        0 | 255 => Err(unknown()),
        code if OWN.contains(&code) => Err(BadOption::Reserved(code)),
        code => Ok(code),
    }
}

/// Codes by plain name.
static NAMES: LazyLock<BTreeMap<String, u8>> = LazyLock::new(|| {
    let name = |code| plain(&format!("{:?}", OptionCode::from(code)));
    // Of two of one name the lower code.
    (1..=254).rev().map(|code| (name(code), code)).collect()
});

fn plain(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// A value as octets: `0x…` is taken as it stands, everything else by the option's type.
///
/// # Errors
/// When the value is not of that type.
pub fn encode(code: u8, text: &str) -> Result<Vec<u8>, BadOption> {
    let text = text.trim();
    let bad = |wanted| BadOption::Value {
        code,
        value: text.to_owned(),
        wanted,
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return hex::decode(digits).map_err(|_| bad("an even number of hexadecimal digits"));
    }
    let list = || text.split(',').map(str::trim).filter(|s| !s.is_empty());
    match type_of(code) {
        Type::Text => Ok(text.as_bytes().to_vec()),
        Type::Addresses => list()
            .map(|item| item.parse::<Ipv4Addr>().map(|address| address.octets()))
            .collect::<Result<Vec<_>, _>>()
            .map(|addresses| addresses.concat())
            .map_err(|_| bad("a list of IPv4 addresses")),
        Type::Bool => match text {
            "true" | "1" | "yes" | "on" => Ok(vec![1]),
            "false" | "0" | "no" | "off" => Ok(vec![0]),
            _ => Err(bad("true or false")),
        },
        Type::U8 => list()
            .map(str::parse::<u8>)
            .collect::<Result<_, _>>()
            .map_err(|_| bad("a number from 0 to 255")),
        Type::U16 => list()
            .map(|item| item.parse().map(u16::to_be_bytes))
            .collect::<Result<Vec<_>, _>>()
            .map(|numbers| numbers.concat())
            .map_err(|_| bad("a number from 0 to 65535")),
        Type::U32 => list()
            .map(|item| item.parse().map(u32::to_be_bytes))
            .collect::<Result<Vec<_>, _>>()
            .map(|numbers| numbers.concat())
            .map_err(|_| bad("a number from 0 to 4294967295")),
        Type::I32 => text
            .parse::<i32>()
            .map(|number| number.to_be_bytes().to_vec())
            .map_err(|_| bad("a whole number")),
        Type::Domains => domains(list()).ok_or_else(|| bad("a list of domain names")),
        Type::Routes => {
            routes(list()).ok_or_else(|| bad("a list of routes, as in 10.0.0.0/8 10.77.0.1"))
        }
        Type::Vendors => vendors(list())
            .ok_or_else(|| bad("a list of enterprise numbers with values, as in 4491 0x0102aabb")),
    }
}

/// RFC 3397: names in DNS form, compressed.
fn domains<'a>(items: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    let names = items
        .map(|item| Name::from_ascii(format!("{}.", item.trim_end_matches('.'))).ok())
        .collect::<Option<Vec<_>>>()?;
    let mut bytes = Vec::new();
    DhcpOption::DomainSearch(names)
        .encode(&mut Encoder::new(&mut bytes))
        .ok()?;
    // Joins what dhcproto split by 255 octets, as options are split once, when they are placed.
    let mut value = Vec::new();
    let mut rest = bytes.as_slice();
    while let [_, length, after @ ..] = rest {
        let (part, next) = after.split_at_checked(usize::from(*length))?;
        value.extend_from_slice(part);
        rest = next;
    }
    Some(value)
}

/// RFC 3442: width, significant octets of the destination, router.
fn routes<'a>(items: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    for item in items {
        let (network, router) = item.split_once([' ', '-', '>'])?;
        let network: ipnet::Ipv4Net = network.trim().parse().ok()?;
        let router: Ipv4Addr = router.trim_matches([' ', '-', '>']).parse().ok()?;
        let width = network.prefix_len();
        value.push(width);
        let significant = usize::from(width.div_ceil(8));
        value.extend(network.network().octets().iter().take(significant));
        value.extend(router.octets());
    }
    Some(value)
}

/// RFC 3925 §3 and §4: enterprise number, length, and what that enterprise defines: text, or octets
/// after `0x`.
fn vendors<'a>(items: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    for item in items {
        let (enterprise, data) = item.split_once(' ')?;
        let enterprise: u32 = enterprise.parse().ok()?;
        let data = match data.trim().strip_prefix("0x") {
            Some(digits) => hex::decode(digits).ok()?,
            None => data.trim().as_bytes().to_vec(),
        };
        value.extend(enterprise.to_be_bytes());
        value.push(u8::try_from(data.len()).ok()?);
        value.extend(data);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn options_are_named_by_number_or_name() {
        for key in ["42", "ntp-servers", "ntp_servers", "NtpServers"] {
            assert_eq!(code_of(key), Ok(42), "{key}");
        }
        assert_eq!(code_of("bootfile-name"), Ok(67));
        assert_eq!(
            code_of("lease-time"),
            Err(BadOption::Unknown("lease-time".into()))
        );
        assert_eq!(code_of("54"), Err(BadOption::Reserved(54)));
        assert_eq!(code_of("0"), Err(BadOption::Unknown("0".into())));
        assert_eq!(code_of("300"), Err(BadOption::Unknown("300".into())));
    }

    #[test]
    fn values_are_encoded_by_type() {
        let rows: [(u8, &str, &[u8]); 17] = [
            (42, "10.77.0.1", &[10, 77, 0, 1]),
            (6, "10.0.0.1, 10.0.0.2", &[10, 0, 0, 1, 10, 0, 0, 2]),
            (26, "9000", &[0x23, 0x28]),
            (19, "true", &[1]),
            (2, "-3600", &[0xff, 0xff, 0xf1, 0xf0]),
            (23, "64", &[64]),
            (117, "6, 0", &[0, 6, 0, 0]),
            (138, "10.0.0.1", &[10, 0, 0, 1]),
            (35, "60", &[0, 0, 0, 60]),
            (15, "example.org", b"example.org"),
            (224, "text", b"text"),
            (224, "0x0aff", &[0x0a, 0xff]),
            (119, "a.example", b"\x01a\x07example\0"),
            // RFC 3397 §2: compressed by pointers into the whole value.
            (
                119,
                "eng.a.example, b.a.example",
                b"\x03eng\x01a\x07example\0\x01b\xc0\x04",
            ),
            // RFC 3442: only significant octets of the destination.
            (121, "10.0.0.0/8 10.77.0.1", &[8, 10, 10, 77, 0, 1]),
            (
                121,
                "0.0.0.0/0 10.77.0.1, 10.17.128.0/17 10.77.0.2",
                &[0, 10, 77, 0, 1, 17, 10, 17, 128, 10, 77, 0, 2],
            ),
            // RFC 3925 §4.
            (
                125,
                "4491 0x0102aabb, 343 x",
                &[
                    0, 0, 0x11, 0x8b, 4, 1, 2, 0xaa, 0xbb, 0, 0, 1, 0x57, 1, b'x',
                ],
            ),
        ];
        for (code, text, expected) in rows {
            assert_eq!(encode(code, text).unwrap(), expected, "{code} {text}");
        }
        for (code, text) in [
            (42, "host"),
            (26, "70000"),
            (19, "maybe"),
            (43, "0x0"),
            (125, "x"),
        ] {
            assert!(encode(code, text).is_err(), "{code} {text}");
        }
    }
}

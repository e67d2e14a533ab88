//! Faults of the network, made on the switch: nothing on a host can see past them.
//!
//! A fault holds until its [`Fault`] is healed or dropped.

use anyhow::Result;

use crate::lab::{Host, Lab};

/// A fault in force.
#[derive(Debug)]
#[must_use = "a fault is healed when it is dropped"]
pub struct Fault {
    lab: Lab,
    table: String,
}

/// Loses every frame from and to `host`; its link stays up, as with a dead switch further away.
pub fn cut(host: &Host) -> Result<Fault> {
    let port = host.name();
    Fault::new(
        host.lab(),
        &[
            format!("iifname {port} drop"),
            format!("oifname {port} drop"),
        ],
    )
}

/// Loses every frame between two hosts; both still reach everything else.
pub fn cut_between(a: &Host, b: &Host) -> Result<Fault> {
    let (one, other) = (a.name(), b.name());
    Fault::new(
        a.lab(),
        &[
            format!("iifname {one} oifname {other} drop"),
            format!("iifname {other} oifname {one} drop"),
        ],
    )
}

/// Loses every frame that `from` sends to `to`, and none the other way.
pub fn cut_one_way(from: &Host, to: &Host) -> Result<Fault> {
    let rule = format!("iifname {} oifname {} drop", from.name(), to.name());
    Fault::new(from.lab(), &[rule])
}

/// Loses what DHCP clients and relays say to `host`, and what it answers them.
pub fn silence_dhcp(host: &Host) -> Result<Fault> {
    let port = host.name();
    Fault::new(
        host.lab(),
        &[
            format!("oifname {port} udp dport {{ 67, 4011 }} drop"),
            format!("iifname {port} udp sport {{ 67, 4011 }} drop"),
        ],
    )
}

/// Loses what `host` sends from a UDP port, such as 69 for TFTP, and what is sent to it there.
pub fn silence_udp(host: &Host, udp_port: u16) -> Result<Fault> {
    let port = host.name();
    Fault::new(
        host.lab(),
        &[
            format!("oifname {port} udp dport {udp_port} drop"),
            format!("iifname {port} udp sport {udp_port} drop"),
        ],
    )
}

/// Loses what `host` says from a TCP port, such as 8091 for HTTP boot, and what is said to it there.
pub fn silence_tcp(host: &Host, tcp_port: u16) -> Result<Fault> {
    let port = host.name();
    Fault::new(
        host.lab(),
        &[
            format!("oifname {port} tcp dport {tcp_port} drop"),
            format!("iifname {port} tcp sport {tcp_port} drop"),
        ],
    )
}

/// Holds back the REQUESTs of a machine, whose message type comes first in its options.
pub fn hold_requests(lab: &Lab, port: &str) -> Result<Fault> {
    // After the UDP header, 240 octets of BOOTP with the magic cookie: option 53 of length 1, 3.
    let offset = (8 + 240) * 8;
    Fault::new(
        lab,
        &[format!(
            "iifname {port} udp dport 67 @th,{offset},24 0x350103 drop"
        )],
    )
}

/// Holds back whatever a machine asks for by TFTP or HTTP boot.
pub fn hold_fetches(lab: &Lab, port: &str) -> Result<Fault> {
    Fault::new(
        lab,
        &[
            format!("iifname {port} udp dport 69 drop"),
            format!("iifname {port} tcp dport 8091 drop"),
        ],
    )
}

impl Fault {
    /// Each fault is a table of its own in the switch's bridge hook, so that they come and go alone.
    fn new(lab: &Lab, rules: &[String]) -> Result<Self> {
        let table = lab.unique("fault");
        lab.nft(&format!(
            "table bridge {table} {{ chain forward {{ type filter hook forward priority 0;\n{}\n}}\n}}\n",
            rules.join("\n")
        ))?;
        Ok(Self {
            lab: lab.clone(),
            table,
        })
    }

    /// Ends the fault.
    pub fn heal(self) {}
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self
            .lab
            .nft(&format!("delete table bridge {}\n", self.table));
    }
}

//! `muster serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

/// `muster serve`.
#[derive(Clone, Debug, Args, Serialize)]
pub struct ServeOptions {
    /// On an empty data directory: found a cluster of one. Ignored once it belongs to a cluster.
    #[arg(long, env = "MUSTER_FOUND", value_parser = FalseyValueParser::new())]
    pub found: bool,
    /// On an empty data directory: join the cluster of these nodes, HOST:8093 by commas. Ignored
    /// once it belongs to a cluster.
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        env = "MUSTER_JOIN"
    )]
    pub join: Vec<String>,
    /// File with the token that `muster cluster join-token` printed; waited for while it is empty.
    #[arg(long, value_name = "FILE", env = "MUSTER_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Name of this node in the cluster [default: the hostname].
    #[arg(long, value_name = "NAME", env = "MUSTER_NODE_NAME")]
    pub node_name: Option<String>,
    /// Address at which peers and machines reach this node [default: the only global one].
    #[arg(long, value_name = "IP", env = "MUSTER_ADVERTISE")]
    pub advertise: Option<IpAddr>,
    /// Interfaces on which DHCP is served: names by commas, `all` or `none`.
    #[arg(
        long,
        value_name = "IF",
        env = "MUSTER_DHCP_INTERFACES",
        default_value = "all"
    )]
    pub dhcp_interfaces: String,
    /// Port of the API (HTTPS).
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_API_PORT",
        default_value_t = 8092
    )]
    pub api_port: u16,
    /// Port of boot files (HTTP).
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_BOOT_PORT",
        default_value_t = 8091
    )]
    pub boot_port: u16,
    /// Port of the peer link.
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_PEER_PORT",
        default_value_t = 8093
    )]
    pub peer_port: u16,
    /// Port of TFTP.
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_TFTP_PORT",
        default_value_t = 69
    )]
    pub tftp_port: u16,
    /// Port of DHCP.
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_DHCP_PORT",
        default_value_t = 67
    )]
    pub dhcp_port: u16,
    /// Port of proxyDHCP.
    #[arg(
        long,
        value_name = "PORT",
        env = "MUSTER_PROXY_DHCP_PORT",
        default_value_t = 4011
    )]
    pub proxy_dhcp_port: u16,
    /// Directory of first-stage loaders: undionly.kpxe, snponly.efi, ipxe.efi.
    #[arg(
        long,
        value_name = "DIR",
        env = "MUSTER_LOADER_DIR",
        default_value = "/usr/lib/ipxe"
    )]
    pub loader_dir: PathBuf,
    /// When founding: file with the first password of `admin` [default: a random one, written to
    /// DIR/admin-password].
    #[arg(long, value_name = "FILE", env = "MUSTER_ADMIN_PASSWORD_FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or targets with levels.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "MUSTER_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
    /// How it is logged.
    #[arg(
        long,
        value_name = "FORM",
        env = "MUSTER_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// Collector of traces, `http://HOST:4318`: each step of a boot is sent to it as a span (OTLP by
    /// HTTP). None: steps are in the log alone.
    #[arg(long, value_name = "URL", env = "MUSTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Shortest time without a leader before an election, in milliseconds; more for slow disks.
    #[arg(long, value_name = "MS", env = "MUSTER_ELECTION_MS", hide = true)]
    pub election_ms: Option<u64>,
    /// Acknowledge what is not on the disk yet. Loses data; for tests that must see the loss.
    #[arg(
        long,
        env = "MUSTER_UNSAFE_NO_SYNC",
        value_parser = FalseyValueParser::new(),
        hide = true
    )]
    pub unsafe_no_sync: bool,
}

/// How it is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

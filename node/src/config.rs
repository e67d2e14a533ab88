//! Flags and `MUSTER_*` environment: the only place that reads either.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cli::resource::leases::LeaseVerb;
use crate::cli::resource::machines::MachineVerb;
use crate::cli::resource::users::UserVerb;
use crate::cli::resource::{ArtifactVerb, EventVerb, Look, Verb};

/// Provisions bare-metal machines from a cluster of equal nodes.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = false,
    max_term_width = 100
)]
pub struct Cli {
    /// Where and as whom.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How a node is reached, and how answers are printed.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// Directory of the node on this machine: what `serve` keeps its data in, and where others find
    /// its socket.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MUSTER_DATA_DIR",
        default_value = "/var/lib/muster"
    )]
    pub data_dir: PathBuf,
    /// Socket of a node on this machine [default: DIR/muster.sock].
    #[arg(long, global = true, value_name = "PATH", env = "MUSTER_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Nodes to call instead of the one on this machine, `https://HOST:8092`, by commas.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        value_delimiter = ',',
        env = "MUSTER_ENDPOINT"
    )]
    pub endpoint: Vec<String>,
    /// Certificate of the cluster's authority, DIR/ca.pem on every node.
    #[arg(long, global = true, value_name = "FILE", env = "MUSTER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Bearer token.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "MUSTER_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// User of a password.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "MUSTER_USERNAME",
        default_value = "admin"
    )]
    pub username: String,
    /// Password.
    #[arg(
        long,
        global = true,
        value_name = "PASSWORD",
        env = "MUSTER_PASSWORD",
        hide_env_values = true
    )]
    pub password: Option<String>,
    /// How long nodes that do not answer are tried.
    #[arg(long, global = true, value_name = "TIME", env = "MUSTER_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// How answers are printed.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        env = "MUSTER_OUTPUT",
        default_value = "table"
    )]
    pub output: Format,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// A list is one array, an object one object.
    Json,
    /// As JSON.
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Serve(Box<ServeOptions>),
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Write many objects, YAML documents with `kind`, in any order, all or nothing.
    Apply(FileArgument),
    /// Print the text that a machine would get.
    Render {
        /// Name, UUID or MAC.
        machine: String,
        /// Name of the template.
        template: String,
        /// Contents for the template, instead of those that the cluster has; - for standard input.
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print what changes: by the contents of FILE, or from another machine to this one.
        #[arg(long)]
        diff: bool,
        /// The other machine.
        #[arg(long, value_name = "MACHINE", requires = "diff")]
        from: Option<String>,
    },
    /// What machines boot.
    #[command(subcommand)]
    Boot(BootCommand),
    /// Write a backup of the running cluster into a file, or check one.
    Backup(BackupOptions),
    /// Make a new cluster of a backup, in an empty data directory.
    Restore(RestoreOptions),
    /// Say what is wrong with the site, what that means, and what to do next.
    ///
    /// Asks the node on this machine, which asks the others; where no node answers, it looks at this
    /// machine alone, with the flags and variables that `serve` takes. Ends with 1 when something is
    /// worse than a warning.
    Doctor(Box<DoctorOptions>),
    /// Gather for others what they need to help.
    #[command(subcommand)]
    Support(SupportCommand),
    /// Look at a node's data without a server, or recover it.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Servers that are provisioned; the key is a name, UUID or MAC.
    #[command(subcommand)]
    Machines(MachineVerb),
    /// Networks and how DHCP serves them.
    #[command(subcommand)]
    Subnets(Verb),
    /// Addresses kept for one client; the key is the address.
    #[command(subcommand)]
    Reservations(Verb),
    /// Texts that are rendered for machines.
    #[command(subcommand)]
    Templates(Verb),
    /// Kernels, initrds, arguments and files that machines boot.
    #[command(subcommand)]
    Bootenvs(Verb),
    /// Params shared by machines.
    #[command(subcommand)]
    Profiles(Verb),
    /// What params may hold.
    #[command(subcommand)]
    Params(Verb),
    /// The one object `cluster`.
    #[command(subcommand)]
    Settings(Verb),
    /// Which client has which address; the key is the address.
    #[command(subcommand)]
    Leases(LeaseVerb),
    /// Files that all nodes hold; the key is the path.
    #[command(subcommand)]
    Artifacts(ArtifactVerb),
    /// Who may use the API.
    #[command(subcommand)]
    Users(UserVerb),
    /// Members of the cluster.
    #[command(subcommand)]
    Nodes(Look),
    /// What changed.
    #[command(subcommand)]
    Events(EventVerb),
    /// Stop the process that began this one, and have it go on.
    #[command(hide = true)]
    PauseParent {
        /// Before it is stopped, in milliseconds.
        after: u64,
        /// Until it goes on, in milliseconds.
        length: u64,
    },
    /// Render what comes on standard input.
    #[command(hide = true)]
    RenderWorker,
    /// Write the reference of flags, metrics and problems.
    #[command(hide = true)]
    Reference {
        /// Where to.
        #[arg(long)]
        dir: PathBuf,
    },
}

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

/// `muster doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorOptions {
    /// Also look for other DHCP servers on the links of all nodes, by a DISCOVER from a MAC that no
    /// machine has.
    #[arg(long)]
    pub probe: bool,
    /// How the node on this machine is served; looked at when it does not answer.
    #[command(flatten)]
    pub serve: ServeOptions,
}

/// `muster support`.
#[derive(Debug, Subcommand)]
pub enum SupportCommand {
    /// Write one file with what helps others to help: status, findings, configuration, metrics, last
    /// log lines, events and objects. No secrets.
    Bundle(Box<BundleOptions>),
}

/// `muster support bundle`.
#[derive(Clone, Debug, Args)]
pub struct BundleOptions {
    /// Where it goes, a .tar.gz [default: muster-support-TIME.tar.gz in this directory].
    pub file: Option<PathBuf>,
    /// What is looked at.
    #[command(flatten)]
    pub doctor: DoctorOptions,
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

/// `muster cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Nodes, leader, quorum. Ends with 5 when there is no quorum.
    Status,
    /// Print a token by which nodes join, any number of times until it expires.
    JoinToken {
        /// How long it is valid.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// Instead: let no node join by any token made so far.
        #[arg(long)]
        revoke: bool,
    },
    /// Remove a node for good, dead or alive.
    Remove {
        /// Name or id.
        node: String,
    },
    /// Put a node that has joined in the place of one that does not answer any more.
    ///
    /// Waits until the new one votes, then removes the dead one for good. Can be given again at any time.
    Replace {
        /// Name or id.
        dead: String,
        /// Name or id.
        new: String,
    },
    /// Hand leadership to a node, or to any other.
    Transfer {
        /// Name or id.
        node: Option<String>,
    },
    /// Give a node, or all of them one after the other, a new key and certificate.
    RenewCertificates {
        /// Name or id.
        node: Option<String>,
    },
    /// Seal all secrets with a new key, and forget the older ones.
    ///
    /// Tokens of machines that are being installed end.
    RotateKeys,
    /// Make a node ready to be stopped: it leads no more, and begins nothing new that others can do.
    Drain {
        /// Name or id.
        node: String,
        /// How long transfers that run may take to end.
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
        wait: Duration,
    },
    /// Go from version to version, one node at a time.
    #[command(subcommand)]
    Upgrade(UpgradeCommand),
    /// Write from now on what older versions do not know. None of them can be started again.
    ///
    /// Refused while a node does not run a version that knows it, or is not live.
    Finalize,
    /// Have a node fail, and measure what clients see of it.
    #[command(subcommand)]
    Drill(DrillCommand),
}

/// `muster cluster upgrade`.
#[derive(Debug, Subcommand)]
pub enum UpgradeCommand {
    /// How far the upgrade is.
    Status(Wanted),
    /// Whether a node may be taken down now, and which; ends with 1 and says why when none may.
    Check(Wanted),
    /// Drain the next node, the leader last, and print its name; nothing when all have the version.
    ///
    /// Can be given again at any time: a node that is draining already is the next one.
    Next {
        /// Where to.
        #[command(flatten)]
        wanted: Wanted,
        /// How long transfers that run on it may take to end.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
        wait: Duration,
    },
}

/// Where to.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The version that all nodes are to have; the newest that one of them has if absent.
    #[arg(long, value_name = "VERSION")]
    pub to: Option<String>,
}

/// `muster cluster drill`.
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Kill the process of the leader; its service manager starts it again.
    LeaderKill {
        /// How it is done.
        #[command(flatten)]
        options: DrillOptions,
        /// Also when no service manager is known to start it again.
        #[arg(long)]
        force: bool,
    },
    /// Have a node fall silent for a while, as if it hung or its cable were cut; it goes on by itself.
    NodeLoss {
        /// Name or id [default: a node that does not lead].
        #[arg(long)]
        node: Option<String>,
        /// How it is done.
        #[command(flatten)]
        options: DrillOptions,
    },
    /// The reports of drills.
    List,
    /// The report of a drill.
    Get {
        /// Its name.
        name: String,
    },
}

/// How a drill is done.
#[derive(Clone, Debug, Args)]
pub struct DrillOptions {
    /// How long the failure lasts, or is watched: 0.1 to 10.
    #[arg(long, default_value_t = 1.0, value_parser = drill_minutes)]
    pub minutes: f64,
    /// Subnet of whose pool the synthetic client takes an address [default: the first that serves
    /// everyone].
    #[arg(long)]
    pub subnet: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

fn drill_minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    match (0.1..=10.0).contains(&minutes) {
        true => Ok(minutes),
        false => Err("0.1 to 10 minutes".to_owned()),
    }
}

/// `muster boot`.
#[derive(Debug, Subcommand)]
pub enum BootCommand {
    /// What a machine would be served now, by which rule, and why.
    Explain {
        /// Its hardware address.
        mac: String,
    },
}

/// `muster node`: on a stopped or copied data directory; only `recover` writes to it.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Verify everything that can be verified.
    Check,
    /// Print what it holds, one JSON object per line.
    Dump,
    /// Last resort, when a majority of the nodes is lost for good: make this node a new cluster of
    /// its own, with what it has. Without the flag: say what would be lost, and change nothing.
    Recover {
        /// Do it. Writes that the lost nodes acknowledged may be gone.
        #[arg(long)]
        i_know_writes_may_be_lost: bool,
    },
}

/// `muster backup`.
#[derive(Clone, Debug, Args)]
pub struct BackupOptions {
    /// Where it goes, or which one is checked. One of this name is replaced when the new one is
    /// whole.
    pub file: PathBuf,
    /// File with the passphrase that seals the keys of the cluster; `-` for standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    pub passphrase_file: Option<PathBuf>,
    /// With the bytes of all artifacts.
    #[arg(long, conflicts_with = "check")]
    pub artifacts: bool,
    /// Instead: check a backup, with a passphrase also whether that opens it.
    #[arg(long)]
    pub check: bool,
}

/// `muster restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// File with its passphrase; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: PathBuf,
}

/// `-f`.
#[derive(Clone, Debug, Args)]
pub struct FileArgument {
    /// YAML or JSON: a file, a directory of them, or `-` for standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Also when machines could not be given their texts any more.
    #[arg(long)]
    pub force: bool,
}

/// Reads `500ms`, `10s`, `5m`, `24h`, `7d`, or seconds.
///
/// # Errors
/// When it is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no time; write 500ms, 10s, 5m, 24h or 7d");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(bad)?;
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory as _;

    use super::{Cli, duration};

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("500ms", Some(500)),
            ("2s", Some(2000)),
            ("2", Some(2000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1w", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ] {
            let expected = millis.map(Duration::from_millis);
            assert_eq!(duration(text).ok(), expected, "{text}");
        }
    }
}

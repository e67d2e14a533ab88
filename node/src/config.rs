//! Flags and `MUSTER_*` environment: the only place that reads either.

mod cluster;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::resource::leases::LeaseVerb;
use crate::cli::resource::machines::MachineVerb;
use crate::cli::resource::users::UserVerb;
use crate::cli::resource::{ArtifactVerb, EventVerb, Look, Verb};

pub use cluster::{ClusterCommand, DrillCommand, DrillOptions, UpgradeCommand, Wanted};
pub use serve::{LogFormat, ServeOptions};

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

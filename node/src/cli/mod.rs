//! The command line: one call of the API for each command, printed.

mod backup;
mod cluster;
mod doctor;
mod drill;
mod files;
mod offline;
mod output;
mod recover;
pub mod reference;
mod render;
pub mod resource;
mod support;
mod upgrade;

use std::io;

use muster_api::client::{Call, Client, Credentials, Error as ClientError, Target};
use reqwest::Method;

use crate::config::{BootCommand, ClusterCommand, Command, Connection, Format, SupportCommand};
use output::Printer;
use render::Rendering;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The API refused, failed, or could not be reached.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// It was done, and what came out is bad.
    #[error("{0}")]
    Failed(String),
    /// The cluster answers, but has no quorum.
    #[error("the cluster has no quorum: nothing can be written")]
    NoQuorum,
    /// Output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// 1 refused or failed, 2 usage, 3 not found, 4 conflict, 5 unavailable.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Api(ClientError::Setup(_) | ClientError::File { .. }) => 2,
            Self::Api(ClientError::Problem {
                status: 404 | 410, ..
            }) => 3,
            Self::Api(ClientError::Problem {
                status: 409 | 412 | 423,
                ..
            }) => 4,
            Self::Api(ClientError::Problem {
                status: 503 | 504, ..
            })
            | Self::Api(ClientError::Unreachable { .. } | ClientError::Unknown { .. })
            | Self::NoQuorum => 5,
            Self::Api(ClientError::Problem { .. }) | Self::Failed(_) | Self::Output(_) => 1,
        }
    }
}

/// Runs a command; the exit code.
pub fn main(connection: &Connection, command: Command) -> u8 {
    match execute(connection, command) {
        Ok(()) => 0,
        // Whoever reads our output has seen enough.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("muster: {error}");
            error.exit_code()
        }
    }
}

fn execute(connection: &Connection, command: Command) -> Result<(), Error> {
    let printer = Printer::new(connection.output);
    match command {
        Command::Node(command) => return offline::run(printer, &connection.data_dir, &command),
        Command::Backup(options) if options.check => return backup::check(printer, &options),
        Command::Restore(options) => {
            return backup::restore(printer, &connection.data_dir, &options);
        }
        Command::PauseParent { after, length } => {
            let millis = std::time::Duration::from_millis;
            return Ok(crate::failure::pause_parent(millis(after), millis(length))?);
        }
        Command::RenderWorker => return Ok(muster_api::template::work()?),
        Command::Reference { dir } => return Ok(reference::write(&dir)?),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let context = Context {
        client: client(connection)?,
        printer,
    };
    match command {
        Command::Doctor(options) => runtime.block_on(doctor::run(&context, connection, &options)),
        Command::Cluster(ClusterCommand::Drill(command)) => {
            runtime.block_on(drill::run(&context, connection, command))
        }
        Command::Support(SupportCommand::Bundle(options)) => {
            runtime.block_on(support::bundle(&context, connection, &options))
        }
        command => runtime.block_on(online(&context, command)),
    }
}

/// What a node stores is its own, as when it is served.
fn keep_private() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
}

async fn online(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Cluster(command) => cluster::run(context, command).await,
        Command::Apply(argument) => resource::apply_bundle(context, &argument).await,
        Command::Render {
            machine,
            template,
            file,
            diff,
            from,
        } => {
            let text = Rendering {
                machine,
                template,
                file,
            };
            match (diff, from) {
                (false, _) => text.print(context).await,
                (true, from) => text.print_changes(context, from).await,
            }
        }
        Command::Boot(BootCommand::Explain { mac }) => {
            let call = Call::new(Method::GET, &["boot", "explain"]).query("mac", mac);
            context.printer.object(&context.client.json(call).await?)
        }
        Command::Machines(verb) => resource::machines::run(context, verb).await,
        Command::Subnets(verb) => resource::run(context, "subnets", verb).await,
        Command::Reservations(verb) => resource::run(context, "reservations", verb).await,
        Command::Templates(verb) => resource::run(context, "templates", verb).await,
        Command::Bootenvs(verb) => resource::run(context, "bootenvs", verb).await,
        Command::Profiles(verb) => resource::run(context, "profiles", verb).await,
        Command::Params(verb) => resource::run(context, "params", verb).await,
        Command::Settings(verb) => resource::run(context, "settings", verb).await,
        Command::Leases(verb) => resource::leases::run(context, verb).await,
        Command::Artifacts(verb) => resource::run_artifacts(context, verb).await,
        Command::Users(verb) => resource::users::run(context, verb).await,
        Command::Nodes(verb) => resource::look_at_nodes(context, verb).await,
        Command::Events(verb) => resource::run_events(context, verb).await,
        Command::Backup(options) => backup::make(context, &options).await,
        Command::Serve(_)
        | Command::Doctor(_)
        | Command::Support(_)
        | Command::Node(_)
        | Command::Restore(_)
        | Command::RenderWorker
        | Command::PauseParent { .. }
        | Command::Reference { .. } => Err(Error::Usage("this command needs no server".to_owned())),
    }
}

/// What every command has at hand.
pub struct Context {
    client: Client,
    printer: Printer,
}

fn client(connection: &Connection) -> Result<Client, Error> {
    let target = if connection.endpoint.is_empty() || connection.socket.is_some() {
        let default = || connection.data_dir.join("muster.sock");
        Target::Socket(connection.socket.clone().unwrap_or_else(default))
    } else {
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|source| ClientError::File {
                path: path.display().to_string(),
                source,
            })
        };
        Target::Https {
            endpoints: connection.endpoint.clone(),
            ca_pem: connection.ca_file.as_ref().map(read).transpose()?,
        }
    };
    let credentials = match (&connection.token, &connection.password) {
        (Some(token), _) => Some(Credentials::Token(token.clone())),
        (None, Some(password)) => Some(Credentials::Password {
            username: connection.username.clone(),
            password: password.clone(),
        }),
        (None, None) => None,
    };
    Ok(Client::new(target, credentials, connection.timeout)?)
}

/// Whether answers are printed for programs.
fn for_programs(format: Format) -> bool {
    format != Format::Table
}

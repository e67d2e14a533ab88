//! What is at a path for a client.

mod addressee;
mod file;
mod loader;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use muster_api::machine_token;
use muster_api::template::trial::{self, Case, Overlay};
use muster_api::template::{self, Job, NodeView, RenderContext};
use muster_raft::{Cluster, Keyring, Placement};
use muster_storage::model::{
    Attempt, Bootenv, Install, LOCAL, LeaseState, Mac, ObjectKind, Settings, Sha256, Step,
};
use muster_storage::state::{BootClient, BootTarget};
use muster_storage::{Revision, State, Timestamp};
use sha2::Digest as _;
use tokio::time::timeout;
use uuid::Uuid;

use super::facts::{OnceSent, Recorder};
use super::fence;
use super::script::{self, File, Heading, Language, Task};
use super::stamp::Stamp;
use super::target::Target;
use crate::spans::Visit;
use loader::{fuller, media_type};

/// How long an answer waits for a quorum to confirm that it is made from the latest state.
const CONFIRM: Duration = Duration::from_millis(200);

/// How long to wait for it when this node knows nothing of what is asked for.
const CATCH_UP: Duration = Duration::from_millis(500);

/// How often it is looked again what a machine is to do, when that changes while it is found out.
const ROUNDS: usize = 4;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Source address of the request.
    pub address: IpAddr,
    /// Whether it is the HTTP Boot client of UEFI firmware.
    pub uefi_http: bool,
    /// The request.
    pub visit: Visit,
}

/// What was asked for, ready to be read.
#[derive(Clone, Debug)]
pub struct Content {
    /// Exact length in octets.
    pub length: u64,
    /// Changes when the octets do.
    pub etag: String,
    /// Media type.
    pub media: &'static str,
    /// Where the octets are.
    pub source: Source,
    /// What is known of a machine once all octets are sent.
    pub fact: Option<OnceSent>,
    /// Of what it was made, if it was made for a machine.
    pub stamp: Option<Stamp>,
}

/// Where octets are.
#[derive(Clone, Debug)]
pub enum Source {
    /// Here.
    Text(Bytes),
    /// In a file on this node.
    File(PathBuf),
    /// On some other node.
    Peers(Sha256),
}

/// Why there is nothing to give.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// This node does not know it, and could not ask the others.
    #[error("this node cannot reach a quorum, and knows nothing of it by itself")]
    Unconfirmed,
    /// It is for a machine alone, and no token was shown.
    #[error(
        "this is for the machine alone: show its token, as `Authorization: Bearer TOKEN` or at \
         /machines/UUID/t/TOKEN/PATH"
    )]
    Private,
    /// A token was shown that is not good.
    #[error("this token was not given to this machine, or it is over")]
    Token,
    /// A template could not be rendered.
    #[error("it cannot be rendered: {0}")]
    Render(template::Problem),
    /// The octets are on other nodes, and none of them gave any.
    #[error("no node that has it can be reached")]
    Peers,
    /// Rendering was cut off.
    #[error("it cannot be rendered now")]
    Interrupted,
    /// The disk failed.
    #[error("it cannot be read")]
    Disk(#[source] io::Error),
}

/// The tree of everything that clients can fetch. Clones share it.
#[derive(Clone)]
pub struct Tree {
    cluster: Cluster,
    loader_dir: Arc<Path>,
    recorder: Recorder,
}

impl Tree {
    /// The tree as this node serves it.
    pub fn new(cluster: Cluster, loader_dir: &Path, recorder: Recorder) -> Self {
        Self {
            cluster,
            loader_dir: loader_dir.into(),
            recorder,
        }
    }

    /// Where steps of boots are noted.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The node that serves it.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What is at `target` for `client`. A report is nothing that can be read.
    ///
    /// # Errors
    /// When there is nothing, or it cannot be had now.
    pub async fn find(&self, target: &Target, client: Client) -> Result<Content, Problem> {
        let content = self.content(target, client).await?;
        let fact = self.fact(target, client);
        Ok(Content { fact, ..content })
    }

    async fn content(&self, target: &Target, client: Client) -> Result<Content, Problem> {
        match target {
            Target::Script { mac } => Ok(self.script(Language::Ipxe, "", *mac, client).await),
            Target::Config(config) => self.config(config, client).await,
            Target::Artifact { path, sha256 } => self.artifact(path, *sha256).await,
            Target::File {
                machine,
                path,
                token,
            } => self.file(*machine, path, token.as_deref()).await,
            Target::Loader { name } => self.loader(name, client).await,
            Target::Report { .. } => Err(Problem::NotFound("reports are written".to_owned())),
        }
    }

    /// Whether what is read from now on is at least as new as anything committed before the call.
    async fn confirm(&self, budget: Duration) -> bool {
        let read = self.cluster.read_linear(|_| ());
        matches!(timeout(budget, read).await, Ok(Ok(())))
    }

    /// Whether the machine exists, after asking the others if this node does not know it.
    ///
    /// # Errors
    /// When this node does not know it and cannot ask.
    pub async fn knows_machine(&self, machine: Uuid) -> Result<bool, Problem> {
        let known = || {
            let found = |state: &State| state.machine_with_uuid(machine).is_some();
            self.cluster.read(found)
        };
        if known() {
            return Ok(true);
        }
        match self.confirm(CATCH_UP).await {
            true => Ok(known()),
            false => Err(Problem::Unconfirmed),
        }
    }

    async fn script(
        &self,
        language: Language,
        directory: &str,
        mac: Option<Mac>,
        client: Client,
    ) -> Content {
        let identify = |state: &State| {
            let mac = mac.or_else(|| leased_to(state, client.address));
            let known = mac.is_some_and(|mac| state.machine_with_mac(mac).is_some());
            (mac, known)
        };
        let (_, known) = self.cluster.read(identify);
        let confirmed = self.confirm(if known { CONFIRM } else { CATCH_UP }).await;
        let (mac, known) = self.cluster.read(identify);
        let (node, mut nodes) = template::nodes(&self.cluster);
        script::order(&mut nodes, mac);
        let mut heading = Heading {
            machine: None,
            mac,
            address: client.address,
            node: node.name,
            rule: "nothing is known about the client".to_owned(),
            stamp: None,
            revision: self.cluster.read(State::revision),
            confirmed,
            directory: directory.to_owned(),
            fuller: self
                .cluster
                .read(|state| fuller(state, mac, client.address)),
        };
        let task = match mac {
            Some(mac) if known || confirmed => {
                self.task_of(mac, client, &mut nodes, &mut heading).await
            }
            None if confirmed => Task::Identify,
            // Others may know the client: this node is asked last.
            mac => {
                if nodes.len() > 1 {
                    nodes.rotate_left(1);
                }
                match mac {
                    None => Task::Identify,
                    Some(_) => Task::Hold {
                        lines: vec!["this node cannot reach a quorum to ask who it is".to_owned()],
                        wait_secs: script::RETRY_SECS,
                    },
                }
            }
        };
        text_content(script::render(language, &heading, &task, &nodes))
    }

    /// What the machine with this MAC is to do now. What can destroy its data it gets only for an
    /// attempt that is open by then.
    async fn task_of(
        &self,
        mac: Mac,
        client: Client,
        nodes: &mut [NodeView],
        heading: &mut Heading,
    ) -> Task {
        let placement = self.cluster.placement();
        let mut attempt = None;
        let keyring = self.cluster.keyring().ok();
        let keyring = keyring.as_ref();
        let now = self.cluster.now();
        for _ in 0..ROUNDS {
            let planned = self.cluster.read(|state| {
                let at = (now, &placement);
                let work = plan(at, state, mac, nodes, attempt, keyring, heading);
                (
                    work,
                    state.machine_with_mac(mac).map(|machine| machine.uuid),
                )
            });
            match planned {
                (Err(Unopened(install)), _) => match fence::open(&self.cluster, &install).await {
                    Ok(opened) => attempt = opened,
                    Err(error) => {
                        nodes.rotate_left(1.min(nodes.len()));
                        return Task::Hold {
                            lines: vec![format!("an install needs a quorum: {error}")],
                            wait_secs: script::RETRY_SECS,
                        };
                    }
                },
                (Ok(work), machine) => {
                    if let Some(machine) = machine {
                        self.recorder.asked(client.address, machine);
                        let step = work.step(heading.revision);
                        match attempt {
                            None => self.recorder.note(machine, step, client.visit),
                            // It is written with the attempt.
                            Some(_) => self.recorder.tell(machine, step, client.visit),
                        }
                    }
                    return self.task(work).await;
                }
            }
        }
        Task::Hold {
            lines: vec!["the order to install it changes all the time".to_owned()],
            wait_secs: script::RETRY_SECS,
        }
    }

    /// What is known of the client's machine once it has all that is at `target`.
    fn fact(&self, target: &Target, client: Client) -> Option<OnceSent> {
        let step: Box<dyn FnOnce(&Bootenv) -> Step> = match target {
            Target::Artifact { path, .. } => {
                let path = path.clone();
                Box::new(move |bootenv| match bootenv {
                    it if it.kernel.as_ref() == Some(&path) => Step::Kernel { path },
                    it if it.initrds.contains(&path) => Step::Initrd { path },
                    _ => Step::File { path },
                })
            }
            Target::File { path, .. } => {
                let path = path.clone();
                Box::new(move |_| Step::File { path })
            }
            Target::Loader { name } => {
                let name = name.clone();
                Box::new(move |_| Step::Loader { name })
            }
            Target::Script { .. } | Target::Config(_) | Target::Report { .. } => return None,
        };
        let machine = match target {
            Target::File { machine, .. } => *machine,
            _ => self.recorder.machine_at(client.address)?,
        };
        let step = self.cluster.read(|state| {
            let found = state.machine_with_uuid(machine)?;
            let none = Bootenv::default();
            Some(step(state.bootenv(&found.bootenv).unwrap_or(&none)))
        })?;
        Some(OnceSent::new(&self.recorder, machine, step, client.visit))
    }

    /// Does what is left to do without the state. A bad template holds its machines, visibly.
    async fn task(&self, work: Work) -> Task {
        let (kernel, initrds, jobs, case) = match work {
            Work::Ready(task) => return task,
            Work::Kernel {
                kernel,
                initrds,
                args,
                case,
                ..
            } => (kernel, initrds, args, case),
        };
        let hold = |line: String| Task::Hold {
            lines: vec![line],
            wait_secs: script::HOLD_SECS,
        };
        let tried = template::on_pool(|| trial::run_with(case.into_iter().collect(), jobs)).await;
        let (tried, args) = match tried {
            Ok(tried) => tried,
            Err(_) => return hold(format!("the kernel arguments: {}", Problem::Interrupted)),
        };
        if let Some(failure) = tried.failures.first() {
            return hold(failure.for_machine());
        }
        match args.into_iter().collect::<Result<_, _>>() {
            Ok(args) => Task::Kernel {
                kernel,
                initrds,
                args,
            },
            Err(problem) => hold(format!(
                "the kernel arguments: {}",
                Problem::Render(problem)
            )),
        }
    }

    async fn artifact(&self, path: &str, pinned: Option<Sha256>) -> Result<Content, Problem> {
        if let Some(content) = self.known_artifact(path, pinned) {
            return Ok(content);
        }
        let confirmed = self.confirm(CATCH_UP).await;
        match self.known_artifact(path, pinned) {
            Some(content) => Ok(content),
            None if confirmed => Err(Problem::NotFound(match pinned {
                None => format!("there is no artifact `{path}`"),
                Some(_) => format!("artifact `{path}` has other bytes now"),
            })),
            None => Err(Problem::Unconfirmed),
        }
    }

    fn known_artifact(&self, path: &str, pinned: Option<Sha256>) -> Option<Content> {
        let recorded = |state: &State| {
            let artifact = state.artifact(path)?;
            Some((artifact.sha256, artifact.size))
        };
        let recorded = self
            .cluster
            .read(recorded)
            .filter(|(sha256, _)| pinned.is_none_or(|pinned| pinned == *sha256));
        let blobs = self.cluster.blobs();
        let (sha256, length, source) = match (recorded, pinned) {
            (Some((sha256, length)), _) => {
                // A file of another length is damaged: others have it whole.
                let source = if blobs.size(&sha256) == Some(length) {
                    Source::File(blobs.path(&sha256))
                } else {
                    Source::Peers(sha256)
                };
                (sha256, length, source)
            }
            // Replaced since the script was written, but still here.
            (None, Some(sha256)) => {
                let length = blobs.size(&sha256)?;
                (sha256, length, Source::File(blobs.path(&sha256)))
            }
            (None, None) => return None,
        };
        Some(Content {
            length,
            etag: sha256.to_string(),
            media: media_type(path),
            source,
            fact: None,
            stamp: None,
        })
    }
}

/// What is to be done, as far as the state says.
enum Work {
    Ready(Task),
    Kernel {
        /// Its name.
        bootenv: String,
        kernel: File,
        initrds: Vec<File>,
        /// Renders the arguments, one for each node.
        args: Vec<Job>,
        /// What the machine will fetch.
        case: Option<Case>,
    },
}

/// No attempt is open yet: one has to be before anything is served.
struct Unopened(Box<Install>);

impl Work {
    /// The fact that it is served.
    fn step(&self, revision: Revision) -> Step {
        let boots = match self {
            Self::Ready(Task::Local(_)) => LOCAL.to_owned(),
            Self::Kernel { bootenv, .. } => bootenv.clone(),
            Self::Ready(_) => Settings::hold(),
        };
        Step::Script {
            boots,
            revision,
            attempt: None,
        }
    }
}

/// What the machine with this MAC is to do, for each of the nodes, `attempt` to install it being
/// open; completes the heading.
fn plan(
    (now, placement): (Timestamp, &Placement),
    state: &State,
    mac: Mac,
    nodes: &[NodeView],
    attempt: Option<Attempt>,
    keyring: Option<&Keyring>,
    heading: &mut Heading,
) -> Result<Work, Unopened> {
    let plan = state.boot_plan(&BootClient { mac });
    heading.machine = plan.machine.map(|machine| machine.name.clone());
    heading.rule = plan.rule;
    heading.revision = state.revision();
    heading.stamp = plan.machine.map(|machine| {
        let bootenv = state.bootenv(&machine.bootenv);
        let own = bootenv.map(|bootenv| (ObjectKind::Bootenv, bootenv.name.as_str()));
        let files = bootenv.into_iter().flat_map(|bootenv| &bootenv.files);
        let templates = files.map(|file| (ObjectKind::Template, file.template.as_str()));
        Stamp::of(state, machine, own.into_iter().chain(templates))
    });
    let machine = plan.machine;
    let own = machine.is_some_and(|it| addressee::is_of(state, it, heading.address));
    let hold = |reason: &str| {
        Work::Ready(Task::Hold {
            lines: reason.lines().map(str::to_owned).collect(),
            wait_secs: script::HOLD_SECS,
        })
    };
    let bootenv = match plan.target {
        BootTarget::Local => return Ok(Work::Ready(Task::Local(state.local_boot(plan.machine)))),
        BootTarget::Hold { reason } => return Ok(hold(&reason)),
        BootTarget::Install { .. } if !own => {
            let line = format!(
                "an install is ordered, and {} is not an address of this machine: it needs one that \
                 is leased to it or reserved for it, or in a subnet of mode proxy where others give \
                 them out",
                heading.address
            );
            return Ok(Work::Ready(Task::Readdress { lines: vec![line] }));
        }
        BootTarget::Install { install, bootenv } => {
            if !attempt.is_some_and(|attempt| install.admits(attempt)) {
                return Err(Unopened(Box::new(install.clone())));
            }
            bootenv
        }
        BootTarget::Bootenv(bootenv) => bootenv,
    };
    let pin = |path: &String| {
        let sha256 = state.artifact(path)?.sha256;
        let lacking = placement.missing(&sha256);
        Some(File {
            path: path.clone(),
            sha256,
            lacking: lacking.into_iter().map(str::to_owned).collect(),
        })
    };
    let kernel = bootenv.kernel.as_ref().and_then(pin);
    let initrds: Option<Vec<File>> = bootenv.initrds.iter().map(pin).collect();
    let (Some(kernel), Some(initrds)) = (kernel, initrds) else {
        // `boot_plan` gives no such bootenv; if it did, saying so is better than silence.
        let reason = format!("bootenv {} lacks an artifact", bootenv.name);
        return Ok(hold(&reason));
    };
    let token = machine
        .zip(keyring)
        .filter(|_| own)
        .and_then(|(machine, keyring)| machine_token::issue(state, keyring, machine.uuid, now));
    let argument = |node: &NodeView| {
        let context = RenderContext {
            machine: plan.machine,
            node: node.clone(),
            nodes: nodes.to_vec(),
            token: token.clone(),
        };
        Job::text(state, &context, &bootenv.kernel_args)
    };
    Ok(Work::Kernel {
        bootenv: bootenv.name.clone(),
        kernel,
        initrds,
        args: nodes.iter().map(argument).collect(),
        case: plan.machine.zip(nodes.first()).and_then(|(machine, node)| {
            let case = Overlay::none(state).case(machine, node, nodes, keyring);
            case.map(Case::files)
        }),
    })
}

/// The hardware address behind a leased address.
pub(super) fn leased_to(state: &State, address: IpAddr) -> Option<Mac> {
    let IpAddr::V4(address) = address.to_canonical() else {
        return None;
    };
    let lease = &state.lease(address)?.object;
    lease.mac.filter(|_| lease.state == LeaseState::Bound)
}

fn text_content(text: String) -> Content {
    let etag = hex::encode(sha2::Sha256::digest(&text));
    let text = Bytes::from(text);
    Content {
        length: text.len() as u64,
        etag,
        media: "text/plain; charset=utf-8",
        source: Source::Text(text),
        fact: None,
        stamp: None,
    }
}

//! Three `muster` processes on loopback, and clients of theirs: members that propose at the leader,
//! and programs that use REST.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use muster_chaos::lab::wait_until;
use muster_chaos::node::{self, Status};
use muster_storage::command::PutMode;
use muster_storage::model::{Object, Profile};
use muster_storage::{
    Actor, Command as Write, Entry, Outcome, Proposal, RequestId, Timestamp, schema,
};
use serde::Deserialize;
use tonic::codegen::InterceptedService;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::load::Caller;
use crate::process::{Process, free_ports};
use crate::tls::{Credentials, Target};
use crate::{CHANNELS, VALUE_BYTES};

mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("muster.peer.v1");
}
use proto::peer_client::PeerClient;

const PATIENCE: Duration = Duration::from_secs(60);
/// TLS handshakes of clients at a time.
const HANDSHAKES: usize = 32;

/// Three nodes; the first founded.
pub struct Cluster {
    nodes: Vec<Node>,
    binary: PathBuf,
    token: String,
}

struct Node {
    dir: PathBuf,
    peer: u16,
    api: u16,
    process: Process,
}

/// `node.json`, as far as it matters here.
#[derive(Deserialize)]
struct Identity {
    cluster_id: Uuid,
    node_id: u64,
}

impl Cluster {
    /// Founds a cluster and waits until all three vote.
    pub fn start(dir: &Path) -> Result<Self> {
        let binary = node::binary()?;
        let mut cluster = Self {
            nodes: Vec::new(),
            binary,
            token: String::new(),
        };
        cluster.add(dir, &["--found".to_owned()])?;
        wait_until("the founder to serve", PATIENCE, || {
            cluster.nodes[0].process.check()?;
            cluster.status(0).map(Some)
        })?;
        let join_token = dir.join("join-token");
        let token = cluster.cli(0, &["cluster", "join-token"])?;
        fs::write(&join_token, token).context("writing the join token")?;
        for _ in 1..3 {
            let flags = [
                "--join".to_owned(),
                format!("127.0.0.1:{}", cluster.nodes[0].peer),
                "--join-token-file".to_owned(),
                join_token.display().to_string(),
            ];
            cluster.add(dir, &flags)?;
        }
        cluster.wait_whole()?;
        let token = cluster.cli(0, &["users", "token", "admin", "--ttl", "24h"])?;
        cluster.token = token.trim().to_owned();
        Ok(cluster)
    }

    fn add(&mut self, dir: &Path, flags: &[String]) -> Result<()> {
        let name = format!("n{}", self.nodes.len() + 1);
        let data = dir.join(&name);
        fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
        let [peer, api, boot, tftp] = free_ports()?;
        let mut command = self.command(&data);
        command
            .args(["serve", "--node-name", &name])
            .args(["--advertise", "127.0.0.1", "--dhcp-interfaces", "none"])
            .args(flags);
        for (flag, port) in [
            ("--peer-port", peer),
            ("--api-port", api),
            ("--boot-port", boot),
            ("--tftp-port", tftp),
        ] {
            command.args([flag, &port.to_string()]);
        }
        let process = Process::start(&name, command, &dir.join(format!("{name}.log")))?;
        self.nodes.push(Node {
            dir: data,
            peer,
            api,
            process,
        });
        Ok(())
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        node::clean(&mut command).arg("--data-dir").arg(data);
        command
    }

    fn cli(&self, node: usize, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(&self.nodes[node].dir)
            .args(["-o", "json"])
            .args(arguments)
            .output()
            .context("starting muster")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        ensure!(
            output.status.success(),
            "muster {}: {}",
            arguments.join(" "),
            text(output.stderr)
        );
        Ok(text(output.stdout))
    }

    fn status(&self, node: usize) -> Result<Status> {
        let text = self.cli(node, &["--timeout", "2s", "cluster", "status"])?;
        serde_json::from_str(&text).context("reading a status")
    }

    /// Waits until all three are up and have caught up.
    pub fn wait_whole(&mut self) -> Result<()> {
        wait_until("three voters", PATIENCE, || {
            for node in &mut self.nodes {
                node.process.check()?;
            }
            let status = self.status(0)?;
            let up = |member: &&node::Member| {
                member.live
                    && member.role != "learner"
                    && member.revision.is_some_and(|at| at == status.revision)
            };
            let whole = status.nodes.iter().filter(up).count() == 3;
            Ok(whole.then_some(()))
        })
    }

    /// Who leads.
    pub fn leader(&self) -> Result<usize> {
        wait_until("a leader", PATIENCE, || {
            let statuses = (0..self.nodes.len()).find_map(|node| self.status(node).ok());
            let status = statuses.context("no node answers")?;
            let name = status.leader_name().context("nobody leads")?;
            let mut places = 0..self.nodes.len();
            Ok(places.find(|place| name == format!("n{}", place + 1)))
        })
    }

    /// The process of a node.
    pub fn process(&mut self, node: usize) -> &mut Process {
        &mut self.nodes[node].process
    }

    /// Clients that are members, as a follower is when it hands its services' writes to the leader;
    /// one write in each message.
    pub async fn proposers(&self, count: usize) -> Result<Vec<Proposer>> {
        let leader = self.leader()?;
        let from = (leader + 1) % self.nodes.len();
        let read = |node: usize, file: &str| {
            let path = self.nodes[node].dir.join(file);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let identity = |node| -> Result<Identity> {
            serde_json::from_str(&read(node, "node.json")?).context("reading an identity")
        };
        let (me, to) = (identity(from)?, identity(leader)?);
        let credentials = Credentials {
            ca: read(from, "ca.pem")?,
            own: Some((read(from, "node.crt")?, read(from, "node.key")?)),
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.nodes[leader].peer));
        let name = format!("n{}.{}.muster.internal", to.node_id, to.cluster_id);
        let target = Target::new(address, &name, &credentials, b"h2")?;
        let route = Route {
            cluster: me.cluster_id.to_string().parse()?,
            from: me.node_id.to_string().parse()?,
            to: to.node_id.to_string().parse()?,
        };
        let mut channels = Vec::new();
        for _ in 0..CHANNELS.min(count) {
            channels.push(PeerClient::with_interceptor(
                target.channel().await?,
                route.clone(),
            ));
        }
        Ok((0..count)
            .zip(channels.into_iter().cycle())
            .map(|(number, peer)| Proposer {
                name: format!("c{number}"),
                peer,
            })
            .collect())
    }

    /// Clients of the leader's REST interface, each with a connection of its own that it keeps.
    pub async fn requesters(&self, count: usize, write: bool) -> Result<Vec<Requester>> {
        let leader = self.leader()?;
        let mut all = Vec::new();
        let mut connecting = tokio::task::JoinSet::new();
        let mut numbers = 0..count;
        loop {
            while connecting.len() < HANDSHAKES {
                let Some(number) = numbers.next() else { break };
                let mut target = self.rest(leader, b"http/1.1")?;
                // One address gets half of all connections at most.
                let last = 2 + u8::try_from(number % 8).unwrap_or_default();
                target.from = Ipv4Addr::new(127, 0, 0, last);
                let mut requester = Requester {
                    target,
                    sender: None,
                    work: self.profile(number, write),
                };
                connecting.spawn(async move {
                    requester.connect().await?;
                    Ok::<_, anyhow::Error>(requester)
                });
            }
            match connecting.join_next().await {
                Some(connected) => all.push(connected.context("a client broke")??),
                None => break,
            }
        }
        // What is read has to be there.
        if !write {
            self.session(leader).await?.write(0).await?;
        }
        Ok(all)
    }

    /// A connection to one node that many writes share.
    pub async fn session(&self, node: usize) -> Result<Session> {
        let target = self.rest(node, b"h2")?;
        let io = TokioIo::new(target.connect().await.context("connecting to REST")?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Session {
            sender,
            authority: target.address,
            token: self.token.clone(),
        })
    }

    fn rest(&self, node: usize, alpn: &[u8]) -> Result<Target> {
        let ca = fs::read_to_string(self.nodes[node].dir.join("ca.pem")).context("reading a CA")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.nodes[node].api));
        Target::new(address, "localhost", &Credentials { ca, own: None }, alpn)
    }

    fn profile(&self, number: usize, write: bool) -> Work {
        // All read the same object.
        let name = format!("c{}", if write { number } else { 0 });
        Work {
            path: format!("/api/v1/profiles/{name}"),
            token: format!("Bearer {}", self.token),
            body: write.then(|| body(&name)),
        }
    }
}

fn body(name: &str) -> Bytes {
    let value = "v".repeat(VALUE_BYTES);
    serde_json::json!({ "name": name, "params": { "value": value } })
        .to_string()
        .into()
}

/// Says of each call which member makes it.
#[derive(Clone)]
struct Route {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl Interceptor for Route {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        let metadata = request.metadata_mut();
        metadata.insert("muster-cluster", self.cluster.clone());
        metadata.insert("muster-from", self.from.clone());
        metadata.insert("muster-to", self.to.clone());
        Ok(request)
    }
}

/// A client that proposes over the peers' gRPC.
pub struct Proposer {
    name: String,
    peer: PeerClient<InterceptedService<Channel, Route>>,
}

impl Caller for Proposer {
    async fn call(&mut self) -> Result<()> {
        let value = "v".repeat(VALUE_BYTES).into();
        let profile = Profile {
            name: self.name.clone(),
            params: [("value".to_owned(), value)].into(),
            loaders: Default::default(),
            local_boot: None,
            sealed: Default::default(),
        };
        let proposal = Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor("bench".into()),
            if_match: None,
            remember: None,
            command: Write::Put {
                object: Object::Profile(profile),
                mode: PutMode::Apply,
            },
        };
        let entry = Entry {
            at: Timestamp(0),
            proposals: vec![proposal],
        };
        let proposals = schema::encode_entry(&entry)?.into();
        let reply = self
            .peer
            .propose(proto::ProposeRequest { proposals })
            .await?;
        let first = reply.into_inner().results.into_iter().next();
        match first.and_then(|proposed| proposed.result) {
            Some(proto::proposed::Result::Outcome(bytes)) => {
                let outcome: Outcome = rmp_serde::from_slice(&bytes).context("an outcome")?;
                match outcome.result {
                    Ok(_) => Ok(()),
                    Err(rejection) => bail!("{rejection:?}"),
                }
            }
            other => bail!("{other:?}"),
        }
    }
}

struct Work {
    path: String,
    token: String,
    body: Option<Bytes>,
}

impl Work {
    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let method = match self.body {
            Some(_) => Method::PUT,
            None => Method::GET,
        };
        Request::builder()
            .method(method)
            .uri(&self.path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, &self.token)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(self.body.clone().unwrap_or_default()))
            .context("a request")
    }
}

/// A client of REST.
pub struct Requester {
    target: Target,
    /// Nothing after a connection that broke.
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    work: Work,
}

impl Requester {
    async fn connect(&mut self) -> Result<&mut http1::SendRequest<Full<Bytes>>> {
        let io = TokioIo::new(self.target.connect().await.context("connecting to REST")?);
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(self.sender.insert(sender))
    }
}

impl Caller for Requester {
    async fn call(&mut self) -> Result<()> {
        let request = self.work.request()?;
        let sender = match &mut self.sender {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        sender.ready().await.context("the connection")?;
        let answer = sender.send_request(request).await?;
        check(answer).await
    }
}

async fn check(answer: hyper::Response<hyper::body::Incoming>) -> Result<()> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(
        status.is_success(),
        "{status}: {}",
        String::from_utf8_lossy(&body)
    );
    Ok(())
}

/// One HTTP/2 connection to REST.
#[derive(Clone)]
pub struct Session {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: SocketAddr,
    token: String,
}

impl Session {
    /// Writes the object with this number.
    pub async fn write(&mut self, number: usize) -> Result<()> {
        let name = format!("c{number}");
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("https://{}/api/v1/profiles/{name}", self.authority))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body(&name)))
            .context("a request")?;
        let answer = self.sender.send_request(request).await?;
        check(answer).await
    }
}

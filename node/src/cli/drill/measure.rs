//! What the synthetic client and those who watch for a leader see meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::{Connection, Error};
use super::client::{Client, Dhcp, Turns, Web};
use super::millis;
use super::report::Attempt;
use super::site::Site;
use crate::dhcp::search::SYNTHETIC;

/// Between two attempts at a service.
const PACE: Duration = Duration::from_millis(100);

/// Between two looks who leads.
const LOOK: Duration = Duration::from_millis(20);

/// Who asks for the API: whoever gives the orders trusts the same authority.
pub fn https(connection: &Connection) -> Result<reqwest::Client, Error> {
    let here = connection.data_dir.join("ca.pem");
    let file = connection.ca_file.as_ref().unwrap_or(&here);
    let failed = |error: &dyn std::fmt::Display| {
        Error::Usage(format!("{}: {error}; give --ca-file", file.display()))
    };
    let pem = std::fs::read(file).map_err(|error| failed(&error))?;
    let trusted = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?;
    let builder = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(trusted);
    builder.build().map_err(|error| failed(&error))
}

/// Clients that ask again and again.
pub struct Measuring {
    stop: CancellationToken,
    tasks: BTreeMap<String, JoinHandle<Vec<Attempt>>>,
}

/// Begins to measure all services; and what cannot be measured, with the reason.
pub async fn begin(
    site: &Site,
    https: &reqwest::Client,
    begun: Instant,
) -> (Measuring, BTreeMap<String, String>) {
    let stop = CancellationToken::new();
    let (mut tasks, mut not_measured) = (BTreeMap::new(), BTreeMap::new());
    let web = |scheme, path: String, servers| {
        let turns = Turns::new(servers);
        let http = https.clone();
        Client::Http(Web {
            http,
            scheme,
            path,
            turns,
        })
    };
    let script = format!("/boot.ipxe?mac={SYNTHETIC}");
    let mut clients = vec![
        (
            "api",
            web("https", "/readyz".to_owned(), site.at(|it| Some(it.api))),
        ),
        ("http", web("http", script, site.at(|it| Some(it.boot)))),
        (
            "tftp",
            Client::Tftp(Turns::new(site.at(|it| Some(it.tftp)))),
        ),
    ];
    let dhcp = async {
        let link = site.link.clone()?;
        let servers = site
            .at(|it| it.dhcp)
            .into_iter()
            .filter(SocketAddr::is_ipv4);
        let dhcp = Dhcp::new(servers.collect(), link).await;
        dhcp.map_err(|error| error.to_string())
    };
    match dhcp.await {
        Ok(dhcp) => clients.push(("dhcp", Client::Dhcp(dhcp))),
        Err(why) => {
            not_measured.insert("dhcp".to_owned(), why);
        }
    }
    for (name, client) in clients {
        let task = tokio::spawn(ask_again(client, stop.clone(), begun));
        tasks.insert(name.to_owned(), task);
    }
    (Measuring { stop, tasks }, not_measured)
}

async fn ask_again(mut client: Client, stop: CancellationToken, begun: Instant) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while !stop.is_cancelled() {
        let from = millis(begun.elapsed());
        let done = client.attempt().await;
        attempts.push(Attempt {
            from,
            until: millis(begun.elapsed()),
            done,
        });
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(PACE) => {}
        }
    }
    if let Client::Dhcp(dhcp) = &mut client {
        // It ends by itself if this is lost.
        let _ = dhcp.give_back().await;
    }
    attempts
}

impl Measuring {
    /// Ends all clients; what their attempts came to.
    pub async fn end(&mut self) -> BTreeMap<String, Vec<Attempt>> {
        self.stop.cancel();
        let mut all = BTreeMap::new();
        for (name, task) in std::mem::take(&mut self.tasks) {
            all.insert(name, task.await.unwrap_or_default());
        }
        all
    }
}

/// Who leads, by the word of nodes that have a quorum.
pub struct Leaders {
    /// Who asks.
    pub http: reqwest::Client,
    /// The API of each node.
    pub nodes: Vec<SocketAddr>,
    /// Who is to be followed by another.
    pub old: String,
}

impl Leaders {
    /// Waits until a node names another leader; when, in milliseconds since the drill began.
    pub async fn next(&self, begun: Instant) -> u64 {
        loop {
            if self.last().await.is_some_and(|leader| leader != self.old) {
                return millis(begun.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The leader by the word of whichever node answers that it has a quorum.
    pub async fn last(&self) -> Option<String> {
        let asked = self.nodes.iter().map(|node| async move {
            let url = format!("https://{node}/readyz");
            let answer = self
                .http
                .get(url)
                .timeout(Duration::from_millis(300))
                .send();
            let answer = answer.await.ok().filter(|it| it.status().is_success())?;
            let leader = answer.headers().get("muster-leader")?;
            leader.to_str().ok().map(str::to_owned)
        });
        let told = futures::future::join_all(asked).await;
        let mut told = told.into_iter().flatten();
        let first = told.next()?;
        // A node that has not heard of the new one yet names the old one.
        let newer = told.find(|leader| *leader != self.old);
        Some(if first == self.old {
            newer.unwrap_or(first)
        } else {
            first
        })
    }
}

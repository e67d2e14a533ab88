//! A node that many machines fetch from at once gives each its share, and one that comes late is served
//! among them.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::fleet::http;
use muster_chaos::fleet::tftp::{self, Manner};
use muster_chaos::lab::wait_until;

use crate::{MAC, PATIENCE, curl, tell};

/// An initrd, for one that is fetched by HTTP.
const LARGE: usize = 4 << 20;
/// A loader, for one that waits for each block of it. A block that is lost takes a second.
const SMALL: usize = 1 << 20;

const BY_HTTP: usize = 64;
/// From one address no more than 32 run, and one that was read may still run.
const BY_TFTP: usize = 16;

/// Files that each is to have come to before the crowd goes home.
const ENOUGH: usize = 10;
/// How much more the luckiest of those who ask alike may have come to than the unluckiest.
const LUCK: usize = 8;

/// As patient: nothing is given up for a slow host.
const HTTP: http::Patience = http::Patience {
    connect: Duration::from_secs(30),
    silence: Duration::from_secs(30),
};

#[test]
fn nobody_starves_while_many_fetch_at_once() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        for (name, size) in [("large", LARGE), ("small", SMALL)] {
            let file = cluster.lab().dir().join(name);
            std::fs::write(&file, vec![0x5a; size])?;
            let (file, path) = (file.display().to_string(), format!("share/{name}"));
            let upload = ["artifacts", "upload", &file, "--path", &path];
            cluster.node(0).cli(&upload)?.ok()?;
        }
        cluster.wait_settled(PATIENCE)?;
        let node = cluster.node(1);
        let (server, boot) = (node.address(), node.boot_url());
        let large = format!("{boot}/artifacts/share/large");
        let at: Ipv4Addr = [10, 77, 0, 20].into();
        let crowd = cluster.lab().host("crowd", Some(at))?;
        let newcomer = cluster
            .lab()
            .host("newcomer", Some([10, 77, 0, 21].into()))?;

        let by_http = Crowd::new(BY_HTTP);
        let by_tftp = Crowd::new(BY_TFTP);
        let fetch_large = || Ok(http::get(at, &large, HTTP)?.len() == LARGE);
        let fetch_small = || {
            Ok(tftp::read(at, server, "artifacts/share/small", &Manner::PATIENT)?.len() == SMALL)
        };
        std::thread::scope(|scope| {
            let running = [
                scope.spawn(|| crowd.inside(|| by_http.run(fetch_large))),
                scope.spawn(|| crowd.inside(|| by_tftp.run(fetch_small))),
            ];
            let served = (|| {
                wait_until("all to be served", PATIENCE, || {
                    Ok((by_http.least() > 0 && by_tftp.least() > 0).then_some(()))
                })?;
                let loader = format!("tftp://{server}/undionly.kpxe");
                curl(&newcomer, &["--output", "/dev/null", &loader]).context("the loader")?;
                let script = format!("{boot}/boot.ipxe?mac={MAC}");
                curl(&newcomer, &[&script]).context("the script")?;
                wait_until("all to have come to enough", PATIENCE, || {
                    let least = by_http.least().min(by_tftp.least());
                    Ok((least >= ENOUGH).then_some(()))
                })
            })();
            by_http.go_home();
            by_tftp.go_home();
            for thread in running {
                thread.join().map_err(|_| anyhow!("a crowd panicked"))??;
            }
            served
        })?;
        by_http.is_shared_fairly("HTTP")?;
        by_tftp.is_shared_fairly("TFTP")
    })
}

/// Clients that fetch the same again and again.
struct Crowd {
    fetched: Vec<AtomicUsize>,
    is_over: AtomicBool,
}

impl Crowd {
    fn new(clients: usize) -> Self {
        Self {
            fetched: (0..clients).map(|_| AtomicUsize::new(0)).collect(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Returns when it is to go home; `fetch` tells whether what came is whole.
    fn run(&self, fetch: impl Fn() -> Result<bool> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let clients: Vec<_> = self
                .fetched
                .iter()
                .map(|fetched| {
                    scope.spawn(|| -> Result<()> {
                        while !self.is_over.load(Ordering::Relaxed) {
                            ensure!(fetch()?, "a file came in part");
                            fetched.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        })
    }

    fn go_home(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn counts(&self) -> impl Iterator<Item = usize> {
        self.fetched
            .iter()
            .map(|fetched| fetched.load(Ordering::Relaxed))
    }

    fn least(&self) -> usize {
        self.counts().min().unwrap_or_default()
    }

    fn is_shared_fairly(&self, by: &str) -> Result<()> {
        let (least, most) = (self.least(), self.counts().max().unwrap_or_default());
        println!("by {by}: {least} to {most} files");
        ensure!(
            most <= LUCK * least,
            "by {by} one has {least} files, another {most}"
        );
        Ok(())
    }
}

//! Machines that boot all the time, each as its firmware would, over and over.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::history::{Boot, History, Record};
use crate::cluster::Cluster;
use crate::dhcp::{Client, Port};
use crate::fleet::line::Line;
use crate::fleet::machine::{Content, Machine, Model};
use crate::fleet::progress::{Journal, Progress};
use crate::fleet::{hall, install};
use crate::lab::Host;
use crate::wire::{Wire, mac_text};

/// How many there are, of each firmware as many.
const MACHINES: u8 = 8;
/// When a machine is given up whatever its firmware would do: longer than all its timers in a row.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a machine that is up stays up, or one that gave up is off.
const PAUSE: Duration = Duration::from_secs(2);

/// The machines.
pub struct Boots<'a> {
    history: &'a History,
    hall: Host,
    clients: Vec<Client>,
    content: Content,
}

impl<'a> Boots<'a> {
    /// Creates them, and what they boot, with whatever other objects.
    pub fn install(cluster: &Cluster, history: &'a History, objects: &str) -> Result<Self> {
        let clients: Vec<Client> = (0..MACHINES)
            .map(|number| Client::numbered(7, number.into()))
            .collect();
        let mut objects = vec![objects.to_owned()];
        // Their addresses outlive their leases: they do not renew, and the host keeps them.
        for (number, client) in (0..MACHINES).zip(&clients) {
            let address = Ipv4Addr::new(10, 77, 4, number);
            let mac = mac_text(client.mac);
            objects.push(format!(
                "kind: reservation\naddress: {address}\nmac: \"{mac}\"\n"
            ));
        }
        Ok(Self {
            history,
            content: install(cluster, &clients, &objects.join("---\n"))?,
            hall: hall(cluster.lab())?,
            clients,
        })
    }

    /// Until it is over; machines that are booting then come to their end.
    pub fn run(&self, over: &AtomicBool) -> Result<()> {
        let port = Port::Direct(Wire::open(&self.hall)?.only_datagrams()?);
        let line = Line::new(&port);
        let progress = Arc::<Progress>::default();
        // Threads that are started on the host are on it too.
        self.hall.inside(|| {
            thread::scope(|scope| {
                let listening = scope.spawn(|| line.listen());
                let machines: Vec<_> = self
                    .clients
                    .iter()
                    .zip(Model::ALL.into_iter().cycle())
                    .map(|(client, model)| {
                        let (line, progress) = (&line, &progress);
                        scope.spawn(move || {
                            while !over.load(Ordering::Relaxed) {
                                self.boot(client, model, line, progress);
                                thread::sleep(PAUSE);
                            }
                        })
                    })
                    .collect();
                let mut broken = false;
                for machine in machines {
                    broken |= machine.join().is_err();
                }
                line.close();
                let listened = listening.join();
                listened.map_err(|_| anyhow!("the listener broke"))??;
                match broken {
                    true => Err(anyhow!("a machine broke")),
                    false => Ok(()),
                }
            })
        })
    }

    fn boot(&self, client: &Client, model: Model, line: &Line<'_>, progress: &Arc<Progress>) {
        let machine = Machine {
            model,
            client: client.clone(),
            host: &self.hall,
            line,
            content: &self.content,
            end: Instant::now() + PATIENCE,
        };
        let mut journal = Journal::new(progress);
        let start = self.history.now();
        let ended = machine.run(&mut journal);
        let mut setbacks = journal.setbacks;
        let up = ended.is_ok();
        setbacks.extend(ended.err().map(|error| format!("{error:#}")));
        self.history.add(Record::Boot(Boot {
            start,
            end: self.history.now(),
            mac: mac_text(client.mac),
            model: model.name().to_owned(),
            up,
            fall_backs: journal.fall_backs,
            next_entries: journal.next_entries,
            setbacks,
        }));
    }
}

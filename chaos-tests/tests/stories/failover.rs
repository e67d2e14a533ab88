//! New clients all the time, each as patient as a PXE ROM, while nodes die and links fail: none
//! gives up, and none is late by more than an election.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::Patience;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::failover::Stream;
use muster_chaos::outage::{self, Outage};

use crate::{long, tell};

/// How long each outage lasts, and the time after it.
const EACH: Duration = Duration::from_secs(5);

/// More addresses than clients set out.
const SUBNET: &str = "kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.16.0-10.77.31.255]
";

#[test]
fn no_client_gives_up() -> Result<()> {
    let mut outages = vec![Outage::KillLeader, Outage::Split, Outage::CutFollower];
    if long() {
        outages.extend([
            Outage::KillAnswering,
            Outage::KillFollower,
            Outage::CutLeader,
        ]);
    }
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SUBNET)?;
        let port = Port::direct(&cluster.lab().host("clients", None)?)?;
        let stream = Stream {
            per_second: 20.0,
            patience: Patience::rom(),
            bound: Duration::from_millis(1500),
        };
        let clients = (0..).map(|number| Client::numbered(1, number).pxe());
        let report = outage::rehearse(
            &cluster,
            &port,
            &stream,
            clients,
            &outages,
            EACH,
            &mut |_| {},
        )?;
        println!("{report}");
        ensure!(report.good(), "{report}");
        Ok(())
    })
}

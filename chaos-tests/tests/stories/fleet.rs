//! Machines of every firmware boot at once while the leader is killed: all come up, and none asks more
//! often than its firmware would.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::fleet::{self, Plan};
use muster_chaos::invariant;

use crate::tell;

#[test]
fn all_machines_come_up_while_the_leader_dies() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        // First among those that boot from BIOS, all for the first time; then, when the same machines
        // boot again, among those of UEFI, which wait for four seconds before they take an offer.
        for kill_at in [0.2, 0.6] {
            let plan = Plan {
                machines: 200,
                spread: Duration::ZERO,
                kill_at: Some(kill_at),
                patience: Duration::from_secs(300),
            };
            let report = fleet::boot(&cluster, &plan)?;
            println!("{report}");
            ensure!(report.good(), "{report}");
        }
        invariant::same_everywhere(&cluster)
    })
}

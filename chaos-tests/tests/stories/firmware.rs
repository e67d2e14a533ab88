//! Real firmware comes up when the node that it has to do with dies, and nobody touches it.

use anyhow::{Result, ensure};
use muster_chaos::matrix::mode::Mode;
use muster_chaos::matrix::{self, Blow, Case, Moment};

use crate::{BOOT, machines};

/// Each firmware, and each kind of death: refused and silent, in DHCP, in TFTP and in HTTP. All moments
/// are for `make test-firmware`.
const CASES: [(Mode, Moment, Blow); 4] = [
    (Mode::BiosIpxe, Moment::Kernel, Blow::Cut),
    (Mode::BiosUndionly, Moment::Loader, Blow::Kill),
    (Mode::UefiPxe, Moment::Loader, Blow::Cut),
    (Mode::UefiHttp, Moment::Offer, Blow::Kill),
];

#[test]
fn firmware_comes_up_when_its_node_dies() -> Result<()> {
    let _turn = machines();
    let cases = CASES.map(|(mode, moment, blow)| Case { mode, moment, blow });
    // Two at a time, each beside three nodes.
    let ended = matrix::run(&cases, 2, 2 * BOOT, &|ended| println!("{ended}"))?;
    ensure!(ended.len() == CASES.len(), "{} boots ended", ended.len());
    for one in &ended {
        ensure!(one.up.is_some(), "{one}");
    }
    Ok(())
}

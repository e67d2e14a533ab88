//! The lab itself: faults must bite and heal, or every story told with them means nothing.

use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::fault;
use muster_chaos::lab::{Host, Lab, run};

const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
const C: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 13);

/// Whether a datagram sent from one host reaches a port of another.
fn reaches(from: &Host, to: &Host, port: u16) -> Result<bool> {
    let address = SocketAddr::from((to.address().context("an address")?, port));
    let bind =
        |host: &Host, port| host.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?));
    let (sender, receiver) = (bind(from, 0)?, bind(to, port)?);
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    sender.send_to(b"hello", address)?;
    match receiver.recv_from(&mut [0; 8]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(error).context("receiving"),
    }
}

#[test]
fn faults_bite_and_heal() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b, c) = (
        lab.host("a", Some(A))?,
        lab.host("b", Some(B))?,
        lab.host("c", Some(C))?,
    );
    ensure!(reaches(&a, &b, 67)?, "a healthy network carries nothing");

    let split = fault::cut_between(&a, &b)?;
    ensure!(
        !reaches(&a, &b, 5000)? && !reaches(&b, &a, 5000)?,
        "a cut between two lets them talk"
    );
    ensure!(
        reaches(&a, &c, 5000)? && reaches(&c, &b, 5000)?,
        "a cut between two reaches others"
    );
    split.heal();

    let hush = fault::silence_dhcp(&b)?;
    ensure!(
        !reaches(&a, &b, 67)? && !reaches(&a, &b, 4011)?,
        "a silenced server hears clients"
    );
    ensure!(
        reaches(&a, &b, 69)? && reaches(&a, &c, 67)?,
        "the silence reaches other services or servers"
    );
    let alone = fault::cut(&c)?;
    ensure!(
        !reaches(&a, &c, 5000)? && !reaches(&c, &a, 5000)?,
        "a host that was cut off talks"
    );
    alone.heal();
    ensure!(reaches(&a, &c, 5000)?, "a healed cut still bites");
    ensure!(!reaches(&a, &b, 67)?, "healing one fault healed another");
    hush.heal();
    ensure!(reaches(&a, &b, 67)?, "a healed silence still bites");

    lab.plug("b", false)?;
    ensure!(!reaches(&a, &b, 5000)?, "an unplugged host hears");
    lab.plug("b", true)?;
    ensure!(
        reaches(&a, &b, 5000)?,
        "a host that is plugged in again is deaf"
    );
    Ok(())
}

#[test]
fn nothing_stays_behind() -> Result<()> {
    let namespaces = || run(Command::new("ip").args(["netns", "list"]));
    let lab = Lab::new()?;
    let dir = lab.dir().to_owned();
    let prefix = format!(
        "{}-",
        dir.file_name()
            .and_then(|name| name.to_str())
            .context("a name")?
    );
    let host = lab.host("a", Some(A))?;
    let mut left_running = host
        .command("sh")
        .args(["-c", "echo in; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()?;
    // Until then it may not have entered the namespace yet.
    let mut said = [0; 3];
    left_running
        .stdout
        .as_mut()
        .context("its output")?
        .read_exact(&mut said)?;
    ensure!(namespaces()?.contains(&prefix), "the lab has no namespaces");

    drop((host, lab));
    ensure!(!namespaces()?.contains(&prefix), "namespaces stay behind");
    ensure!(!dir.exists(), "the scratch directory stays behind");
    ensure!(
        !left_running.wait()?.success(),
        "what ran in the lab was left running"
    );
    Ok(())
}

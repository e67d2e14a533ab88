//! Telling the service manager how it goes: the `sd_notify` protocol.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use muster_raft::Cluster;

/// Sends a state, as in `READY=1`; does nothing when nobody wants to know.
pub fn notify(state: &str) {
    if let Err(error) = send(state) {
        tracing::debug!(%error, state, "the service manager could not be told");
    }
}

/// Tells the service manager's watchdog for ever that this node need not be restarted, as often as it
/// wants to hear it. A runtime that hangs does not come here; a Raft that hangs is not told of.
pub async fn keep_watchdog_quiet(cluster: Cluster) {
    let Some(pause) = watchdog_pause() else {
        return;
    };
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if cluster.answers(pause).await {
            notify("WATCHDOG=1");
        } else {
            tracing::error!("Raft does not answer; the watchdog will have this node restarted");
        }
    }
}

/// A third of the time after which the watchdog restarts this process; absent without one.
fn watchdog_pause() -> Option<Duration> {
    let of = |name: &str| std::env::var(name).ok();
    pause_of(of("WATCHDOG_USEC"), of("WATCHDOG_PID"), std::process::id())
}

fn pause_of(micros: Option<String>, whose: Option<String>, process: u32) -> Option<Duration> {
    let micros: u64 = micros?.parse().ok().filter(|micros| *micros > 0)?;
    let ours = whose.is_none_or(|whose| whose.parse() == Ok(process));
    ours.then(|| Duration::from_micros(micros) / 3)
}

fn send(state: &str) -> io::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    match address.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)?;
        }
        None => {
            socket.send_to(state.as_bytes(), &address)?;
        }
    }
    Ok(())
}

/// Whether a service manager runs this process, and so may start it again.
pub fn supervised() -> bool {
    ["NOTIFY_SOCKET", "INVOCATION_ID"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// How long the service manager waits for a sign of life, if it waits for one.
fn watchdog() -> Option<Duration> {
    watchdog_pause().map(|pause| pause * 3)
}

/// Has the service manager wait longer by so much.
pub fn stretch_watchdog(by: Duration) {
    if let Some(usual) = watchdog() {
        notify(&format!("WATCHDOG_USEC={}", (usual + by).as_micros()));
    }
}

/// Has the service manager wait as long as usual again.
pub fn restore_watchdog() {
    if let Some(usual) = watchdog() {
        notify(&format!("WATCHDOG_USEC={}", usual.as_micros()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::pause_of;

    #[test]
    fn the_watchdog_is_told_three_times_as_often_as_it_wants_and_only_if_it_is_ours() {
        let cases = [
            (None, None, None),
            (Some("30000000"), None, Some(10)),
            (Some("30000000"), Some("7"), Some(10)),
            (Some("30000000"), Some("8"), None),
            (Some("0"), Some("7"), None),
            (Some("soon"), Some("7"), None),
        ];
        for (micros, whose, secs) in cases {
            let pause = pause_of(micros.map(str::to_owned), whose.map(str::to_owned), 7);
            assert_eq!(pause, secs.map(Duration::from_secs), "{micros:?} {whose:?}");
        }
    }
}

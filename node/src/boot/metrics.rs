//! Metrics of the boot service, named and described here alone.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use muster_storage::model::Step;

const REQUESTS: &str = "muster_boot_requests_total";
const SECONDS: &str = "muster_boot_request_seconds";
const OCTETS: &str = "muster_boot_sent_bytes_total";
const CONNECTIONS: &str = "muster_boot_connections";
const TFTP_TRANSFERS: &str = "muster_tftp_transfers_total";
const TFTP_ACTIVE: &str = "muster_tftp_transfers_active";
const TFTP_OCTETS: &str = "muster_tftp_sent_bytes_total";
const STEPS: &str = "muster_boot_steps_total";
const FACTS_DROPPED: &str = "muster_boot_facts_dropped_total";

/// Tells the exporter what each is.
pub fn describe() {
    describe_counter!(REQUESTS, "HTTP boot requests by kind of path and status");
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "Time until an HTTP boot answer began"
    );
    describe_counter!(
        OCTETS,
        Unit::Bytes,
        "Octets sent as bodies of HTTP boot answers"
    );
    describe_gauge!(CONNECTIONS, "Open HTTP boot connections");
    describe_counter!(
        TFTP_TRANSFERS,
        "TFTP requests by result: read (all octets were taken), cut, not_found, denied (a write), busy (too many transfers), failed; what is no request is not answered and not counted"
    );
    describe_gauge!(TFTP_ACTIVE, "TFTP transfers that run");
    describe_counter!(
        STEPS,
        "Steps of booting machines that this node saw, by step: offered, bound, loader, script, kernel, initrd, file, reported"
    );
    describe_counter!(
        FACTS_DROPPED,
        "Facts of machines' timelines for which there was no room, or of which it is not known whether they were written"
    );
    describe_counter!(TFTP_OCTETS, Unit::Bytes, "Octets handed to TFTP transfers");
}

/// An HTTP answer began.
pub(crate) fn answered(kind: &'static str, status: u16, after: Duration) {
    counter!(REQUESTS, "path" => kind, "status" => status.to_string()).increment(1);
    histogram!(SECONDS, "path" => kind).record(after.as_secs_f64());
}

/// Part of a body was sent.
pub(crate) fn sent(octets: u64) {
    counter!(OCTETS).increment(octets);
}

/// Connections are open.
pub(crate) fn connections(open: usize) {
    gauge!(CONNECTIONS).set(count(open));
}

/// A TFTP transfer ended, or was refused before it began.
pub(crate) fn transferred(result: &'static str, octets: u64) {
    counter!(TFTP_TRANSFERS, "result" => result).increment(1);
    counter!(TFTP_OCTETS).increment(octets);
}

/// TFTP transfers run.
pub(crate) fn transfers(active: usize) {
    gauge!(TFTP_ACTIVE).set(count(active));
}

/// A machine came one step further.
pub(crate) fn step(step: &Step) {
    counter!(STEPS, "step" => step.label()).increment(1);
}

/// Facts are not written, or perhaps not.
pub(crate) fn facts_dropped(count: usize) {
    counter!(FACTS_DROPPED).increment(count as u64);
}

/// Exact for any count of open sockets.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

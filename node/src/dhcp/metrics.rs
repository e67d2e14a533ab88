//! Metrics of the DHCP service, named and described here alone.

use std::time::Duration;

use dhcproto::v4::MessageType;
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use muster_storage::Rejection;

const RECEIVED: &str = "muster_dhcp_received_total";
const SENT: &str = "muster_dhcp_sent_total";
const DROPPED: &str = "muster_dhcp_dropped_total";
const REJECTED: &str = "muster_dhcp_rejected_total";
const SECONDS: &str = "muster_dhcp_answer_seconds";

/// Tells the exporter what each is.
pub fn describe() {
    describe_counter!(RECEIVED, "Well-formed DHCP requests by type");
    describe_counter!(SENT, "DHCP replies by type");
    describe_counter!(
        DROPPED,
        "DHCP packets that this node did not answer, by reason"
    );
    describe_counter!(
        REJECTED,
        "Writes for DHCP clients that were refused, by code: another client was first, or the address is not for this one"
    );
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "Time from a DHCP request to its reply, by type of reply"
    );
}

/// A request came in.
pub(super) fn received(kind: MessageType) {
    counter!(RECEIVED, "type" => label(kind)).increment(1);
}

/// A reply went out, so long after its request came.
pub(super) fn sent(kind: MessageType, after: Duration) {
    counter!(SENT, "type" => label(kind)).increment(1);
    histogram!(SECONDS, "type" => label(kind)).record(after.as_secs_f64());
}

/// A packet got no answer.
pub(super) fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

/// A write for a client was refused.
pub(super) fn rejected(rejection: &Rejection) {
    counter!(REJECTED, "code" => rejection.code()).increment(1);
}

/// A message type in metrics and logs.
pub(super) fn label(kind: MessageType) -> &'static str {
    match kind {
        MessageType::Discover => "discover",
        MessageType::Offer => "offer",
        MessageType::Request => "request",
        MessageType::Decline => "decline",
        MessageType::Ack => "ack",
        MessageType::Nak => "nak",
        MessageType::Release => "release",
        MessageType::Inform => "inform",
        _ => "other",
    }
}

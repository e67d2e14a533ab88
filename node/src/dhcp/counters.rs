//! What is counted: packets in, packets out, packets dropped by reason, and how long answers take.

use std::time::Duration;

use dhcproto::v4::MessageType;
use muster_storage::Rejection;

/// A request came in.
pub fn received(kind: MessageType) {
    metrics::counter!("muster_dhcp_received_total", "type" => label(kind)).increment(1);
}

/// A reply went out, so long after its request came.
pub fn sent(kind: MessageType, after: Duration) {
    metrics::counter!("muster_dhcp_sent_total", "type" => label(kind)).increment(1);
    metrics::histogram!("muster_dhcp_answer_seconds", "type" => label(kind))
        .record(after.as_secs_f64());
}

/// A packet got no answer.
pub fn dropped(reason: &'static str) {
    metrics::counter!("muster_dhcp_dropped_total", "reason" => reason).increment(1);
}

/// A write for a client was refused: another was first, or the address is not for it.
pub fn rejected(rejection: &Rejection) {
    metrics::counter!("muster_dhcp_rejected_total", "code" => rejection.code()).increment(1);
}

/// A message type in metrics and logs.
pub fn label(kind: MessageType) -> &'static str {
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

//! Metrics of the DHCP service, named and described here alone.

use std::time::Duration;

use dhcproto::v4::MessageType;
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use muster_storage::Rejection;

use super::reply::Reply;

const RECEIVED: &str = "muster_dhcp_received_total";
const OUTCOMES: &str = "muster_dhcp_outcomes_total";
const DROPPED: &str = "muster_dhcp_dropped_total";
const REJECTED: &str = "muster_dhcp_rejected_total";
const SECONDS: &str = "muster_dhcp_answer_seconds";
const FOREIGN: &str = "muster_dhcp_foreign_servers_total";
const CONFLICTS: &str = "muster_dhcp_conflicts_total";

/// Tells the exporter what each is.
pub fn describe() {
    describe_counter!(RECEIVED, "Well-formed DHCP requests by type");
    describe_counter!(
        OUTCOMES,
        "What became of DHCP requests, by type, outcome (offer, ack, nak, done, silence) and the reason of a NAK or of silence"
    );
    describe_counter!(DROPPED, "DHCP packets that are no requests, by reason");
    describe_counter!(
        REJECTED,
        "Writes for DHCP clients that were refused, by code: another client was first, or the address is not for this one"
    );
    describe_counter!(
        FOREIGN,
        "Clients seen to take the offer of a DHCP server that should not be on their link, by subnet; the event `alert` has its address"
    );
    describe_counter!(
        CONFLICTS,
        "Addresses that were found in use by another when they were offered, by subnet and what became of it"
    );
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "Time from a DHCP request to its reply, by type of reply and whether it waited for a commit"
    );
}

/// Requests came in.
pub(super) fn received(kinds: impl Iterator<Item = MessageType>) {
    for (kind, count) in tally(kinds) {
        counter!(RECEIVED, "type" => label(kind)).increment(count);
    }
}

/// How many there are of each: to find a counter costs more than to count.
fn tally(kinds: impl Iterator<Item = MessageType>) -> Vec<(MessageType, u64)> {
    let mut counts: Vec<(MessageType, u64)> = Vec::new();
    for kind in kinds {
        match counts.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    counts
}

/// Whether a reply waited for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// It is made of what was known.
    None,
    /// It tells what was committed for it.
    Waited,
}

/// A reply went out, so long after its request came.
pub(super) fn answered(request: MessageType, reply: &Reply, commit: Commit, after: Duration) {
    let reason = reply.nak.map_or("", |nak| nak.label());
    outcome(request, label(reply.kind), reason);
    let commit = match commit {
        Commit::None => "no",
        Commit::Waited => "yes",
    };
    histogram!(SECONDS, "type" => label(reply.kind), "commit" => commit)
        .record(after.as_secs_f64());
}

/// A DECLINE or RELEASE was carried out: it takes no reply.
pub(super) fn done(request: MessageType) {
    outcome(request, "done", "");
}

/// Requests got no answer, for one reason.
pub(super) fn silent(requests: impl Iterator<Item = MessageType>, reason: &'static str) {
    for (request, count) in tally(requests) {
        outcomes(request, "silence", reason, count);
    }
}

fn outcome(request: MessageType, outcome: &'static str, reason: &'static str) {
    outcomes(request, outcome, reason, 1);
}

fn outcomes(request: MessageType, outcome: &'static str, reason: &'static str, count: u64) {
    counter!(OUTCOMES, "type" => label(request), "outcome" => outcome, "reason" => reason)
        .increment(count);
}

/// A packet is no request.
pub(super) fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

/// A write for a client was refused.
pub(super) fn rejected(rejection: &Rejection) {
    counter!(REJECTED, "code" => rejection.code()).increment(1);
}

/// A client took the offer of a server that should not be there.
pub(super) fn foreign(subnet: &str) {
    counter!(FOREIGN, "subnet" => subnet.to_owned()).increment(1);
}

/// What became of an address that was offered and is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Nobody gets it for a while.
    Quarantined,
    /// A client had taken it before that.
    Taken,
    /// Too many addresses are answered for.
    Disbelieved,
    /// The cluster could not write it down.
    NotWritten,
}

/// An address that was offered is in use.
pub(super) fn conflict(subnet: &str, outcome: Conflict) {
    let outcome = match outcome {
        Conflict::Quarantined => "quarantined",
        Conflict::Taken => "taken",
        Conflict::Disbelieved => "disbelieved",
        Conflict::NotWritten => "not_written",
    };
    counter!(CONFLICTS, "subnet" => subnet.to_owned(), "outcome" => outcome).increment(1);
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

//! What this crate measures, described once for the exporter and the reference.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes all metrics of this crate to the installed recorder.
pub fn describe_metrics() {
    describe_gauge!("muster_raft_is_leader", "1 on the node that leads");
    describe_gauge!("muster_raft_voters", "Members that vote");
    describe_gauge!(
        "muster_raft_members",
        "Members of the cluster, those that do not vote yet among them"
    );
    describe_gauge!("muster_raft_live_peers", "Peers heard from just now");
    describe_gauge!(
        "muster_raft_log_last_index",
        "Last entry in this node's log"
    );
    describe_gauge!(
        "muster_raft_committed_index",
        "Last entry known to be committed"
    );
    describe_gauge!(
        "muster_raft_applied_index",
        "Last entry applied to this node's state"
    );
    describe_gauge!(
        "muster_raft_artifacts_missing",
        "Artifacts that the state names and this node lacks"
    );
    describe_gauge!(
        "muster_raft_disk_wait_seconds",
        Unit::Seconds,
        "For how long the oldest write to the disk has been under way; it hangs when this grows"
    );
    describe_gauge!(
        "muster_raft_disk_free_bytes",
        Unit::Bytes,
        "Left on the disk of the data directory; with less than 48 MiB a node takes no part"
    );
    describe_gauge!(
        "muster_raft_disk_size_bytes",
        Unit::Bytes,
        "Size of the disk of the data directory"
    );
    describe_gauge!(
        "muster_raft_log_grown_bytes",
        Unit::Bytes,
        "Appended to the log since it was last cut"
    );
    describe_gauge!(
        "muster_raft_clock_offset_seconds",
        Unit::Seconds,
        "By how much this node's wall clock is ahead of the cluster's time"
    );
    describe_gauge!(
        "muster_raft_fault",
        "1 on a node that has stopped taking part until it is restarted, after a fault of its disk for example"
    );
    describe_gauge!(
        "muster_raft_diverged",
        "1 on a node that took itself out of service because its state differs from the others'"
    );
    describe_gauge!(
        "muster_raft_diverged_peers",
        "Peers whose state is seen to differ from this node's"
    );
    counter(
        "muster_raft_leader_changes_total",
        "Changes of the leader seen",
    );
    counter("muster_raft_dials_total", "Attempts to connect to a peer");
    counter(
        "muster_raft_handshakes_failed_total",
        "Peer connections that failed their TLS handshake",
    );
    counter(
        "muster_raft_log_entries_total",
        "Entries appended to the log",
    );
    describe_gauge!(
        "muster_raft_certificate_expiry_timestamp_seconds",
        Unit::Seconds,
        "When this node's certificate ends, since 1970; it is renewed long before"
    );
    counter("muster_raft_log_syncs_total", "Syncs of the log to disk");
    counter("muster_raft_proposals_applied_total", "Proposals applied");
    counter(
        "muster_raft_proposals_shed_total",
        "Proposals refused because too many were waiting",
    );
    counter(
        "muster_raft_read_index_failed_total",
        "Rounds of linearizable reads that no quorum confirmed",
    );
    counter(
        "muster_raft_successions_total",
        "Elections that this node stood for because the leader's process was seen to have ended",
    );
    counter(
        "muster_raft_snapshots_installed_total",
        "Snapshots installed",
    );
    counter(
        "muster_raft_artifacts_without_room_total",
        "Artifacts, uploaded or pulled, that were turned away because the disk is nearly full; a pull is tried again",
    );
    describe_counter!(
        "muster_raft_artifact_pulled_bytes_total",
        Unit::Bytes,
        "Bytes of artifacts pulled from peers"
    );
    describe_histogram!(
        "muster_raft_log_sync_seconds",
        Unit::Seconds,
        "Time of a log sync"
    );
    describe_histogram!(
        "muster_raft_apply_seconds",
        Unit::Seconds,
        "Time to apply an entry"
    );
    describe_histogram!(
        "muster_raft_commit_seconds",
        Unit::Seconds,
        "Time from proposing an entry to its outcome, on the leader"
    );
    describe_histogram!(
        "muster_raft_read_index_seconds",
        Unit::Seconds,
        "Time of a round of linearizable reads"
    );
    describe_histogram!(
        "muster_raft_snapshot_build_seconds",
        Unit::Seconds,
        "Time to make a snapshot"
    );
    describe_histogram!("muster_raft_entry_proposals", "Proposals in a log entry");
    describe_histogram!(
        "muster_raft_forward_proposals",
        "Proposals in a message to the leader"
    );
}

/// Describes a counter and begins it at 0: what first appears at 1 has not grown in the eyes of an
/// alert.
fn counter(name: &'static str, meaning: &'static str) {
    describe_counter!(name, meaning);
    metrics::counter!(name).increment(0);
}

//! What a node does for the artifacts on its disk without being asked: it removes what nothing names
//! any more, and reads the rest again to see whether it is still what it was.

mod garbage;
mod verify;

use metrics::{Unit, counter, describe_counter};
use muster_raft::Cluster;

const REMOVED: &str = "muster_artifacts_removed_total";
const VERIFIED: &str = "muster_artifacts_verified_bytes_total";
const DAMAGED: &str = "muster_artifacts_damaged_total";

/// Tells the exporter what each is.
pub fn describe() {
    describe_counter!(
        REMOVED,
        "Files of artifacts removed from this node's disk because nothing names them any more"
    );
    describe_counter!(
        VERIFIED,
        Unit::Bytes,
        "Bytes of artifacts read again from this node's disk and compared with their digests"
    );
    describe_counter!(
        DAMAGED,
        "Files of artifacts that were found damaged on this node's disk, put aside and pulled again"
    );
    // What first appears at 1 has not grown in the eyes of an alert.
    counter!(DAMAGED).increment(0);
}

/// Looks after this node's artifacts for ever.
pub async fn run(cluster: Cluster) {
    tokio::join!(garbage::run(cluster.clone()), verify::run(cluster));
}

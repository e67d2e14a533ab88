//! The link between nodes: gRPC over mutual TLS.

mod breakable;
mod dial;
mod link;
mod network;
mod serve;
mod service;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

#[cfg(test)]
pub use dial::Gate;
pub use dial::{Target, join_channel};
pub use link::{Link, Links, PeerClient};
pub use network::Network;
pub use serve::serve;
#[cfg(test)]
pub use serve::{Origin, members_server};
pub use service::{REMOVED, Service};

use std::time::Duration;

/// Metadata of every call but Join.
mod header {
    pub const CLUSTER: &str = "muster-cluster";
    pub const FROM: &str = "muster-from";
    pub const TO: &str = "muster-to";
}

/// The largest message: an entry may hold a large bundle of objects.
const MESSAGE_BYTES: usize = 64 << 20;
/// Octets of a snapshot or artifact in one message.
pub const CHUNK_BYTES: usize = 512 << 10;
/// For TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// A peer that does not answer a ping for as long as this is cut off.
const KEEP_ALIVE: Duration = Duration::from_millis(1000);

/// The innermost reason: tonic's own text is "transport error".
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

//! What must hold when things break: real processes, real firmware, real clients, real faults.
//!
//! Each file under `tests/stories` is one story. They share [`cluster`] and [`node`] (in namespaces),
//! [`machine`] (QEMU), [`payload`] and [`content`] (what it boots), [`client`] (Debian's DHCP clients), [`dhcp`] and
//! [`crowd`] (clients made of bytes, one and many), [`fault`] and [`disk`] (what breaks the network
//! and what a power cut leaves) and [`invariant`] (what must hold all the same). `make demo` is told
//! by the same means. `muster-chaos` and `make bench-dhcp` send a [`crowd`] out and give its
//! [`summary`]; [`failover`] and [`outage`] tell which clients notice that servers die, and a
//! [`fleet`] of machines made of bytes boots meanwhile. [`chaos`] breaks everything by a seed and checks
//! all that was seen.

pub mod chaos;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod content;
pub mod crowd;
pub mod dhcp;
pub mod disk;
pub mod failover;
pub mod fault;
pub mod fleet;
pub mod invariant;
pub mod lab;
pub mod load;
pub mod localdisk;
pub mod machine;
pub mod matrix;
pub mod node;
pub mod outage;
pub mod payload;
pub mod prometheus;
pub mod socket;
pub mod summary;
pub mod wall_clock;
pub mod wire;

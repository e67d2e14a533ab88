//! What must hold when things break: real processes, real firmware, real clients, real faults.
//!
//! Each file under `tests/` is one story. They share [`cluster`] (nodes in namespaces), [`machine`]
//! (QEMU), [`content`] (what it boots), [`client`] (DHCP clients), [`fault`] (what breaks the
//! network) and [`invariant`] (what must hold all the same). `make demo` is told by the same means.

pub mod client;
pub mod cluster;
pub mod content;
pub mod fault;
pub mod invariant;
pub mod lab;
pub mod machine;

//! The API as its clients see it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;
#[path = "../../../raft/tests/common/mod.rs"]
mod nodes;

mod access;
mod artifacts;
mod backup;
mod bundle;
mod certificates;
mod diverged;
mod drain;
mod events;
mod garbage;
mod idempotency;
mod installs;
mod leases;
mod objects;
mod replace;
mod secrets;
mod trial;
mod uploads;
mod wire;

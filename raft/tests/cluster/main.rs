//! Clusters of one and of three, seen from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod artifacts;
mod ask;
mod backup;
mod directory;
mod diverged;
mod drain;
mod membership;
mod recover;
mod replace;
mod replication;
mod reseed;
mod solo;
mod stopping;

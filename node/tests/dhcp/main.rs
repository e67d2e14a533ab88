//! What DHCP decides, packet by packet, and what the cluster does about leases and members by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../boot/support/pcap.rs"]
#[allow(dead_code)]
mod pcap;
mod world;

mod cluster;
mod decide;
mod foreign;
mod fuzz;
mod loaders;
mod reconcile;
mod replay;
mod reply;
mod service;

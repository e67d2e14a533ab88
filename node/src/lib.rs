//! One node: the services that provision machines, the command line, and what wires them together.

pub mod alert;
pub mod boot;
pub mod cli;
pub mod config;
pub mod dhcp;
pub mod doctor;
pub mod failure;
pub mod journal;
pub mod minority;
pub mod notify;
pub mod peers;
pub mod ra;
pub mod recent_log;
pub mod reconcile;
pub mod scrape;
pub mod serve;
pub mod spans;
pub mod telemetry;
pub mod tftp;
pub mod upkeep;

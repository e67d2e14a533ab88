//! What machines fetch, by HTTP and TFTP, from a tree over a node of one.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod hostile;
mod install;
mod loaders;
mod metadata;
mod replay;
mod tftp;
mod tree;

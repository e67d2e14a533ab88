//! The pages of the reference say what the code has.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod sources;

mod logs;
mod pages;

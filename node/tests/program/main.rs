//! The program, as an operator calls it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod process;

mod backup;
mod doctor;
mod secrets;
mod serve;

//! What is wrong with a site, and what to do about it.
//!
//! [`facts`] says what is known, [`judge`] what follows from it, which is pure. `host` and `site` gather
//! the facts.

pub mod facts;
pub mod host;
pub mod judge;
mod ports;
pub mod site;

pub use facts::{Host, Node, Site};
pub use judge::{Finding, Severity, judge};

//! The replicated state and the one function that changes it.

mod apply;
mod artifacts;
mod bind;
mod boot;
mod class;
mod install;
mod keyring;
mod labels;
mod loaders;
mod members;
mod objects;
mod offer;
mod params;
mod pool;
mod read;
mod remember;
mod row;
mod table;
mod timeline;
mod upgrade;

pub use boot::{BootClient, BootPlan, BootTarget};
pub use offer::{Claim, Grant, Offer, PoolUsage};
pub use params::{GLOBAL, Kept, Owner, ParamValue, resolve, value_in};
pub use remember::{KEY_MILLIS, KEY_MILLIS_MIN, KEYS_MAX, RETRIES_MAX, RETRY_MILLIS, Remembered};
pub use row::{Digest, Row, RowKey, RowWrite};
pub use table::{Cluster, EVENTS_MAX, EVENTS_OCTETS_MAX, Gone, Meta, State};

//! The seeded simulation: a whole cluster in one thread, on virtual time.
//!
//! `State`, batching and forwarding, storage traits, peer protocol, membership and openraft are
//! those that ship; in the place of the machine (`crate::host::Host`) stand a [`disk`] that loses
//! what was not synced, [`net`] links that delay, lose and repeat, and clocks that are wrong.
//! [`faults`] breaks things, [`work`] does what clients do, and the [`oracle`] sees everything and
//! checks every step. All chance comes from one seed ([`chance`]): a seed that fails does so again.
//! [`mutant`] lists what is broken on purpose to see that this is noticed.
//!
//! `make sim SEEDS=n` runs more seeds than the tests do; `SEED=s` one, with its trace.

mod chance;
mod disk;
mod faults;
mod machine;
mod mutant;
mod net;
mod oracle;
mod run;
mod tests;
mod work;
mod world;

pub use machine::Machine;
pub use mutant::{Mutant, broken, outcomes_before_commit, trusted_wall};
pub use net::Wire;
pub use work::dhcp_client;

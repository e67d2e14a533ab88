//! What the cluster remembers: the domain model, the vocabulary of writes, and the one pure
//! function that turns a committed entry into new state.
//!
//! Nothing here knows about tokio, sockets, the clock or randomness: time and random values travel
//! inside a [`command::Command`]. Start reading at [`state::State::apply`].

pub mod backup;
pub mod blobs;
pub mod command;
pub mod engine;
pub mod event;
pub mod linear;
pub mod model;
pub mod schema;
pub mod state;

pub use command::{
    Actor, Command, Effect, Entry, Outcome, Proposal, Rejection, Remember, RequestId,
};
pub use event::Change;
pub use model::{Mac, NodeId, Revision, Timestamp};
pub use state::State;

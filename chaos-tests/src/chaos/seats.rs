//! Where clients find nodes, while nodes come and go.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use crate::cluster::Cluster;

/// A member, by what clients need of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// `n1`, `n2` …
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where it takes requests.
    pub socket: PathBuf,
}

/// All members.
#[derive(Debug, Default)]
pub struct Seats(RwLock<Vec<Seat>>);

impl Seats {
    /// From now on these nodes of the cluster are its members.
    pub fn set(&self, cluster: &Cluster, members: &[usize]) {
        let seats = members.iter().map(|index| {
            let node = cluster.node(*index);
            Seat {
                name: node.name().to_owned(),
                address: node.address(),
                socket: node.socket(),
            }
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = seats.collect();
    }

    /// Who they are now.
    pub fn all(&self) -> Vec<Seat> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One of them, by any number.
    pub fn pick(&self, number: u64) -> Option<Seat> {
        let seats = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let count = u64::try_from(seats.len()).ok()?;
        let index = usize::try_from(number.checked_rem(count)?).ok()?;
        seats.get(index).cloned()
    }

    /// Their addresses.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.all().into_iter().map(|seat| seat.address).collect()
    }
}

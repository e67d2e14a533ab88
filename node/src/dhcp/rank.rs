//! Which node answers a client first: rendezvous hashing, so that all nodes agree without a word
//! and a node's death moves only its own clients.

use std::time::Duration;

use muster_storage::NodeId;

/// How long each rank leaves to the one before it.
pub const STEP: Duration = Duration::from_millis(100);

/// Ranks further back wait no longer than this one.
const RANK_MAX: u32 = 9;

/// How many of `nodes` come before `own` for this client; none when `own` is not among them.
///
/// A `named` node, whose identifier the client chose, comes first while it is in `nodes`.
pub fn rank(sender: &[u8], named: Option<NodeId>, nodes: &[NodeId], own: NodeId) -> Option<u32> {
    if !nodes.contains(&own) {
        return None;
    }
    let mine = place(sender, named, own);
    let before = nodes
        .iter()
        .filter(|node| place(sender, named, **node) > mine)
        .count();
    Some(u32::try_from(before).unwrap_or(u32::MAX))
}

/// The rank of whoever leaves a client to all others of `nodes`.
pub fn last(nodes: &[NodeId]) -> u32 {
    u32::try_from(nodes.len().saturating_sub(1)).unwrap_or(u32::MAX)
}

/// The node that comes before all others, for a client or for an address: each node first gives
/// the addresses that fall to it, so that nodes that answer at the same time do not give the same.
pub fn first(octets: &[u8], named: Option<NodeId>, nodes: &[NodeId]) -> Option<NodeId> {
    let nodes = nodes.iter().copied();
    nodes.max_by_key(|node| place(octets, named, *node))
}

fn place(octets: &[u8], named: Option<NodeId>, node: NodeId) -> (bool, u64, NodeId) {
    (Some(node) == named, weight(octets, node), node)
}

/// How long a node of this rank waits for those before it. A relay may have sent the packet to
/// one node only, so no node that got it from a relay waits for more than one other.
pub fn delay(rank: u32, relayed: bool) -> Duration {
    STEP * if relayed {
        rank.min(1)
    } else {
        rank.min(RANK_MAX)
    }
}

/// How long a node waits that leaves a packet to all its `peers`.
pub fn delay_of_all(peers: usize) -> Duration {
    let peers = u32::try_from(peers).unwrap_or(u32::MAX);
    STEP * peers.saturating_add(1).min(RANK_MAX)
}

/// A hash of octets that is the same on every node and version: FNV-1a, finished by a mixer.
pub fn hash(octets: &[u8]) -> u64 {
    let folded = octets
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, octet| {
            (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    mix(folded)
}

fn weight(sender: &[u8], node: NodeId) -> u64 {
    mix(hash(sender) ^ mix(node.0.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// The finisher of SplitMix64.
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [NodeId(256), NodeId(512), NodeId(1024)];

    #[test]
    fn ranks_are_a_permutation_and_spread_evenly() {
        let mut counts = [0; 3];
        for client in 0..3000u32 {
            let sender = client.to_be_bytes();
            let mut ranks: Vec<_> = NODES
                .iter()
                .map(|node| rank(&sender, None, &NODES, *node))
                .collect();
            for (count, rank) in counts.iter_mut().zip(&ranks) {
                *count += usize::from(*rank == Some(0));
            }
            ranks.sort_unstable();
            assert_eq!(ranks, [Some(0), Some(1), Some(2)]);
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_death_moves_only_the_clients_of_the_dead() {
        let alive = [NODES[0], NODES[2]];
        for client in 0..500u32 {
            let sender = client.to_be_bytes();
            let before = first(&sender, None, &NODES);
            if before != Some(NODES[1]) {
                assert_eq!(first(&sender, None, &alive), before);
            }
        }
    }

    #[test]
    fn the_named_node_comes_first_while_it_lives() {
        for client in 0..100u32 {
            let sender = client.to_be_bytes();
            assert_eq!(rank(&sender, Some(NODES[1]), &NODES, NODES[1]), Some(0));
            let alive = [NODES[0], NODES[2]];
            assert!(first(&sender, None, &alive).is_some());
            assert_eq!(
                rank(&sender, Some(NODES[1]), &alive, NODES[0]),
                rank(&sender, None, &alive, NODES[0])
            );
        }
    }

    #[test]
    fn a_stranger_to_the_link_has_no_rank_and_relays_wait_for_one() {
        assert_eq!(rank(b"x", None, &NODES, NodeId(7)), None);
        assert_eq!(delay(2, false), STEP * 2);
        assert_eq!(delay(2, true), STEP);
        assert_eq!(delay(0, true), Duration::ZERO);
    }
}

//! Metrics that are read when they are asked for: a recorder would go on telling of subnets and pools
//! that are gone.

use std::cmp::Reverse;
use std::fmt::Write as _;

use metrics::describe_gauge;
use muster_raft::Cluster;
use muster_storage::State;

/// Series of one name; what is fullest is shown, of more there is a count.
const SERIES_MAX: usize = 2000;

/// Name and meaning.
type Family = (&'static str, &'static str);

const BUILD: Family = (
    "muster_build_info",
    "1 on every node, by the node's name and the version of its binary",
);
const DRAINING: Family = (
    "muster_draining",
    "1 on a node that is about to be stopped: it leads nothing and asks for no more work",
);
const LEASES: Family = (
    "muster_dhcp_leases",
    "Leases that are bound, by subnet; the same on every node",
);
const POOL_ADDRESSES: Family = (
    "muster_dhcp_pool_addresses",
    "Addresses in a pool, by subnet, class and pool; the same on every node",
);
const POOL_TAKEN: Family = (
    "muster_dhcp_pool_taken",
    "Addresses of a pool that are leased, reserved or held, by subnet, class and pool; the same on every node",
);
const RETURNED: Family = (
    "muster_dhcp_returned_addresses",
    "Addresses that clients gave back and that no other may have yet: a node has not heard of it, or may have promised them since; the same on every node",
);
const SERIES_HIDDEN: Family = (
    "muster_dhcp_series_hidden",
    "Subnets and pools that are in no metric because there are more than 2,000 of them",
);

/// All of them.
const FAMILIES: [Family; 7] = [
    BUILD,
    DRAINING,
    LEASES,
    POOL_ADDRESSES,
    POOL_TAKEN,
    RETURNED,
    SERIES_HIDDEN,
];

/// Tells the reference what each is.
pub fn describe() {
    for (name, meaning) in FAMILIES {
        describe_gauge!(name, meaning);
    }
}

/// Names of what is read here.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().map(|(name, _)| name)
}

/// What a node tells of itself and of the state, in the text format of Prometheus.
pub fn read(cluster: &Cluster) -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let own = [("node", cluster.node_name()), ("version", version)];
    family(&mut text, BUILD, [(own.as_slice(), 1)]);
    let draining = u64::from(cluster.is_draining());
    family(&mut text, DRAINING, [([].as_slice(), draining)]);
    cluster.read(|state| of_state(&mut text, state));
    text
}

fn of_state(text: &mut String, state: &State) {
    let mut leases: Vec<(&str, u64)> = state.bound_by_subnet().collect();
    let mut hidden = fullest(&mut leases, |(_, count)| *count);
    let labelled = leases.iter().map(|(subnet, n)| ([("subnet", *subnet)], *n));
    family(text, LEASES, labelled);
    let returned = state.returned().count() as u64;
    family(text, RETURNED, [([].as_slice(), returned)]);

    let mut pools: Vec<_> = state.pools().collect();
    // In thousandths, which tell pools apart that are nearly full.
    hidden += fullest(&mut pools, |usage| {
        u64::from(usage.taken) * 1000 / u64::from(usage.pool.len()).max(1)
    });
    let pools: Vec<_> = pools
        .iter()
        .map(|usage| (usage, usage.pool.to_string()))
        .collect();
    let counts = |count: fn(&muster_storage::state::PoolUsage<'_>) -> u32| {
        pools.iter().map(move |(usage, pool)| {
            let class = usage.class.unwrap_or_default();
            let labels = [("subnet", usage.subnet), ("class", class), ("pool", pool)];
            (labels, u64::from(count(usage)))
        })
    };
    family(text, POOL_ADDRESSES, counts(|usage| usage.pool.len()));
    family(text, POOL_TAKEN, counts(|usage| usage.taken));
    family(text, SERIES_HIDDEN, [([].as_slice(), hidden as u64)]);
}

/// Leaves at most [`SERIES_MAX`], those with the most; how many are left out.
fn fullest<T>(all: &mut Vec<T>, most: impl Fn(&T) -> u64) -> usize {
    let hidden = all.len().saturating_sub(SERIES_MAX);
    if hidden > 0 {
        all.sort_by_key(|one| Reverse(most(one)));
        all.truncate(SERIES_MAX);
    }
    hidden
}

/// Writes one gauge. Writing to a string does not fail.
fn family<'a, L: AsRef<[(&'a str, &'a str)]>>(
    text: &mut String,
    (name, meaning): Family,
    series: impl IntoIterator<Item = (L, u64)>,
) {
    let _ = write!(text, "# HELP {name} {meaning}\n# TYPE {name} gauge\n");
    for (labels, value) in series {
        text.push_str(name);
        for (place, (label, value)) in labels.as_ref().iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let _ = write!(text, "{open}{label}=\"{}\"", escaped(value));
        }
        if !labels.as_ref().is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

/// A value as the format wants it between quotes.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_none_have_no_braces() {
        let mut text = String::new();
        family(&mut text, DRAINING, [([].as_slice(), 1)]);
        let odd = [("subnet", "a\"b\\c\nd"), ("class", "")];
        family(&mut text, LEASES, [(odd, 7)]);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let wanted = [
            "muster_draining 1",
            r#"muster_dhcp_leases{subnet="a\"b\\c\nd",class=""} 7"#,
        ];
        assert_eq!(samples, wanted);
    }

    #[test]
    fn the_fullest_are_shown_and_the_others_counted() {
        let mut all: Vec<u64> = (0..3000).collect();
        assert_eq!(fullest(&mut all, |n| *n), 1000);
        assert_eq!(all.len(), SERIES_MAX);
        assert!(all.iter().all(|n| *n >= 1000));
        let mut few = vec![2, 1];
        assert_eq!(fullest(&mut few, |n| *n), 0);
        assert_eq!(few, [2, 1]);
    }
}

//! Why a client has the address that it has, or has none.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::State;
use muster_storage::Change;
use muster_storage::command::{Client, Traits};
use muster_storage::event::Subject;
use muster_storage::model::{ClientKey, Lease, Mac, Object, ObjectKind, Record, SubnetMode};
use serde_json::{Map, Value};

use crate::node::About;
use crate::problem::Problem;
use crate::rest::extract::Key;
use crate::{App, Shared, view};

/// Changes that are told of, the latest.
const HISTORY_MAX: usize = 100;

/// Leases that one look at the state goes through.
const LOOK_MAX: usize = 8192;

/// Leases of one client, and subnets on which it may appear.
const CLIENTS_MAX: usize = 32;

pub(super) async fn get(
    State(app): State<Shared>,
    Key(key): Key,
) -> Result<axum::Json<Value>, Problem> {
    let about = match (key.parse::<Ipv4Addr>(), key.parse::<Mac>()) {
        (Ok(address), _) => About::Address(address),
        (_, Ok(mac)) => About::Mac(mac),
        _ => {
            let detail = format!("`{key}` is neither an IPv4 address nor a MAC");
            return Err(Problem::new("malformed", detail));
        }
    };
    let leases = match about {
        About::Address(address) => app
            .cluster
            .read(|state| state.lease(address).cloned())
            .into_iter()
            .collect(),
        About::Mac(mac) => leases_of(&app, mac),
    };
    let (mut answer, clients) = app
        .cluster
        .read(|state| (story(state, about, &leases), clients(state, about, &leases)));
    if let Value::Object(now) = app.node.explain(about, clients).await {
        answer.extend(now);
    }
    Ok(axum::Json(Value::Object(answer)))
}

/// All leases, present and past, of a MAC, whatever it is known by. The state is let go of in
/// between: there may be a million.
fn leases_of(app: &App, mac: Mac) -> Vec<Arc<Record<Lease>>> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let (seen, last) = app.cluster.read(|state| {
            let page = state.leases_after(after).take(LOOK_MAX);
            page.fold((0, after), |(seen, _), record| {
                if is_of(&record.object, mac) && found.len() < CLIENTS_MAX {
                    found.push(Arc::clone(record));
                }
                (seen + 1, Some(record.object.address))
            })
        });
        if seen < LOOK_MAX {
            return found;
        }
        after = last;
    }
}

fn is_of(lease: &Lease, mac: Mac) -> bool {
    lease.mac == Some(mac) || lease.client == ClientKey::Mac(mac)
}

/// What the state remembers: leases, reservations, and the changes that are kept.
fn story(
    state: &muster_storage::State,
    about: About,
    leases: &[Arc<Record<Lease>>],
) -> Map<String, Value> {
    let concerns = |lease: &Lease| match about {
        About::Address(address) => lease.address == address,
        About::Mac(mac) => is_of(lease, mac),
    };
    let kept = || {
        state
            .events_after(state.history_start())
            .into_iter()
            .flatten()
    };
    let mut history: Vec<Value> = kept()
        .filter_map(|change| match &change.subject {
            Subject::Lease(lease) if concerns(lease) => Some(step(state, change, lease)),
            _ => None,
        })
        .collect();
    history.drain(..history.len().saturating_sub(HISTORY_MAX));
    let reserved = state
        .objects_after(ObjectKind::Reservation, None)
        .filter(|record| match (&record.object, about) {
            (Object::Reservation(it), About::Address(address)) => it.address == address,
            (Object::Reservation(it), About::Mac(mac)) => {
                let machine = state.machine_with_mac(mac).map(|machine| machine.uuid);
                it.mac == Some(mac) || (machine.is_some() && it.machine == machine)
            }
            _ => false,
        })
        .map(|record| Value::Object(view::public_fields(state, &record.object)));
    let mut answer = Map::new();
    let mut add = |name: &str, value: Value| answer.insert(name.to_owned(), value);
    let leases = leases.iter().map(|record| view::lease(state, record));
    add("leases", leases.collect());
    add("reservations", reserved.collect());
    add("history", history.into());
    add(
        "history_since",
        kept().next().map(|oldest| view::time(oldest.at)).into(),
    );
    answer
}

/// A change of a lease: its fields then, and what happened.
fn step(state: &muster_storage::State, change: &Change, lease: &Lease) -> Value {
    let mut step = view::change(state, change);
    let mut fields = step.get_mut("object").map(Value::take).unwrap_or_default();
    if let Value::Object(fields) = &mut fields {
        fields.insert("at".to_owned(), view::time(change.at));
        fields.insert("actor".to_owned(), change.actor.0.clone().into());
        let what = change.action.of_lease(lease);
        fields.insert("what".to_owned(), what.into());
        for same in ["kind", "created_at", "updated_at"] {
            fields.remove(same);
        }
    }
    fields
}

/// The clients that it is about: as their leases remember them, or as a stranger on each subnet.
fn clients(
    state: &muster_storage::State,
    about: About,
    leases: &[Arc<Record<Lease>>],
) -> Vec<Client> {
    let known = leases.iter().filter_map(|record| {
        let lease = &record.object;
        let subnet = state.subnet(&lease.subnet)?;
        Some(Client {
            mac: lease.mac,
            client_id: lease.client_id.clone(),
            boots: lease.boots,
            link: vec![subnet.cidr.network()],
            requested: None,
            lease_secs: None,
            hostname: None,
            relay: lease.relay.clone(),
            traits: Traits {
                uuid: lease.uuid,
                ..Traits::default()
            },
        })
    });
    let mut clients: Vec<Client> = known.collect();
    clients.dedup();
    if let (About::Mac(mac), true) = (about, clients.is_empty()) {
        let subnets = state.objects_after(ObjectKind::Subnet, None);
        let served = subnets.filter_map(|record| match &record.object {
            Object::Subnet(subnet) if subnet.mode != SubnetMode::Off => Some(subnet),
            _ => None,
        });
        clients.extend(served.take(CLIENTS_MAX).map(|subnet| Client {
            mac: Some(mac),
            client_id: None,
            boots: false,
            link: vec![subnet.cidr.network()],
            requested: None,
            lease_secs: None,
            hostname: None,
            relay: None,
            traits: Traits::default(),
        }));
    }
    clients
}

//! Clients of the API: they create, change, read and delete machines that never boot, any of them at
//! any node, and write down what they asked and what they were told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_storage::linear::{Action, Condition, Told};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::history::{Call, History, Record};
use super::seats::{Seat, Seats};
use crate::socket;

/// Objects that are written at a time.
const SLOTS: u64 = 4;
/// An object is left for a new one after so many operations, or so many of unknown outcome: the search
/// for an order that explains its history is as long as these allow.
const OPERATIONS_MAX: u64 = 250;
const UNKNOWN_MAX: u64 = 8;
/// How long a client waits for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The objects that clients write.
#[derive(Debug)]
pub struct Objects<'a> {
    seats: &'a Seats,
    history: &'a History,
    slots: Vec<Mutex<Slot>>,
    values: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Which object is written now.
    serial: u64,
    operations: u64,
    unknown: u64,
    /// Its revision with the value that it has there, as clients read them.
    known: Option<(String, u64)>,
}

impl<'a> Objects<'a> {
    /// None yet.
    pub fn new(seats: &'a Seats, history: &'a History) -> Self {
        Self {
            seats,
            history,
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
            values: AtomicU64::new(1),
        }
    }

    /// One client, until it is over.
    pub fn run(&self, client: u64, seed: u64, over: &AtomicBool) -> Result<()> {
        let mut chance = StdRng::seed_from_u64(seed);
        let name = format!("api-{client}");
        while !over.load(Ordering::Relaxed) {
            let seat = self.seats.pick(chance.random()).context("no node")?;
            let told = self.operate(&name, &seat, &mut chance)?;
            let pause = match told {
                Told::Unknown => chance.random_range(200..500),
                _ => chance.random_range(20..160),
            };
            thread::sleep(Duration::from_millis(pause));
        }
        Ok(())
    }

    fn operate(&self, client: &str, seat: &Seat, chance: &mut StdRng) -> Result<Told> {
        let slot = chance.random_range(0..SLOTS);
        let (serial, known) = {
            let slot = self.slot(slot)?;
            (slot.serial, slot.known.clone())
        };
        let key = format!("object-{slot}-{serial}");
        let mac = [slot, serial >> 16, serial >> 8, serial].map(|octet| octet & 0xff);
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let body = |value: u64| json!({"params": {"value": value}});
        let path = format!("/api/v1/machines/{key}");
        let mut call = socket::Call {
            method: "GET",
            path: &path,
            ..socket::Call::default()
        };
        // What is done, and what the answers say: done; refused by its condition.
        let (action, refused): (Action, &[u16]) = match (chance.random_range(0..10), known) {
            (0 | 1, _) => {
                call.method = "POST";
                call.path = "/api/v1/machines";
                let mut body = body(value);
                body["name"] = json!(key);
                body["macs"] = json!([format!("06:00:{mac}")]);
                call.body = Some(body.to_string());
                (Action::Write(Condition::Absent, value), &[409])
            }
            (2 | 3, _) => {
                call.method = "PATCH";
                call.body = Some(body(value).to_string());
                (Action::Write(Condition::Exists, value), &[404])
            }
            (4 | 5, Some((etag, seen))) => {
                call.method = "PATCH";
                call.headers = vec![("If-Match", etag)];
                call.body = Some(body(value).to_string());
                (Action::Write(Condition::Is(seen), value), &[404, 412])
            }
            (6, _) if chance.random_bool(0.4) => {
                call.method = "DELETE";
                (Action::Delete(Condition::Exists), &[404])
            }
            _ => (Action::Read(None), &[]),
        };
        let start = self.history.now();
        let answer = call.ask(&seat.socket, ANSWER);
        let end = self.history.now();
        let (action, told) = match &answer {
            Ok(answer) => self.judge(slot, serial, action, refused, answer)?,
            // Nobody was asked.
            Err(failed) if !failed.sent => return Ok(Told::Unknown),
            Err(_) => (action, Told::Unknown),
        };
        let answer = answer.ok();
        self.history.add(Record::Call(Call {
            start,
            end,
            client: client.to_owned(),
            node: seat.name.clone(),
            key,
            action,
            told,
            status: answer.as_ref().map(|answer| answer.status),
            revision: answer.as_ref().and_then(socket::Answer::revision),
        }));
        self.count(slot, serial, told)?;
        Ok(told)
    }

    /// What an answer says; what was read is put into the action.
    fn judge(
        &self,
        slot: u64,
        serial: u64,
        action: Action,
        refused: &[u16],
        answer: &socket::Answer,
    ) -> Result<(Action, Told)> {
        let read = matches!(action, Action::Read(_));
        if answer.header("muster-stale").is_some() {
            // It says itself that it may be old.
            return Ok((action, Told::Unknown));
        }
        Ok(match answer.status {
            200 | 201 | 204 => {
                let seen = match answer.body.is_empty() {
                    true => None,
                    false => seen(&answer.body)?,
                };
                if let Some((etag, value)) = answer.header("etag").zip(seen) {
                    let mut slot = self.slot(slot)?;
                    if slot.serial == serial {
                        slot.known = Some((etag.to_owned(), value));
                    }
                }
                let action = if read { Action::Read(seen) } else { action };
                (action, Told::Done)
            }
            404 if read => (Action::Read(None), Told::Done),
            status if refused.contains(&status) => (action, Told::Refused),
            // Without a quorum, in a hurry, or as the node ends: it may come to be all the same. And what was
            // created may be gone when it is to be shown.
            _ => (action, Told::Unknown),
        })
    }

    fn count(&self, slot: u64, serial: u64, told: Told) -> Result<()> {
        let mut slot = self.slot(slot)?;
        if slot.serial != serial {
            return Ok(());
        }
        slot.operations += 1;
        slot.unknown += u64::from(told == Told::Unknown);
        if slot.operations >= OPERATIONS_MAX || slot.unknown >= UNKNOWN_MAX {
            *slot = Slot {
                serial: serial + 1,
                ..Slot::default()
            };
        }
        Ok(())
    }

    fn slot(&self, slot: u64) -> Result<std::sync::MutexGuard<'_, Slot>> {
        let index = usize::try_from(slot)?;
        let slot = self.slots.get(index).context("no such slot")?;
        Ok(slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads every object that was ever written once more, at one node after the other: a write that
    /// was acknowledged is seen, or was overwritten. Nothing is in anybody's way by now.
    pub fn read_all(&self) -> Result<()> {
        let seats = self.seats.all();
        let mut next = seats.iter().cycle();
        for slot in 0..SLOTS {
            let last = self.slot(slot)?.serial;
            for serial in 0..=last {
                let seat = next.next().context("no node")?;
                let key = format!("object-{slot}-{serial}");
                let path = format!("/api/v1/machines/{key}");
                let call = socket::Call {
                    method: "GET",
                    path: &path,
                    ..socket::Call::default()
                };
                let start = self.history.now();
                let answer = call.ask(&seat.socket, ANSWER);
                let answer = answer.map_err(|failed| failed.error)?;
                let action = Action::Read(None);
                let (action, told) = self.judge(slot, serial, action, &[], &answer)?;
                ensure!(told == Told::Done, "{} does not read {key}", seat.name);
                self.history.add(Record::Call(Call {
                    start,
                    end: self.history.now(),
                    client: "at the end".to_owned(),
                    node: seat.name.clone(),
                    key,
                    action,
                    told,
                    status: Some(answer.status),
                    revision: answer.revision(),
                }));
            }
        }
        Ok(())
    }
}

/// The value that an object has.
fn seen(body: &str) -> Result<Option<u64>> {
    let object: HashMap<String, Value> =
        serde_json::from_str(body).with_context(|| format!("reading {body}"))?;
    let params = object.get("params");
    let value = params.and_then(|params| params.get("value"));
    Ok(value.and_then(Value::as_u64))
}

//! Leases, and why they are as they are.

use clap::Subcommand;
use muster_api::client::Call;
use reqwest::Method;
use serde_json::Value;

use super::super::output::{plain, table};
use super::super::{Context, Error};
use super::Look;

/// What can be done with leases.
#[derive(Debug, Subcommand)]
pub enum LeaseVerb {
    /// List, get, delete, watch.
    #[command(flatten)]
    Look(Look),
    /// Tell the story of an address or a client: who had what, by which rule, what DHCP would answer
    /// now, and what it refused lately.
    Why {
        /// IPv4 address or MAC.
        #[arg(value_name = "ADDRESS|MAC")]
        key: String,
    },
}

/// A verb on leases.
pub async fn run(context: &Context, verb: LeaseVerb) -> Result<(), Error> {
    match verb {
        LeaseVerb::Look(verb) => super::look(context, "leases", verb).await,
        LeaseVerb::Why { key } => {
            let call = Call::new(Method::GET, &["leases", &key, "why"]);
            let story = context.client.json(call).await?;
            match context.printer.for_programs() {
                true => context.printer.object(&story),
                false => context.printer.text(&for_people(&key, &story)),
            }
        }
    }
}

/// A line for each item, made of its fields; nothing when there is none.
fn lines(title: &str, items: &[Value], line: impl Fn(&dyn Fn(&str) -> String) -> String) -> String {
    let lines = items.iter().map(|item| {
        let field = |name: &str| plain(item.get(name).unwrap_or(&Value::Null));
        format!("  {}\n", line(&field))
    });
    match items {
        [] => String::new(),
        _ => format!("{title}\n{}\n", lines.collect::<String>()),
    }
}

fn for_people(key: &str, story: &Value) -> String {
    let part = |name: &str| {
        let items = story.get(name).and_then(Value::as_array);
        items.map_or(&[][..], Vec::as_slice)
    };
    let shown = |title: &str, items: &[Value], columns: &[&str]| match items {
        [] => String::new(),
        items => format!("{title}\n{}\n", table(items, columns)),
    };
    let mut text = match (part("leases"), part("reservations")) {
        ([], []) => format!("No lease and no reservation for {key}.\n\n"),
        (leases, reservations) => {
            shown(
                "Leases",
                leases,
                &[
                    "address",
                    "subnet",
                    "mac",
                    "client_id",
                    "hostname",
                    "machine",
                    "state",
                    "rule",
                    "node",
                    "bound_at",
                    "promised_until",
                ],
            ) + &shown(
                "Reservations",
                reservations,
                &[
                    "address",
                    "mac",
                    "client_id",
                    "machine",
                    "uuid",
                    "circuit_id",
                    "remote_id",
                ],
            )
        }
    };
    let since = plain(story.get("history_since").unwrap_or(&Value::Null));
    text += &shown(
        &format!("History, kept since {since}"),
        part("history"),
        &[
            "at", "revision", "what", "address", "mac", "machine", "node", "rule", "actor",
        ],
    );
    text += &lines("A DISCOVER now", part("now"), |it| {
        format!(
            "{} (answers first: {}) on {} to {}: {} {}; {}",
            it("node"),
            it("first"),
            it("subnets"),
            it("mac"),
            it("outcome"),
            it("address"),
            it("why")
        )
    });
    text += &lines("Refused lately", part("refusals"), |it| {
        format!(
            "{}, {} s ago, {} times: {} for {} by {}: {}; {}",
            it("node"),
            it("secs_ago"),
            it("times"),
            it("type"),
            it("address"),
            it("mac"),
            it("outcome"),
            it("why")
        )
    });
    if let unheard @ [_, ..] = part("unheard") {
        let names: Vec<String> = unheard.iter().map(plain).collect();
        text += &format!("Nothing heard from {}.\n", names.join(", "));
    }
    text
}

//! `muster cluster drill`: a node fails on order, and a synthetic client measures what machines and
//! people would see of it. No machine takes part.

mod client;
mod kept;
mod measure;
mod report;
mod site;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_api::client::{Call, Error as ClientError, Payload};
use muster_api::node::Failure;
use muster_storage::Timestamp;
use reqwest::Method;
use serde_json::json;

use super::{Connection, Context, Error};
use crate::config::{DrillCommand, DrillOptions};
use measure::Leaders;
use report::{Report, Span, service};
use site::Site;

/// What is measured before a failure and after it, unless the failure is shorter.
const QUIET: Duration = Duration::from_secs(10);

pub async fn run(
    context: &Context,
    connection: &Connection,
    command: DrillCommand,
) -> Result<(), Error> {
    match command {
        DrillCommand::LeaderKill { options, force } => {
            let site = Site::look(context, &options).await?;
            let leader = site.leader.clone();
            let leader = leader.ok_or_else(|| Error::Failed("nobody leads".to_owned()))?;
            let drill = Drill {
                kind: "leader-kill",
                node: leader,
                failure: Failure::Kill { force },
                options,
            };
            drill.run(context, connection, site).await
        }
        DrillCommand::NodeLoss { node, options } => {
            let site = Site::look(context, &options).await?;
            let follower = || {
                site.names
                    .iter()
                    .find(|it| Some(*it) != site.leader.as_ref())
            };
            let node = node.or_else(|| follower().cloned());
            let node = node.ok_or_else(|| Error::Failed("there is no other node".to_owned()))?;
            let drill = Drill {
                kind: "node-loss",
                node: site.name_of(node),
                failure: Failure::Pause {
                    millis: millis(length(&options)),
                },
                options,
            };
            drill.run(context, connection, site).await
        }
        DrillCommand::List => kept::list(context).await,
        DrillCommand::Get { name } => {
            let report = kept::fetch(context, &name).await?;
            show(context, &report)
        }
    }
}

fn length(options: &DrillOptions) -> Duration {
    Duration::from_secs_f64(options.minutes * 60.0)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn show(context: &Context, report: &Report) -> Result<(), Error> {
    match context.printer.for_programs() {
        true => context.printer.object(&json!(report)),
        false => context.printer.text(&report.text()),
    }
}

/// A node that is to fail.
struct Drill {
    kind: &'static str,
    node: String,
    failure: Failure,
    options: DrillOptions,
}

impl Drill {
    async fn run(
        self,
        context: &Context,
        connection: &Connection,
        site: Site,
    ) -> Result<(), Error> {
        if !self.options.yes && !confirmed(self.kind, &self.node)? {
            return Err(Error::Failed("nothing was done".to_owned()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        let at = Timestamp(now).to_string();
        let begun = Instant::now();
        let https = measure::https(connection)?;
        let (mut measured, not_measured) = measure::begin(&site, &https, begun).await;

        let lasts = length(&self.options);
        let quiet = QUIET.min(lasts);
        tokio::time::sleep(quiet).await;
        let led = site.leader.as_ref() == Some(&self.node);
        let watch = Leaders {
            http: https,
            nodes: site.at(|it| Some(it.api)),
            old: self.node.clone(),
        };
        let order = Call::new(Method::POST, &["nodes", &self.node, "fail"]).once();
        let order = order.payload(Payload::Json(json!(self.failure)));
        let from = millis(begun.elapsed());
        let ordered = context.client.send(order).await;
        // Whoever passes it on may be the one that fails.
        let ordered = match ordered {
            Err(error @ ClientError::Problem { .. }) => {
                measured.end().await;
                return Err(error.into());
            }
            other => other,
        };
        let new_leader = tokio::time::timeout(lasts, watch.next(begun));
        let new_leader = match led {
            true => new_leader.await.ok(),
            false => None,
        };
        let failed_for = Duration::from_millis(millis(begun.elapsed()).saturating_sub(from));
        tokio::time::sleep(lasts.saturating_sub(failed_for)).await;
        let until = millis(begun.elapsed());
        tokio::time::sleep(quiet).await;
        let services = measured.end().await;
        let failure_ms = Span { from, until };
        let length_ms = millis(begun.elapsed());
        let report = Report {
            name: format!("{}-{}", at.replace(':', ""), self.kind),
            drill: self.kind.to_owned(),
            node: self.node,
            led,
            at,
            failure_ms,
            length_ms,
            leader: watch.last().await,
            new_leader_ms: new_leader.map(|at| at.saturating_sub(from)),
            services: services
                .into_iter()
                .map(|(name, attempts)| (name, service(&attempts, failure_ms, length_ms)))
                .collect(),
            not_measured,
        };
        show(context, &report)?;
        if ordered.is_err() && report.new_leader_ms.is_none() {
            return Err(Error::Failed(
                "nobody answered the order, so it is not certain that the node failed; the report \
                 above is not kept"
                    .to_owned(),
            ));
        }
        kept::keep(context, &report).await
    }
}

/// Asks whether it is to be done.
fn confirmed(kind: &str, node: &str) -> Result<bool, Error> {
    use std::io::{BufRead as _, IsTerminal as _};
    if !std::io::stdin().is_terminal() {
        return Err(Error::Usage(
            "give --yes to have it done unasked".to_owned(),
        ));
    }
    eprint!("drill {kind}: {node} will fail. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

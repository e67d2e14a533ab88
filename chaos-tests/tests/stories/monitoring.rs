//! What is in `deploy/monitoring` works with Debian's Prometheus and with what nodes really measure.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::fleet::{self, Plan};
use muster_chaos::lab::{run, wait_until};
use muster_chaos::prometheus::{self, CLUSTER, Prometheus};
use serde_json::Value;

use crate::{PATIENCE, tell};

#[test]
fn alerts_are_sound_and_each_is_shown() -> Result<()> {
    promtool(&["check", "rules", "muster-alerts.yml"])?;
    promtool(&["test", "rules", "muster-alerts-test.yml"])?;
    let read = |name: &str| fs::read_to_string(prometheus::files().join(name));
    let (alerts, shown) = (read("muster-alerts.yml")?, read("muster-alerts-test.yml")?);
    let names = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: Vec<&str> = names.collect();
    ensure!(names.len() > 25, "{names:?}");
    for name in names {
        let fires = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\", severity=");
        ensure!(shown.contains(&fires), "{name} is not shown to fire");
    }
    Ok(())
}

#[test]
fn dashboard_and_alerts_are_of_what_nodes_measure() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let plan = Plan {
            machines: 4,
            spread: Duration::ZERO,
            kill_at: None,
            patience: PATIENCE,
        };
        let prometheus = Prometheus::start(&cluster, [10, 77, 0, 60].into())?;
        promtool(&[
            "check",
            "config",
            &prometheus.config().display().to_string(),
        ])?;
        let report = fleet::boot(&cluster, &plan)?;
        ensure!(report.good(), "{report}");
        let before = samples(&prometheus)?;
        wait_until("all nodes to be scraped", PATIENCE, || {
            Ok((samples(&prometheus)? >= before + 3.0).then_some(()))
        })
        .with_context(|| prometheus.log())?;

        every_name_is_in_the_catalogue(&prometheus)?;
        panels_show_something(&prometheus)?;
        alerts_can_be_evaluated(&prometheus)?;

        cluster.node(2).kill()?;
        wait_until("an alert for the dead node", PATIENCE, || {
            let alerts = "ALERTS{alertname=\"MusterNodeDown\",instance=\"10.77.0.13:8092\"}";
            Ok((!prometheus.query(alerts)?.is_empty()).then_some(()))
        })
    })
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let mut command = std::process::Command::new("promtool");
    run(command.args(arguments).current_dir(prometheus::files())).map(drop)
}

/// How often each node was scraped, at least: a rate takes two samples of what is counted.
fn samples(prometheus: &Prometheus) -> Result<f64> {
    let scraped = "min(sum_over_time(up{job=\"muster\"}[5m])) and count(up{job=\"muster\"}) == 3";
    let found = prometheus.query(scraped)?;
    let value = found
        .first()
        .and_then(|series| series.pointer("/value/1")?.as_str());
    value.map_or(Ok(0.0), |value| value.parse().context("a count"))
}

/// What nodes are scraped for, the catalogue explains.
fn every_name_is_in_the_catalogue(prometheus: &Prometheus) -> Result<()> {
    let names = prometheus.ask(&["label/__name__/values"])?;
    let names = names.as_array().context("names")?;
    let known = catalogue()?;
    let ours = names
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| is_ours(name));
    let unknown: Vec<&str> = ours.filter(|name| !known.contains(*name)).collect();
    ensure!(unknown.is_empty(), "the catalogue lacks {unknown:?}");
    Ok(())
}

fn panels_show_something(prometheus: &Prometheus) -> Result<()> {
    let file = prometheus::files().join("muster-dashboard.json");
    let text = fs::read_to_string(file).context("the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard")?;
    ensure!(dashboard["uid"] == "muster-cluster", "another identity");
    let panels = dashboard["panels"].as_array().context("panels")?;
    let known = catalogue()?;
    let (mut shown, mut empty) = (0, Vec::new());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let mut series = 0;
        for target in panel["targets"].as_array().context("targets")? {
            let expression = target["expr"].as_str().context("an expression")?;
            let expression = expression
                .replace("$__rate_interval", "30s")
                .replace("$cluster", CLUSTER)
                .replace("$node", ".*");
            ensure!(!expression.contains('$'), "a variable in {expression}");
            check_names(&known, &expression)?;
            series += prometheus.query(&expression)?.len();
        }
        match series {
            0 => empty.push(&panel["title"]),
            _ => shown += 1,
        }
    }
    // Where nothing is wrong there is nothing to show of it.
    ensure!(shown >= 40, "{shown} panels show something, not {empty:?}");
    Ok(())
}

fn alerts_can_be_evaluated(prometheus: &Prometheus) -> Result<()> {
    let known = catalogue()?;
    let evaluated = || -> Result<Option<Vec<Value>>> {
        let rules = prometheus.ask(&["rules"])?;
        let groups = rules["groups"].as_array().context("groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        let rules: Vec<Value> = rules.flatten().cloned().collect();
        let waits = rules.iter().any(|rule| rule["health"] == "unknown");
        Ok((!waits).then_some(rules))
    };
    let rules = wait_until("all alerts to be evaluated", PATIENCE, evaluated)?;
    ensure!(rules.len() > 25, "{} rules", rules.len());
    for rule in rules {
        ensure!(rule["health"] == "ok", "{rule}");
        check_names(&known, rule["query"].as_str().context("an expression")?)?;
    }
    Ok(())
}

/// The names in the catalogue, with those that a histogram has.
fn catalogue() -> Result<BTreeSet<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let text = fs::read_to_string(file).context("the catalogue")?;
    let mut names = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = line.split_once('`').context("a row")?;
        names.insert(name.to_owned());
        if rest.starts_with(" | histogram") {
            names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
    }
    Ok(names)
}

fn is_ours(name: &str) -> bool {
    name.starts_with("muster_") || name.starts_with("process_")
}

/// Every metric that an expression names is one of those.
fn check_names(known: &BTreeSet<String>, expression: &str) -> Result<()> {
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let names = expression
        .split(|letter| !word(letter))
        .filter(|name| is_ours(name));
    for name in names {
        ensure!(
            known.contains(name),
            "nothing measures {name}: {expression}"
        );
    }
    Ok(())
}

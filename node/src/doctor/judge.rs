//! What follows from what is known: each rule says what is wrong, what that means, and what to do next.

use serde::{Deserialize, Serialize};

use super::facts::Site;

mod cluster;
mod node;
#[cfg(test)]
mod tests;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Machines are not served, or soon will not be.
    Error,
    /// It works, and less can go wrong than should be able to.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: `quorum`, `disk`, `relays` …; stable, for programs.
    pub check: String,
    /// On which node; absent when it concerns the cluster.
    pub node: Option<String>,
    /// What is wrong.
    pub finding: String,
    /// What that means.
    pub meaning: String,
    /// What to do next.
    pub next: String,
}

/// All that is wrong, the worst first.
pub fn judge(site: &Site) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(cluster) = &site.cluster {
        findings.extend(cluster::findings(cluster, &site.nodes));
    }
    findings.extend(site.unheard.iter().map(node::unheard));
    for node in &site.nodes {
        findings.extend(node::findings(node));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn found(
    severity: Severity,
    check: &str,
    finding: impl Into<String>,
    meaning: &str,
    next: impl Into<String>,
) -> Finding {
    Finding {
        severity,
        check: check.to_owned(),
        node: None,
        finding: finding.into(),
        meaning: meaning.to_owned(),
        next: next.into(),
    }
}

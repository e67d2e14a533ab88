//! Trying out what is to be written: no machine that can be given its texts loses that unseen.

use std::collections::BTreeSet;

use muster_storage::model::{Machine, Object, ObjectKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::App;
use crate::problem::Problem;
use crate::template::trial::{Case, Failure, Overlay, Tried, run};
use crate::template::{self, NodeView};

/// Failures that an answer tells.
const TOLD_MAX: usize = 20;

/// Whether a write is made that some machines cannot bear.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Force {
    /// `?force=true`
    #[serde(default)]
    pub force: bool,
}

/// What came of trying a write out.
#[derive(Clone, Debug)]
pub struct Report {
    tried: Tried,
    /// Machines that the write concerns.
    concerned: usize,
}

impl Report {
    /// As it is answered.
    pub fn to_value(&self) -> Value {
        json!({
            "machines": self.tried.machines,
            "of": self.concerned,
            "texts": self.tried.texts,
            "complete": self.tried.complete && self.tried.machines == self.concerned,
            "failures": told(&self.tried.failures),
        })
    }

    /// What is wrong with one of the machines; nothing if it was not tried.
    pub fn problems_of(&self, machine: &str) -> Vec<String> {
        let own = self.tried.failures.iter();
        own.filter(|failure| failure.machine == machine)
            .map(Failure::for_machine)
            .collect()
    }
}

fn told<'a>(failures: impl IntoIterator<Item = &'a Failure>) -> Vec<Value> {
    let told = failures.into_iter().take(TOLD_MAX);
    told.map(Failure::to_value).collect()
}

/// Tries out what is to be written and deleted. None when that concerns no machine.
///
/// # Errors
/// When a machine that can be given its texts could not be any more, unless that is forced.
pub async fn before_write(
    app: &App,
    written: &[Object],
    deleted: &[(ObjectKind, String)],
    Force { force }: Force,
) -> Result<Option<Report>, Problem> {
    let rendered = |kind: ObjectKind| {
        matches!(
            kind,
            ObjectKind::Template
                | ObjectKind::Bootenv
                | ObjectKind::Machine
                | ObjectKind::Profile
                | ObjectKind::Param
        )
    };
    let mut kinds = written
        .iter()
        .map(Object::kind)
        .chain(deleted.iter().map(|(kind, _)| *kind));
    if !kinds.any(rendered) {
        return Ok(None);
    }
    let (cases, concerned) = {
        let cases = Cases::new(app);
        app.cluster.read(|state| {
            let overlay = Overlay::new(state, written, deleted);
            let (machines, count) = overlay.concerned();
            (cases.of(&overlay, machines), count)
        })
    };
    if cases.is_empty() {
        return Ok(None);
    }
    let tried = try_out(cases).await;
    let failing: BTreeSet<&str> = tried
        .failures
        .iter()
        .map(|failure| failure.machine.as_str())
        .collect();
    if !failing.is_empty() && !force {
        let broken = broken(app, &failing).await;
        let failures = tried.failures.iter();
        let failures: Vec<&Failure> = failures
            .filter(|failure| broken.contains(&failure.machine))
            .collect();
        if let Some(first) = failures.first() {
            let others = match broken.len() - 1 {
                0 => String::new(),
                count => format!(" and {count} others"),
            };
            let detail = format!(
                "machine `{}`{others} could not be given its texts any more: {}: {}; mend it, or \
                 write it all the same with force",
                first.machine, first.place, first.problem
            );
            return Err(Problem::new("unrenderable", detail).with("failures", told(failures)));
        }
    }
    Ok(Some(Report { tried, concerned }))
}

/// Which of these machines can be given their texts as long as nothing is written.
async fn broken(app: &App, failing: &BTreeSet<&str>) -> BTreeSet<String> {
    let cases = Cases::new(app);
    let (cases, mut well) = app.cluster.read(|state| {
        let machines: Vec<&Machine> = failing
            .iter()
            .filter_map(|name| state.machine(name))
            .filter(|machine| {
                state
                    .problems(&Object::Machine((*machine).clone()))
                    .is_empty()
            })
            .collect();
        let names = machines.iter().map(|machine| machine.name.clone());
        let well: BTreeSet<String> = names.collect();
        (cases.of(&Overlay::none(state), machines), well)
    });
    let tried = try_out(cases).await;
    for failure in &tried.failures {
        well.remove(&failure.machine);
    }
    well
}

/// What is wrong with the texts of a machine as it is; nothing if that cannot be told now.
pub async fn problems_of(app: &App, machine: &str) -> Vec<String> {
    let cases = Cases::new(app);
    let cases = app.cluster.read(|state| {
        let machine = state.machine(machine);
        cases.of(&Overlay::none(state), machine.into_iter().collect())
    });
    if cases.is_empty() {
        return Vec::new();
    }
    let tried = try_out(cases).await;
    tried.failures.iter().map(Failure::for_machine).collect()
}

/// What cases are made with.
struct Cases {
    node: NodeView,
    nodes: Vec<NodeView>,
    keyring: Option<muster_raft::Keyring>,
}

impl Cases {
    fn new(app: &App) -> Self {
        let (node, nodes) = template::nodes(&app.cluster);
        Self {
            node,
            nodes,
            keyring: app.cluster.keyring().ok(),
        }
    }

    fn of(&self, overlay: &Overlay<'_>, machines: Vec<&Machine>) -> Vec<Case> {
        let keyring = self.keyring.as_ref();
        machines
            .into_iter()
            .filter_map(|machine| overlay.case(machine, &self.node, &self.nodes, keyring))
            .collect()
    }
}

/// Renders; without a turn in time nothing was tried.
async fn try_out(cases: Vec<Case>) -> Tried {
    if cases.is_empty() {
        return Tried::done();
    }
    template::on_pool(|| run(cases)).await.unwrap_or_default()
}

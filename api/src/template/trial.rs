//! What machines would get, tried out: before a write, so that it breaks none, and when a machine is
//! looked at or boots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use muster_raft::Keyring;
use muster_storage::State;
use muster_storage::model::{Bootenv, Machine, Object, ObjectKind, Param, Profile};
use muster_storage::state::{GLOBAL, resolve};
use serde_json::{Value, json};

use super::{Job, NodeView, Problem, RenderContext, Sources};
use crate::machine_token;
use crate::options::is_template;

/// Machines for which a write is tried out at most; the first of those that it concerns, by name.
pub const MACHINES_MAX: usize = 50;

/// Machines that are looked at to find those that a write concerns.
const LOOKED_AT_MAX: usize = 100_000;

/// How long trying out a write may take.
const BUDGET: Duration = Duration::from_millis(1500);

/// A text that a machine gets, and where.
#[derive(Debug)]
struct Text {
    /// `kernel_args`, `files.PATH`, `options.NUMBER`.
    place: String,
    job: Job,
}

/// All texts of a machine.
#[derive(Debug)]
pub struct Case {
    /// Its name.
    machine: String,
    texts: Vec<Text>,
}

impl Case {
    /// Of its texts, the files.
    #[must_use]
    pub fn files(mut self) -> Self {
        self.texts.retain(|text| text.place.starts_with(FILES));
        self
    }
}

/// Begins the place of a file.
const FILES: &str = "files.";

/// A text that a machine cannot be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The machine.
    pub machine: String,
    /// Which text: `kernel_args`, `files.PATH`, `options.NUMBER`.
    pub place: String,
    /// Why.
    pub problem: Problem,
    /// Whether the text may have secrets in it.
    pub has_secrets: bool,
}

impl Failure {
    /// For programs.
    pub fn to_value(&self) -> Value {
        let Problem {
            template,
            line,
            column,
            param,
            message,
            ..
        } = &self.problem;
        json!({
            "machine": self.machine, "place": self.place, "template": template, "line": line,
            "column": column, "param": param, "message": message,
        })
    }

    /// As a problem of the machine, which everybody may read.
    pub fn for_machine(&self) -> String {
        let problem = self.problem.clone().told_to_all(self.has_secrets);
        format!("{}: {problem}", self.place)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "machine `{}`, {}: {}",
            self.machine, self.place, self.problem
        )
    }
}

/// Objects that are to be written or deleted, over a state.
pub struct Overlay<'a> {
    state: &'a State,
    changed: BTreeMap<(ObjectKind, String), Option<&'a Object>>,
    sources: Sources,
}

impl<'a> Overlay<'a> {
    /// A state as it is.
    pub fn none(state: &'a State) -> Self {
        Self {
            state,
            changed: BTreeMap::new(),
            sources: Sources::of(state),
        }
    }

    /// A state as it would be with these objects, and without those.
    pub fn new(state: &'a State, written: &'a [Object], deleted: &[(ObjectKind, String)]) -> Self {
        let written = written
            .iter()
            .map(|object| ((object.kind(), object.key()), Some(object)));
        let deleted = deleted.iter().map(|key| (key.clone(), None));
        let changed: BTreeMap<_, _> = written.chain(deleted).collect();
        let templates = changed
            .iter()
            .filter(|((kind, _), _)| *kind == ObjectKind::Template);
        let templates = templates.map(|((_, name), object)| (name.as_str(), *object));
        Self {
            state,
            sources: Sources::of(state).with(templates),
            changed,
        }
    }

    fn object(&self, kind: ObjectKind, key: &str) -> Option<&'a Object> {
        match self.changed.get(&(kind, key.to_owned())) {
            Some(changed) => *changed,
            None => Some(&self.state.object(kind, key)?.object),
        }
    }

    fn profile(&self, name: &str) -> Option<&'a Profile> {
        match self.object(ObjectKind::Profile, name)? {
            Object::Profile(profile) => Some(profile),
            _ => None,
        }
    }

    fn bootenv(&self, name: &str) -> Option<&'a Bootenv> {
        match self.object(ObjectKind::Bootenv, name)? {
            Object::Bootenv(bootenv) => Some(bootenv),
            _ => None,
        }
    }

    fn declared(&self) -> impl Iterator<Item = &'a Param> {
        let known = self.state.declared().filter(|param| {
            let key = (ObjectKind::Param, param.name.clone());
            self.changed.is_empty() || !self.changed.contains_key(&key)
        });
        let written = self.changed.values().filter_map(|object| match object {
            Some(Object::Param(param)) => Some(param),
            _ => None,
        });
        known.chain(written)
    }

    /// All texts that a machine would get; no machine without texts.
    pub fn case(
        &self,
        machine: &Machine,
        node: &NodeView,
        nodes: &[NodeView],
        keyring: Option<&Keyring>,
    ) -> Option<Case> {
        let bootenv = self.bootenv(&machine.bootenv);
        let options = machine
            .options
            .iter()
            .filter(|(_, value)| is_template(value));
        let args = bootenv.map(|bootenv| bootenv.kernel_args.as_str());
        let args = args.filter(|args| args.contains('{'));
        let files = bootenv.map(|bootenv| &bootenv.files);
        if args.is_none() && files.is_none_or(Vec::is_empty) && options.clone().next().is_none() {
            return None;
        }
        let context = RenderContext {
            machine: Some(machine),
            node: node.clone(),
            nodes: nodes.to_vec(),
            token: Some(machine_token::HIDDEN.to_owned()),
        };
        let params = resolve(Some(machine), |name| self.profile(name), self.declared());
        let seen = context.seen(self.state, params).with_address();
        let public = |text: &str| seen.text(&self.sources, text);
        let mut texts = Vec::new();
        texts.extend(args.map(|args| Text {
            place: "kernel_args".to_owned(),
            job: public(args),
        }));
        // That a template does not exist is told without rendering it.
        let files = files.into_iter().flatten();
        let files = files.filter(|file| self.sources.text(&file.template).is_some());
        texts.extend(files.map(|file| {
            let job = seen.named(&self.sources, &file.template);
            Text {
                place: format!("{FILES}{}", file.path),
                job: match keyring {
                    Some(keyring) => job.with_secrets(keyring.clone()),
                    None => job,
                },
            }
        }));
        texts.extend(options.map(|(option, value)| Text {
            place: format!("options.{option}"),
            job: public(value),
        }));
        Some(Case {
            machine: machine.name.clone(),
            texts,
        })
    }

    /// A template by name, for a machine.
    pub fn template(
        &self,
        machine: &Machine,
        node: NodeView,
        nodes: Vec<NodeView>,
        name: &str,
    ) -> Job {
        let context = RenderContext {
            machine: Some(machine),
            node,
            nodes,
            token: Some(machine_token::HIDDEN.to_owned()),
        };
        let params = resolve(Some(machine), |name| self.profile(name), self.declared());
        context.seen(self.state, params).named(&self.sources, name)
    }

    /// The machines that what changes concerns, the first of them, and how many there are.
    pub fn concerned(&self) -> (Vec<&'a Machine>, usize) {
        let mut whose = Whose::default();
        let mut own = BTreeMap::new();
        for ((kind, key), object) in &self.changed {
            match (kind, object) {
                (ObjectKind::Machine, Some(Object::Machine(machine))) => {
                    own.insert(machine.name.as_str(), machine);
                }
                (ObjectKind::Profile, _) if key == GLOBAL => whose.all = true,
                (ObjectKind::Profile, _) => {
                    whose.profiles.insert(key);
                }
                (ObjectKind::Param, _) => whose.all = true,
                (ObjectKind::Bootenv, _) => {
                    whose.bootenvs.insert(key);
                }
                (ObjectKind::Template, _) => {
                    whose.templates.insert(key);
                }
                _ => {}
            }
        }
        let mut found: Vec<&Machine> = own.values().copied().take(MACHINES_MAX).collect();
        let mut count = own.len();
        if whose.is_nobody() {
            return (found, count);
        }
        let templates = self.sources.mentioning(&whose.templates);
        let reaches = |bootenv: &Bootenv| {
            whose.bootenvs.contains(bootenv.name.as_str())
                || bootenv
                    .files
                    .iter()
                    .any(|file| templates.contains(file.template.as_str()))
                || templates
                    .iter()
                    .any(|name| mentions(&bootenv.kernel_args, name))
        };
        let bootenvs: BTreeSet<&str> = self
            .state
            .objects_after(ObjectKind::Bootenv, None)
            .filter_map(|record| self.bootenv(&record.object.key()))
            .filter(|bootenv| reaches(bootenv))
            .map(|bootenv| bootenv.name.as_str())
            .chain(whose.bootenvs.iter().copied())
            .collect();
        let machines = self.state.objects_after(ObjectKind::Machine, None);
        for record in machines.take(LOOKED_AT_MAX) {
            let Object::Machine(machine) = &record.object else {
                continue;
            };
            let profile = |name: &String| whose.profiles.contains(name.as_str());
            let concerned = whose.all
                || bootenvs.contains(machine.bootenv.as_str())
                || machine.profiles.iter().any(profile);
            let texts = || {
                self.bootenv(&machine.bootenv).is_some_and(|bootenv| {
                    !bootenv.files.is_empty() || bootenv.kernel_args.contains('{')
                }) || !machine.options.is_empty()
            };
            if concerned && !own.contains_key(machine.name.as_str()) && texts() {
                count += 1;
                if found.len() < MACHINES_MAX {
                    found.push(machine);
                }
            }
        }
        (found, count)
    }
}

/// Whose texts change.
#[derive(Default)]
struct Whose<'a> {
    all: bool,
    profiles: BTreeSet<&'a str>,
    bootenvs: BTreeSet<&'a str>,
    templates: BTreeSet<&'a str>,
}

impl Whose<'_> {
    fn is_nobody(&self) -> bool {
        !self.all
            && self.profiles.is_empty()
            && self.bootenvs.is_empty()
            && self.templates.is_empty()
    }
}

/// Whether a text may include or extend a template: its name stands there in quotes.
pub(super) fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let quote = |c: Option<char>| c.is_some_and(|c| matches!(c, '"' | '\'' | '`'));
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text
            .get(at + name.len()..)
            .and_then(|text| text.chars().next());
        quote(before) && quote(after)
    })
}

/// What came of trying texts out.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// Machines that were tried.
    pub machines: usize,
    /// Texts that were rendered.
    pub texts: usize,
    /// Those that cannot be.
    pub failures: Vec<Failure>,
    /// Whether there was time for all.
    pub complete: bool,
}

impl Tried {
    /// That there was nothing to try.
    pub fn done() -> Self {
        Self {
            complete: true,
            ..Self::default()
        }
    }
}

/// Renders all texts of these machines, for as long as there is time. Not for an async task.
pub fn run(cases: Vec<Case>) -> Tried {
    run_with(cases, Vec::new()).0
}

/// The same, and other texts with those of the first machine.
pub fn run_with(cases: Vec<Case>, mut others: Vec<Job>) -> (Tried, Vec<Result<String, Problem>>) {
    let began = Instant::now();
    let mut tried = Tried::done();
    let mut rendered = Vec::new();
    for case in cases {
        if began.elapsed() > BUDGET {
            tried.complete = false;
            break;
        }
        let (about, own): (Vec<_>, Vec<_>) = case
            .texts
            .into_iter()
            .map(|text| ((text.place, text.job.has_secrets()), text.job))
            .unzip();
        let mut jobs = std::mem::take(&mut others);
        let count = jobs.len();
        jobs.extend(own);
        let mut texts = super::run_all(jobs);
        let own = texts.split_off(count);
        rendered.extend(texts);
        tried.machines += 1;
        for (text, (place, has_secrets)) in own.into_iter().zip(about) {
            match text {
                Err(problem) if problem.unreached => tried.complete = false,
                Err(problem) => tried.failures.push(Failure {
                    machine: case.machine.clone(),
                    place,
                    problem,
                    has_secrets,
                }),
                Ok(_) => {}
            }
            tried.texts += 1;
        }
    }
    rendered.extend(super::run_all(others));
    (tried, rendered)
}

//! Compiling a set of templates in which some may be bad.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use muster_storage::model::{Object, ObjectKind, Record};
use muster_storage::{Revision, State, Timestamp};
use serde::{Deserialize, Serialize};
use tera::{Context, ErrorKind, Tera};

use super::context::PARAMS;
use super::{SharedSet, engine, limits, trial};

/// What is wrong with a template, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Problem {
    /// The template, when it has a name.
    pub template: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// The param that has no value.
    pub param: Option<String>,
    /// Whether it says nothing of this text, but that others took the time that there was for it.
    #[serde(default)]
    pub unreached: bool,
    /// Octets of the text that are meant.
    pub(super) range: Option<Box<Range<usize>>>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(template) = &self.template {
            write!(f, "template `{template}`: ")?;
        }
        if let Some(line) = self.line {
            write!(f, "line {line}")?;
            if let Some(column) = self.column {
                write!(f, ", column {column}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

/// Name that the engine gives to a text without one.
const NAMELESS: &str = "__tera_one_off";

impl Problem {
    pub(super) fn message(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    /// As everybody may read it: what the engine says quotes values, which may be secrets.
    #[must_use]
    pub fn told_to_all(self, has_secrets: bool) -> Self {
        match has_secrets && self.param.is_none() {
            true => Self {
                message: "it fails, and why is not told here, for the secrets that are in it: \
                          `muster render` tells"
                    .to_owned(),
                ..self
            },
            false => self,
        }
    }

    fn about(template: &str, message: impl Into<String>) -> Self {
        Self {
            template: Some(template.to_owned()).filter(|name| name != NAMELESS),
            ..Self::message(message)
        }
    }

    pub(super) fn from_tera(error: &tera::Error) -> Self {
        match error.kind() {
            ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => Self {
                line: Some(report.span().start_line),
                column: Some(report.span().start_col + 1),
                range: Some(Box::new(report.span().range.clone())),
                ..Self::about(report.filename(), report.message())
            },
            ErrorKind::Msg(text) => Self::from_report(text),
            ErrorKind::CircularExtend { tpl, .. } => Self::about(tpl, "extends itself"),
            ErrorKind::CircularInclude { tpl, .. } => Self::about(tpl, "includes itself"),
            ErrorKind::MissingParent { current, parent } => {
                Self::about(current, format!("extends `{parent}`, which does not exist"))
            }
            other => Self::message(other.to_string()),
        }
    }

    /// With the expression that is meant, out of the text that it stands in; and if that is a param
    /// without a value, why it has none, as far as `lacking` tells.
    pub(super) fn explained(
        mut self,
        text: Option<&str>,
        lacking: &BTreeMap<String, &'static str>,
    ) -> Self {
        let range = self.range.take();
        let Some(expression) = text
            .zip(range)
            .and_then(|(text, range)| path_at(text, &range))
        else {
            return self;
        };
        if expression.is_empty() || expression.len() > EXPRESSION_MAX {
            return self;
        }
        self.message = format!("`{expression}`: {}", self.message);
        if self.message.contains("defined")
            && let Some(name) = param_in(expression)
        {
            if let Some(why) = lacking.get(name) {
                let _ = write!(self.message, "; param `{name}` {why}");
            }
            self.param = Some(name.to_owned());
        }
        self
    }

    /// The first of the reports `error: MESSAGE\n --> FILE:LINE:COLUMN\n …` that the engine writes
    /// about names it does not know.
    fn from_report(text: &str) -> Self {
        let message = text.lines().next().unwrap_or(text);
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let place = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("--> "));
        let mut parts = place.unwrap_or_default().rsplitn(3, ':');
        let column = parts.next().and_then(|part| part.parse().ok());
        let line = parts.next().and_then(|part| part.parse().ok());
        Self {
            line,
            column,
            ..Self::about(parts.next().unwrap_or(NAMELESS), message)
        }
    }
}

/// Longest expression that is quoted, in octets.
const EXPRESSION_MAX: usize = 200;

/// The expression that is meant, with the path to what is the last part of one.
fn path_at<'a>(text: &'a str, range: &Range<usize>) -> Option<&'a str> {
    let before = text.get(..range.start)?;
    let path = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let start = before.trim_end_matches(path).len();
    Some(text.get(start..range.end)?.trim())
}

/// The name of the param in `params.NAME…` or `params["NAME"]…`.
fn param_in(expression: &str) -> Option<&str> {
    let rest = expression.strip_prefix(PARAMS)?;
    let (rest, end): (_, fn(char) -> bool) = match rest.strip_prefix('.') {
        Some(rest) => (rest, |c| !(c.is_alphanumeric() || c == '_')),
        None => {
            let rest = rest.strip_prefix('[')?.trim_start();
            (rest.strip_prefix(['"', '\''])?, |c| c == '"' || c == '\'')
        }
    };
    let name = rest.split(end).next()?;
    Some(name).filter(|name| !name.is_empty())
}

/// The templates of a state at one moment; cheap to take.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Vec<Arc<Record<Object>>>>);

impl Sources {
    /// All templates of `state`.
    pub fn of(state: &State) -> Self {
        let templates = state.objects_after(ObjectKind::Template, None);
        Self(Arc::new(templates.cloned().collect()))
    }

    /// How long each is, in octets.
    pub(crate) fn lengths(&self) -> BTreeMap<&str, usize> {
        let texts = self.texts();
        texts.map(|(name, text)| (name, text.len())).collect()
    }

    /// These templates with some written, or taken away where there is no object.
    pub(super) fn with<'a>(
        self,
        changed: impl Iterator<Item = (&'a str, Option<&'a Object>)>,
    ) -> Self {
        let changed: BTreeMap<_, _> = changed.collect();
        if changed.is_empty() {
            return self;
        }
        let stays = |record: &Arc<Record<Object>>| match &record.object {
            Object::Template(template) => !changed.contains_key(template.name.as_str()),
            _ => false,
        };
        let mut records = Arc::unwrap_or_clone(self.0);
        records.retain(stays);
        records.extend(changed.values().flatten().map(|object| {
            Arc::new(Record {
                revision: Revision::default(),
                created_at: Timestamp::default(),
                updated_at: Timestamp::default(),
                object: (*object).clone(),
            })
        }));
        Self(Arc::new(records))
    }

    /// The templates of these names, and those that may include or extend one of them.
    pub(super) fn mentioning(&self, names: &BTreeSet<&str>) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut new: Vec<String> = found.iter().cloned().collect();
        while let Some(name) = new.pop() {
            for (by, text) in self.texts() {
                if !found.contains(by) && trial::mentions(text, &name) {
                    found.insert(by.to_owned());
                    new.push(by.to_owned());
                }
            }
        }
        found
    }

    /// These templates, compiled. The last set is kept, as templates change rarely.
    pub fn compiled(&self) -> SharedSet {
        // The records are kept alive by the cache, so equal pointers are equal templates.
        static LAST: Mutex<Option<(Sources, SharedSet)>> = Mutex::new(None);
        let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((sources, set)) = &*last()
            && sources.same(self)
        {
            return Arc::clone(set);
        }
        let set = Arc::new(Compiled::new(self.texts()));
        *last() = Some((self.clone(), Arc::clone(&set)));
        set
    }

    /// These templates with others added or put in their place, compiled.
    pub fn compiled_with<'a>(
        &'a self,
        others: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Compiled {
        let mut texts: BTreeMap<_, _> = self.texts().collect();
        texts.extend(others);
        Compiled::new(texts)
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        let equal = |(a, b)| Arc::ptr_eq(a, b);
        Arc::ptr_eq(&self.0, &other.0)
            || self.0.len() == other.0.len() && self.0.iter().zip(&*other.0).all(equal)
    }

    /// A template's text by name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.texts()
            .find(|(known, _)| *known == name)
            .map(|(_, text)| text)
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|record| match &record.object {
            Object::Template(template) => {
                Some((template.name.as_str(), template.contents.as_str()))
            }
            _ => None,
        })
    }
}

/// A set of templates of which some may be bad.
#[derive(Debug, Default)]
pub struct Compiled {
    tera: Tera,
    bad: BTreeMap<String, Problem>,
}

impl Compiled {
    /// Compiles what compiles; a template that is bad, or includes a bad one, is set aside.
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut good: BTreeMap<&str, &str> = texts.into_iter().collect();
        let mut bad = BTreeMap::new();
        good.retain(|name, text| match limits::check(text) {
            Ok(()) => true,
            Err(problem) => {
                let template = Some((*name).to_owned());
                bad.insert(
                    (*name).to_owned(),
                    Problem {
                        template,
                        ..problem
                    },
                );
                false
            }
        });
        loop {
            match add_all(good.iter()) {
                Ok(tera) => return Self { tera, bad },
                Err(problem) => {
                    let named = problem.template.clone().unwrap_or_default();
                    let culprit = match good.contains_key(named.as_str()) {
                        true => named,
                        // The engine did not say who: each template on its own tells.
                        false => match culprit(&good) {
                            Some(name) => name,
                            None => {
                                return Self {
                                    tera: engine(),
                                    bad,
                                };
                            }
                        },
                    };
                    good.remove(culprit.as_str());
                    bad.insert(culprit, problem);
                }
            }
        }
    }

    /// Why a template cannot be used; nothing when it can, or does not exist.
    pub fn problem(&self, name: &str) -> Option<&Problem> {
        self.bad.get(name)
    }

    /// Why a text that may include templates cannot be used.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn check_text(&self, text: &str) -> Result<(), Problem> {
        limits::check(text)?;
        let mut tera = self.tera.clone();
        guarded(|| tera.add_raw_template(NAMELESS, text))
    }

    pub(super) fn render(
        &self,
        name: &str,
        context: &Context,
        to: &mut impl Write,
    ) -> Result<(), Problem> {
        if let Some(problem) = self.bad.get(name) {
            return Err(problem.clone());
        }
        if !self.tera.contains_template(name) {
            return Err(Problem::about(name, "does not exist"));
        }
        self.tera
            .render_to(name, context, to)
            .map_err(|error| Problem::from_tera(&error))
    }

    pub(super) fn render_text(
        &self,
        text: &str,
        context: &Context,
        to: &mut impl Write,
    ) -> Result<(), Problem> {
        limits::check(text)?;
        self.tera
            .render_str_to(text, context, false, to)
            .map_err(|error| Problem::from_tera(&error))
    }
}

/// Checks the syntax of one template on its own, and that the filters and functions it names exist.
///
/// # Errors
/// When it does not compile; the first problem, with its place.
pub fn compile(name: &str, text: &str) -> Result<(), Problem> {
    let set = Compiled::new([(name, text)]);
    match set.bad.into_values().next() {
        Some(problem) => Err(problem),
        None => Ok(()),
    }
}

fn add_all<'a>(texts: impl Iterator<Item = (&'a &'a str, &'a &'a str)>) -> Result<Tera, Problem> {
    let mut tera = engine();
    guarded(|| tera.add_raw_templates(texts))?;
    Ok(tera)
}

/// A template that does not even compile beside those before it.
fn culprit(texts: &BTreeMap<&str, &str>) -> Option<String> {
    let mut tera = engine();
    texts
        .iter()
        .find(|(name, text)| guarded(|| tera.add_raw_template(name, text)).is_err())
        .map(|(name, _)| (*name).to_owned())
}

/// The engine is given text that people wrote: a fault in it must cost this template only.
fn guarded(compile: impl FnOnce() -> tera::TeraResult<()>) -> Result<(), Problem> {
    catch_unwind(AssertUnwindSafe(compile))
        .map_err(|_| Problem::message("the template engine failed on it"))?
        .map_err(|error| Problem::from_tera(&error))
}

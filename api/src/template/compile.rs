//! Compiling a set of templates in which some may be bad.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use muster_storage::State;
use muster_storage::model::{Object, ObjectKind, Record};
use tera::{Context, ErrorKind, Tera};

use super::{SharedSet, engine, limits};

/// What is wrong with a template, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The template, when it has a name.
    pub template: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
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

/// The templates of a state at one moment; cheap to take.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Arc<Record<Object>>>);

impl Sources {
    /// All templates of `state`.
    pub fn of(state: &State) -> Self {
        Self(
            state
                .objects_after(ObjectKind::Template, None)
                .cloned()
                .collect(),
        )
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

    fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|record| match &record.object {
            Object::Template(template) => {
                Some((template.name.as_str(), template.contents.as_str()))
            }
            _ => None,
        })
    }
}

/// A set of templates of which some may be bad.
#[derive(Debug)]
pub struct Compiled {
    tera: Tera,
    bad: BTreeMap<String, Problem>,
}

impl Compiled {
    /// Compiles what compiles; a template that is bad, or includes a bad one, is set aside.
    fn new<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
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

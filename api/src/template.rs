//! Templates: compiled on write, rendered on read, never part of what is replicated.
//!
//! Templates see the machine, the nodes and the params, and nothing else: no environment, no
//! clock, no chance. One that does not compile is set aside with the reason; the rest work.
//!
//! What they may take is bounded: two loops within each other in one template, [`RANGE_MAX`] numbers
//! to loop over, no variable that outlives its loop, [`OUTPUT_MAX`] octets of text, and two renderings
//! at a time on a node. What gets around that, by loops that include others or by a variable that is
//! doubled again and again, ends with the process that it is rendered in: see [`isolate`].

mod compile;
mod context;
mod limits;
pub mod trial;
mod worker;

pub use compile::{Compiled, Problem, Sources, compile};
pub use context::{NodeView, RenderContext, nodes};
pub use worker::{COMMAND as WORKER_COMMAND, isolate, work};

use context::{PARAMS, Seen};

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use muster_raft::Keyring;
use muster_storage::State;
use muster_storage::model::Machine;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

/// Longest rendered text, in octets: machines fetch it into memory, and it is made in ours.
pub const OUTPUT_MAX: usize = 4 << 20;

/// Longest template, in octets.
pub const TEMPLATE_MAX: usize = 1 << 20;

/// Octets of all templates together: all are compiled for whichever is rendered.
pub const TEMPLATES_MAX: usize = 8 << 20;

/// Numbers that all `range()` calls of one rendering may give. With the depth to which loops may be
/// nested it bounds how often a loop over them turns.
pub const RANGE_MAX: u64 = 10_000;

/// Renderings that run at a time, for whomever: a slow template must not take the node's cores.
const TURNS_MAX: usize = 2;

/// How long a text is waited for. What takes longer goes on, and keeps its turn, until it ends.
const WAIT: Duration = Duration::from_secs(2);

static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(TURNS_MAX)));

/// Does what renders on a thread of the pool that all who render share.
///
/// # Errors
/// When it takes too long, or its turn does not come.
pub async fn on_pool<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let failed = || Problem::message("the rendering thread failed");
    let rendered = async {
        let turn = Arc::clone(&TURNS).acquire_owned().await;
        let turn = turn.map_err(|_| failed())?;
        // Held by the thread: that nobody waits any more does not end the work.
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        working.await.map_err(|_| failed())
    };
    tokio::time::timeout(WAIT, rendered)
        .await
        .unwrap_or_else(|_| {
            Err(Problem::message(format!(
                "there is no text after {} s: it, or what is rendered before it, takes too long",
                WAIT.as_secs()
            )))
        })
}

thread_local! {
    /// What is left of [`RANGE_MAX`] for the rendering that runs on this thread.
    static RANGE_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Renders a template by name, as `machine` gets it from `node`.
///
/// # Errors
/// When the template does not exist or compile, names what is not there, or writes too much.
pub fn render(state: &State, context: &RenderContext<'_>, name: &str) -> Result<String, Problem> {
    Job::named(state, context, name).run()
}

/// Renders a text that may include templates: kernel arguments, values of DHCP options.
///
/// # Errors
/// As [`render`].
pub fn render_text(
    state: &State,
    context: &RenderContext<'_>,
    text: &str,
) -> Result<String, Problem> {
    Job::text(state, context, text).run()
}

/// The params of a machine with the values of secrets, except those that do not open.
pub fn params(state: &State, machine: &Machine, keyring: &Keyring) -> Map<String, Value> {
    let (mut params, secrets) = context::split(state.params(Some(machine)));
    for secret in secrets {
        if let Some(value) = secret.open(keyring) {
            params.insert(secret.name, value);
        }
    }
    params
}

/// A rendering with all that it needs taken out of the state, so that it can run elsewhere: a slow
/// template must not hold up those who write.
#[derive(Debug)]
pub struct Job {
    sources: Sources,
    seen: Seen,
    /// Opens the secrets, for those texts that may have some.
    keyring: Option<Keyring>,
    what: What,
}

impl Seen {
    fn named(&self, sources: &Sources, name: &str) -> Job {
        self.job(sources, What::Named(name.to_owned()))
    }

    fn text(&self, sources: &Sources, text: &str) -> Job {
        self.job(sources, What::Text(text.to_owned()))
    }

    fn job(&self, sources: &Sources, what: What) -> Job {
        Job {
            sources: sources.clone(),
            seen: self.clone(),
            keyring: None,
            what,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    Named(String),
    Text(String),
}

impl Job {
    /// A template by name.
    pub fn named(state: &State, context: &RenderContext<'_>, name: &str) -> Self {
        let seen = context.seen(state, state.params(context.machine));
        seen.named(&Sources::of(state), name)
    }

    /// A text that may include templates.
    pub fn text(state: &State, context: &RenderContext<'_>, text: &str) -> Self {
        // Most kernel arguments and options have nothing to render.
        let sources = if text.contains('{') {
            Sources::of(state)
        } else {
            Sources::default()
        };
        let seen = context.seen(state, state.params(context.machine));
        seen.text(&sources, text)
    }

    /// Whether the machine has params that are secrets.
    pub fn has_secrets(&self) -> bool {
        !self.seen.secrets.is_empty()
    }

    /// The same, for eyes that may see secrets: without this, there are none for the template.
    #[must_use]
    pub fn with_secrets(self, keyring: Keyring) -> Self {
        Self {
            keyring: Some(keyring),
            ..self
        }
    }

    /// Renders. Takes as long as the template wants: not for an async task.
    ///
    /// # Errors
    /// As [`render`].
    pub fn run(self) -> Result<String, Problem> {
        let rendered = run_all(vec![self]).pop();
        rendered.unwrap_or_else(|| Err(Problem::message("there was nothing to render")))
    }

    /// Whether it is a text without anything to render.
    fn plain(&self) -> Option<&str> {
        match &self.what {
            What::Text(text) if !text.contains('{') => Some(text),
            What::Text(_) | What::Named(_) => None,
        }
    }

    /// Puts the secrets into the context, if they may be seen. Why, if there are some that are not
    /// there: a template that does without them is rendered.
    fn open_secrets(&mut self) -> BTreeMap<String, &'static str> {
        let mut lacking = BTreeMap::new();
        for secret in std::mem::take(&mut self.seen.secrets) {
            let Some(keyring) = &self.keyring else {
                lacking.insert(secret.name, "is secure, and this text is for everybody");
                continue;
            };
            let variables = Arc::make_mut(&mut self.seen.variables);
            match (secret.open(keyring), variables.get_mut(PARAMS)) {
                (Some(value), Some(params)) => params[&secret.name] = value,
                _ => {
                    lacking.insert(secret.name, "is sealed, and does not open: write it anew");
                }
            }
        }
        lacking
    }

    /// The text that a problem is in.
    fn text_of(&self, problem: &Problem) -> Option<&str> {
        match (&problem.template, &self.what) {
            (Some(name), _) => self.sources.text(name),
            (None, What::Text(text)) => Some(text),
            (None, What::Named(_)) => None,
        }
    }
}

/// Renders all of them, at once as far as they are of the same templates. Not for an async task.
pub fn run_all(mut jobs: Vec<Job>) -> Vec<Result<String, Problem>> {
    let lacking: Vec<_> = jobs.iter_mut().map(Job::open_secrets).collect();
    let mut rendered = Vec::with_capacity(jobs.len());
    for group in jobs.chunk_by(|a, b| a.sources.same(&b.sources)) {
        let wanted: Vec<_> = group
            .iter()
            .filter(|job| job.plain().is_none())
            .map(|job| (&*job.seen.variables, &job.what))
            .collect();
        let Some(sources) = group.first().map(|job| &job.sources) else {
            continue;
        };
        let texts = match wanted.is_empty() {
            true => Vec::new(),
            false => worker::render(sources, &wanted).unwrap_or_else(|| {
                let compiled = sources.compiled();
                let wanted = wanted.iter();
                wanted
                    .map(|(seen, what)| render_here(&compiled, seen, what))
                    .collect()
            }),
        };
        let mut texts = texts.into_iter();
        rendered.extend(group.iter().map(|job| {
            match job.plain() {
                Some(text) => Ok(text.to_owned()),
                None => texts
                    .next()
                    .unwrap_or_else(|| Err(Problem::message("it was not rendered"))),
            }
        }));
    }
    let explained = rendered.into_iter().zip(&jobs).zip(&lacking);
    explained
        .map(|((rendered, job), lacking)| {
            rendered.map_err(|problem| {
                let text = job.text_of(&problem);
                problem.explained(text, lacking)
            })
        })
        .collect()
}

/// Renders in this process, for as long and with as much memory as that takes.
fn render_here(compiled: &Compiled, context: &Value, what: &What) -> Result<String, Problem> {
    let context =
        tera::Context::from_serialize(context).map_err(|error| Problem::from_tera(&error))?;
    let mut output = Limited(Vec::new());
    RANGE_LEFT.set(RANGE_MAX);
    // The engine is given text that people wrote: a fault in it must cost this answer only.
    let result = catch_unwind(AssertUnwindSafe(|| match what {
        What::Named(name) => compiled.render(name, &context, &mut output),
        What::Text(text) => compiled.render_text(text, &context, &mut output),
    }))
    .unwrap_or_else(|_| Err(Problem::message("the template engine failed on it")));
    match result {
        Ok(()) => String::from_utf8(output.0)
            .map_err(|_| Problem::message("the rendered text is not UTF-8")),
        Err(_) if output.0.len() > OUTPUT_MAX => Err(Problem::message(format!(
            "the rendered text is longer than {OUTPUT_MAX} octets"
        ))),
        Err(problem) => Err(problem),
    }
}

/// Takes one octet more than allowed, and then fails.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (OUTPUT_MAX + 1).saturating_sub(self.0.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.0.extend_from_slice(taken);
        if taken.len() < bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What templates may call: Tera's own, with `range` on a budget, and `json`.
fn engine() -> tera::Tera {
    let mut tera = tera::Tera::new();
    tera.autoescape_on(Vec::<String>::new());
    tera.register_function("range", range);
    tera.register_filter("json", json);
    tera
}

fn range(arguments: tera::Kwargs, _: &tera::State<'_>) -> tera::TeraResult<Vec<i64>> {
    let start = arguments.get::<i64>("start")?.unwrap_or_default();
    let end = arguments.must_get::<i64>("end")?;
    let step = arguments.get::<i64>("step_by")?.unwrap_or(1);
    let span = if step > 0 {
        end.checked_sub(start)
    } else {
        start.checked_sub(end)
    };
    let (Some(span), Some(step_size @ 1..)) = (span, step.checked_abs()) else {
        return Err(tera::Error::message("`range` cannot count that way"));
    };
    let count = u64::try_from(span)
        .unwrap_or(0)
        .div_ceil(step_size.unsigned_abs());
    let left = RANGE_LEFT.get();
    if count > left {
        return Err(tera::Error::message(format!(
            "all `range` calls together may give {RANGE_MAX} numbers"
        )));
    }
    RANGE_LEFT.set(left - count);
    let number = |index: u64| {
        i64::try_from(index)
            .ok()?
            .checked_mul(step)?
            .checked_add(start)
    };
    Ok((0..count).map_while(number).collect())
}

fn json(value: tera::Value, _: tera::Kwargs, _: &tera::State<'_>) -> tera::TeraResult<String> {
    serde_json::to_string(&value).map_err(|error| tera::Error::chain("cannot be JSON", error))
}

/// A shared compiled set; see [`Sources::compiled`].
type SharedSet = Arc<Compiled>;

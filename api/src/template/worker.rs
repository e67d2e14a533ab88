//! Rendering in processes of their own: a template that takes too long is ended with its process,
//! and one that takes too much memory ends its own. The engine itself counts neither.
//!
//! A worker is this program, started again; it reads orders from its standard input and writes
//! answers to its standard output, each a length of four octets, big endian, and JSON. It answers
//! with nothing when it has compiled new templates, before it renders, then with each text. An order is
//! for several texts, because going there and back takes longer than most of them.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compile::{Compiled, Problem, Sources};
use super::{OUTPUT_MAX, TURNS_MAX, What, render_here};

/// Sub-command that makes the program a worker.
pub const COMMAND: &str = "render-worker";

/// How long a text may take.
const RENDER: Duration = Duration::from_secs(1);

/// How long the texts of an order may take, together: shorter than they are waited for.
const ALL: Duration = Duration::from_millis(1700);

/// How long compiling all templates may take, which comes first when they are new to the worker.
const COMPILE: Duration = Duration::from_secs(4);

/// Memory of a worker, in octets.
const MEMORY_MAX: u64 = 256 << 20;

/// Processor time of a worker, in seconds: it ends by itself if nobody is there to end it.
const LIFE_SECS: u64 = 600;

/// Longest order and answer, in octets.
const FRAME_MAX: usize = 64 << 20;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Workers that wait for orders.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

#[derive(Serialize)]
struct Order<'a> {
    /// All templates, if they are not those of the order before.
    texts: Option<Vec<(&'a str, &'a str)>>,
    wanted: &'a [(&'a Value, &'a What)],
}

#[derive(Deserialize)]
struct Received {
    texts: Option<Vec<(String, String)>>,
    wanted: Vec<(Value, What)>,
}

/// What comes of a text.
type Rendered = Result<String, Problem>;

/// Renders in processes of `program` from now on, instead of in this one.
pub fn isolate(program: &Path) {
    let _ = PROGRAM.set(program.to_owned());
}

/// Renders in workers, each text with what it sees; nothing when that is done in this process.
pub(super) fn render(sources: &Sources, wanted: &[(&Value, &What)]) -> Option<Vec<Rendered>> {
    let program = PROGRAM.get()?;
    let end = Instant::now() + ALL;
    let mut rendered = Vec::with_capacity(wanted.len());
    while let Some(left) = wanted.get(rendered.len()..).filter(|left| !left.is_empty()) {
        let failure = match Instant::now() < end {
            true => ask(program, sources, left, end, &mut rendered),
            false => Err(Failure::Unreached),
        };
        // The text that is not there is at fault; those after it are for another worker.
        if let Err(failure) = failure {
            rendered.push(Err(failure.problem()));
        }
    }
    Some(rendered)
}

/// Asks a worker, and keeps it for the next order if it is any good still.
fn ask(
    program: &Path,
    sources: &Sources,
    wanted: &[(&Value, &What)],
    end: Instant,
    rendered: &mut Vec<Rendered>,
) -> Result<(), Failure> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let before = rendered.len();
    if let Some(mut worker) = idle {
        match worker.ask(sources, wanted, end, rendered) {
            // What it rendered for others may have left it too little memory, or it ended while it was
            // idle: that says nothing about this order.
            Err(Failure::Gone(_)) => {}
            asked => return asked.map(|()| worker.keep()),
        }
    }
    let answered = rendered.len().saturating_sub(before);
    let left = wanted.get(answered..).unwrap_or_default();
    let mut worker = Worker::start(program).map_err(Failure::Start)?;
    worker.ask(sources, left, end, rendered)?;
    worker.keep();
    Ok(())
}

/// Why there is no answer.
enum Failure {
    Start(io::Error),
    Late,
    /// It was not asked for, because others took so long.
    Unreached,
    /// It ended, in this way if that is known.
    Gone(Option<ExitStatus>),
    TooLong,
}

impl Failure {
    fn problem(self) -> Problem {
        let unreached = matches!(self, Self::Unreached);
        let message = match self {
            Self::Start(error) => format!("no process can be started to render it: {error}"),
            Self::Late => format!("it takes longer than {} s", RENDER.as_secs()),
            Self::Unreached => {
                "what is rendered before it takes too long: there is no time for it".to_owned()
            }
            Self::Gone(status) => {
                let status = status.map_or_else(|| "no status".to_owned(), |it| it.to_string());
                format!(
                    "it takes more than {} MiB of memory, or the template engine failed on it \
                     ({status})",
                    MEMORY_MAX >> 20
                )
            }
            Self::TooLong => format!("it reads more than {} MiB", FRAME_MAX >> 20),
        };
        Problem {
            unreached,
            ..Problem::message(message)
        }
    }
}

struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<Vec<u8>>,
    /// The templates that it has.
    sources: Option<Sources>,
}

impl Worker {
    fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let orders = child.stdin.take().ok_or_else(gone)?;
        let mut from = child.stdout.take().ok_or_else(gone)?;
        let (to, answers) = sync_channel(1);
        let read = move || read_answers(&mut from, |answer| to.send(answer).is_ok());
        thread::Builder::new()
            .name("render-answers".to_owned())
            .spawn(read)?;
        Ok(Self {
            child,
            orders,
            answers,
            sources: None,
        })
    }

    /// Adds what it answers to what is rendered, as far as it gets.
    fn ask(
        &mut self,
        sources: &Sources,
        wanted: &[(&Value, &What)],
        end: Instant,
        rendered: &mut Vec<Rendered>,
    ) -> Result<(), Failure> {
        let known = self
            .sources
            .as_ref()
            .is_some_and(|known| known.same(sources));
        let order = Order {
            texts: (!known).then(|| sources.texts().collect()),
            wanted,
        };
        let order = serde_json::to_vec(&order).map_err(|_| Failure::TooLong)?;
        if order.len() > FRAME_MAX {
            return Err(Failure::TooLong);
        }
        if write_frame(&mut self.orders, &order).is_err() {
            return Err(self.gone());
        }
        let mut end = end;
        if !known {
            let began = Instant::now();
            self.answer_within(COMPILE)?;
            // That is not the texts' time.
            end += began.elapsed();
            self.sources = Some(sources.clone());
        }
        for _ in wanted {
            let left = end.saturating_duration_since(Instant::now());
            let answer = match self.answer_within(left.min(RENDER)) {
                Err(Failure::Late) if left < RENDER => return Err(Failure::Unreached),
                answer => answer?,
            };
            let answer = serde_json::from_slice(&answer).map_err(|_| self.gone())?;
            rendered.push(answer);
        }
        Ok(())
    }

    fn keep(self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < TURNS_MAX {
            idle.push(self);
        }
    }

    fn answer_within(&mut self, patience: Duration) -> Result<Vec<u8>, Failure> {
        let answer = self.answers.recv_timeout(patience);
        answer.map_err(|error| match error {
            RecvTimeoutError::Timeout => Failure::Late,
            RecvTimeoutError::Disconnected => self.gone(),
        })
    }

    /// How it ended. One that ends by itself is not ended in another way by being killed.
    fn gone(&mut self) -> Failure {
        let _ = self.child.kill();
        Failure::Gone(self.child.wait().ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_answers(from: &mut ChildStdout, mut take: impl FnMut(Vec<u8>) -> bool) {
    while let Ok(Some(answer)) = read_frame(from) {
        if !take(answer) {
            return;
        }
    }
}

/// What a worker does: renders until nobody orders any more.
///
/// # Errors
/// When its limits cannot be set, or who orders is gone.
pub fn work() -> io::Result<()> {
    let limit = |resource, most| setrlimit(resource, most, most).map_err(io::Error::from);
    limit(Resource::RLIMIT_DATA, MEMORY_MAX)?;
    limit(Resource::RLIMIT_CPU, LIFE_SECS)?;
    limit(Resource::RLIMIT_CORE, 0)?;
    let (mut orders, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let mut compiled = Arc::new(Compiled::default());
    while let Some(order) = read_frame(&mut orders)? {
        let order: Received = serde_json::from_slice(&order)?;
        if let Some(texts) = &order.texts {
            let texts = texts.iter().map(|(name, text)| (&**name, &**text));
            compiled = Arc::new(Compiled::new(texts));
            // What is rendered is timed from here.
            write_frame(&mut answers, &[])?;
        }
        for (context, what) in &order.wanted {
            let answer: Rendered = render_here(&compiled, context, what);
            write_frame(&mut answers, &serde_json::to_vec(&answer)?)?;
        }
    }
    Ok(())
}

fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// The next frame; none at the end.
fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u64::from(u32::from_be_bytes(length));
    if length > FRAME_MAX.max(2 * OUTPUT_MAX) as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    let read = from.take(length).read_to_end(&mut bytes)? as u64;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}

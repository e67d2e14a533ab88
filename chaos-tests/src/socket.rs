//! One request over a node's Unix socket, as root may make it, with an end in any case.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use socket2::{Domain, SockAddr, Socket, Type};

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// GET, POST …
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    /// Beyond what every request has.
    pub headers: Vec<(&'a str, String)>,
    /// JSON, if any.
    pub body: Option<String>,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Status line and headers, as they came.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Failed {
    /// Whether the node may have got any of the request.
    pub sent: bool,
    /// What went wrong.
    pub error: Error,
}

impl Call<'_> {
    /// Asks, and waits for so long in all.
    pub fn ask(&self, socket: &Path, timeout: Duration) -> Result<Answer, Failed> {
        let end = Instant::now() + timeout;
        let stream = connect(socket, timeout).map_err(|error| Failed { sent: false, error })?;
        self.exchange(stream, end)
            .map_err(|error| Failed { sent: true, error })
    }

    fn exchange(&self, mut stream: UnixStream, end: Instant) -> Result<Answer> {
        let mut head = format!(
            "{} {} HTTP/1.0\r\nHost: localhost\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body = self.body.as_deref().unwrap_or_default();
        if self.body.is_some() {
            head += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .context("sending a request")?;
        let mut answer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(anyhow!("no answer in time"));
            }
            // A time-out of zero would be none at all.
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.read(&mut chunk).context("reading an answer")? {
                0 => break,
                read => answer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?;
        let answer = Answer {
            status: status.parse().context("a status")?,
            head: head.to_owned(),
            body: body.to_owned(),
        };
        // HTTP/1.0 ends with the connection, also with that of a process that was killed.
        if let Some(length) = answer.header("content-length") {
            let whole = length
                .parse::<usize>()
                .is_ok_and(|length| length == body.len());
            return whole.then_some(answer).context("half an answer");
        }
        Ok(answer)
    }
}

impl Answer {
    /// The value of a header, whatever case its name is in.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }

    /// What the node had applied when it answered.
    pub fn revision(&self) -> Option<u64> {
        self.header("muster-revision")?.parse().ok()
    }
}

/// A stopped process takes connections only as long as there is room in its queue.
fn connect(path: &Path, timeout: Duration) -> Result<UnixStream> {
    let what = || format!("connecting to {}", path.display());
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).with_context(what)?;
    socket.set_write_timeout(Some(timeout)).with_context(what)?;
    let address = SockAddr::unix(path).with_context(what)?;
    socket.connect(&address).with_context(what)?;
    Ok(socket.into())
}

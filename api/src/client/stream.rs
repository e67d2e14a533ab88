//! Following events over whichever node is there.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::Method;

use super::{Call, Client, Error};

const MEDIA_TYPE: &str = "text/event-stream";

/// Longest line of an event that is kept, in octets.
const LINE_MAX: usize = 32 << 20;

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its kind; `message` when the server says none.
    pub event: String,
    /// Where to resume.
    pub id: Option<String>,
    /// What it says.
    pub data: String,
}

/// Events of the cluster; goes on with another node when one fails.
pub struct Events<'a> {
    client: &'a Client,
    call: Call,
    last: Option<String>,
    body: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
    current: Event,
}

impl Client {
    /// Follows events; `query` filters them, and `after` says where to begin.
    pub fn events(&self, query: &[(&str, &str)], after: Option<String>) -> Events<'_> {
        let mut call = Call::new(Method::GET, &["events"])
            .header("accept", MEDIA_TYPE)
            .streamed();
        for (name, value) in query {
            call = call.query(name, *value);
        }
        Events {
            client: self,
            call,
            last: after,
            body: None,
            buffer: Vec::new(),
            ready: VecDeque::new(),
            current: Event::default(),
        }
    }
}

impl Events<'_> {
    /// The next event; waits for it, and for a node that can give it.
    ///
    /// # Errors
    /// When no node can be reached in time, or the history is gone.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.id.is_some() {
                    self.last.clone_from(&event.id);
                }
                // One that says nothing only moves the point to resume at.
                if event.data.is_empty() {
                    continue;
                }
                return Ok(event);
            }
            let piece = match &mut self.body {
                Some(body) => body.next().await,
                None => {
                    let mut call = self.call.clone();
                    if let Some(last) = &self.last {
                        call = call.header("last-event-id", last.clone());
                    }
                    let response = self.client.send(call).await?;
                    if self.last.is_none() {
                        // A stream that breaks before its first event is resumed where it began.
                        let begun = response.headers().get("muster-revision");
                        self.last = begun
                            .and_then(|value| value.to_str().ok())
                            .map(str::to_owned);
                    }
                    self.buffer.clear();
                    self.current = Event::default();
                    self.body = Some(response.bytes_stream().boxed());
                    continue;
                }
            };
            match piece {
                Some(Ok(piece)) if self.buffer.len() + piece.len() <= LINE_MAX => self.take(&piece),
                // The node went away, or sends nonsense: another one goes on.
                Some(_) | None => self.body = None,
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
        while let Some(end) = self.buffer.iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\n', '\r']));
        }
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.current);
            if !event.data.is_empty() || event.id.is_some() {
                self.ready.push_back(event);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" if self.current.data.is_empty() => self.current.data = value.to_owned(),
            "data" => {
                self.current.data.push('\n');
                self.current.data.push_str(value);
            }
            "event" => self.current.event = value.to_owned(),
            "id" => self.current.id = Some(value.to_owned()),
            _ => {}
        }
    }
}

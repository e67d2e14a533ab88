//! A collector of traces on a host of a lab: it takes spans (OTLP by HTTP) and keeps them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prost::Message as _;

use crate::lab::Host;

/// Where collectors listen.
const PORT: u16 = 4318;

/// Longest message.
const MESSAGE_MAX: usize = 4 << 20;

/// What is known of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The trace that it is part of, in hexadecimal digits.
    pub trace: String,
    /// Its name.
    pub name: String,
    /// The node that sent it.
    pub node: String,
    /// Name of the machine.
    pub machine: String,
}

/// A collector that takes spans until the program ends.
#[derive(Clone, Debug)]
pub struct Collector {
    address: Ipv4Addr,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Collector {
    /// Listens on a host that has an address.
    pub fn start(host: &Host) -> Result<Self> {
        let address = host.address().context("a collector has an address")?;
        let listener = host.inside(|| {
            TcpListener::bind(SocketAddr::from((address, PORT))).context("listening for spans")
        })?;
        let collector = Self {
            address,
            taken: Arc::default(),
        };
        let taking = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let taking = taking.clone();
                // A connection that breaks is the sender's to dial anew.
                std::thread::spawn(move || taking.serve(stream));
            }
        });
        Ok(collector)
    }

    /// What nodes are told to send to.
    pub fn url(&self) -> String {
        format!("http://{}:{PORT}", self.address)
    }

    /// All spans so far.
    pub fn taken(&self) -> Vec<Taken> {
        let taken = self.taken.lock();
        taken.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut writer = stream.try_clone().context("sharing a connection")?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut length = 0;
            let mut first = String::new();
            if reader.read_line(&mut first).context("reading a request")? == 0 {
                return Ok(());
            }
            ensure!(first.starts_with("POST /v1/traces "), "asked for {first}");
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).context("reading a head")?;
                match line.trim().split_once(": ") {
                    Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                        length = value.parse().context("a length")?;
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            ensure!(length <= MESSAGE_MAX, "{length} octets in a message");
            let mut body = vec![0; length];
            reader.read_exact(&mut body).context("reading spans")?;
            let request = ExportTraceServiceRequest::decode(&body[..]).context("reading spans")?;
            self.take(&request);
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")?;
        }
    }

    fn take(&self, request: &ExportTraceServiceRequest) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in &request.resource_spans {
            let about = resource
                .resource
                .as_ref()
                .map(|about| &about.attributes[..]);
            let node = text(about.unwrap_or_default(), "service.instance.id");
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let digits = span.trace_id.iter().map(|octet| format!("{octet:02x}"));
                taken.push(Taken {
                    trace: digits.collect(),
                    name: span.name.clone(),
                    node: node.clone(),
                    machine: text(&span.attributes, "muster.machine"),
                });
            }
        }
    }
}

/// An attribute that is a text.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()) {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
            ..
        }) => text.clone(),
        _ => String::new(),
    }
}

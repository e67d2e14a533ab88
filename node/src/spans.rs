//! What this node did for machines that boot, step by step: a line of the log each, and, if it is
//! wanted, a span for a collector of traces (OTLP). Spans of one boot have one trace id on all nodes.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant, UNIX_EPOCH};

use metrics::{counter, describe_counter};
use muster_raft::Cluster;
use muster_storage::model::{Step, Timestamp};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::boot::trace::TraceId;

/// Counts spans that reached no collector.
const DROPPED: &str = "muster_trace_spans_dropped_total";

/// Spans that may wait for the collector; more are dropped and counted.
const QUEUE_MAX: usize = 4096;

/// Spans in one message.
const BATCH_MAX: usize = 512;

/// How long a collector may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says what is counted.
pub fn describe() {
    describe_counter!(
        DROPPED,
        "Spans of boots that did not reach the collector of --otlp-endpoint"
    );
    counter!(DROPPED).increment(0);
}

/// By which protocol a machine came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// DHCP.
    Dhcp,
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
        })
    }
}

/// One request of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// By which protocol.
    pub protocol: Protocol,
    /// When it came.
    pub began: Instant,
}

impl Visit {
    /// It comes now.
    pub fn now(protocol: Protocol) -> Self {
        Self {
            protocol,
            began: Instant::now(),
        }
    }
}

/// A step of a boot that this node did.
#[derive(Clone, Debug)]
pub struct Span {
    /// The boot.
    pub trace: TraceId,
    /// The machine.
    pub machine: Uuid,
    /// Its name.
    pub name: String,
    /// What was done.
    pub step: Step,
    /// By which protocol.
    pub protocol: Protocol,
    /// How long it took.
    pub took: Duration,
    /// When it was done.
    pub at: Timestamp,
}

/// Where spans go. Clones share it; the default is the log alone.
#[derive(Clone, Debug, Default)]
pub struct Spans(Option<mpsc::Sender<SpanData>>);

impl Spans {
    /// To the log, and to the collector at this URL.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn export(url: &str, cluster: &Cluster) -> Result<Self, ExporterBuildError> {
        let builder = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        // Else it needs authorities, which a machine without any does not have.
        let builder = match url.starts_with("https:") {
            true => builder,
            false => builder.tls_certs_only([]),
        };
        let client = builder.build();
        let client =
            client.map_err(|error| ExporterBuildError::InternalFailure(error.to_string()))?;
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()?;
        let resource = Resource::builder_empty()
            .with_service_name("muster")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", cluster.node_name().to_owned()),
                KeyValue::new("muster.cluster", cluster.cluster_id().to_string()),
            ])
            .build();
        exporter.set_resource(&resource);
        let (sender, waiting) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(send(exporter, waiting));
        Ok(Self(Some(sender)))
    }

    /// Tells of a step; never waits.
    pub fn tell(&self, span: Span) {
        tracing::info!(
            target: "muster::boots",
            trace_id = %span.trace,
            machine = span.name,
            step = span.step.label(),
            protocol = %span.protocol,
            milliseconds = span.took.as_millis(),
            "boot: {} {}",
            span.step.label(),
            detail(&span.step)
        );
        if let Some(queue) = &self.0
            && queue.try_send(data(span)).is_err()
        {
            counter!(DROPPED).increment(1);
        }
    }
}

/// Sends what waits until nobody tells of anything any more.
async fn send(exporter: opentelemetry_otlp::SpanExporter, mut waiting: mpsc::Receiver<SpanData>) {
    let mut failing = false;
    loop {
        let mut batch = Vec::new();
        let count = waiting.recv_many(&mut batch, BATCH_MAX).await;
        if count == 0 {
            return;
        }
        let sent = tokio::time::timeout(2 * PATIENCE, exporter.export(batch)).await;
        let problem = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        match problem {
            None => failing = false,
            Some(problem) => {
                counter!(DROPPED).increment(count as u64);
                // Said once, until it takes spans again.
                if !failing {
                    tracing::warn!(
                        error = problem,
                        "the collector of --otlp-endpoint takes no spans"
                    );
                }
                failing = true;
            }
        }
    }
}

/// What a step was about.
fn detail(step: &Step) -> Cow<'_, str> {
    match step {
        Step::Offered { address } | Step::Bound { address } => address.to_string().into(),
        Step::Loader { name } => name.into(),
        Step::Script { boots, .. } => boots.into(),
        Step::Kernel { path } | Step::Initrd { path } | Step::File { path } => path.into(),
        Step::Install { why, .. } => why.into(),
        Step::Reported | Step::Stalled => "".into(),
    }
}

fn data(span: Span) -> SpanData {
    let ended = UNIX_EPOCH.checked_add(Duration::from_millis(span.at.0));
    let ended = ended.unwrap_or(UNIX_EPOCH);
    let began = ended.checked_sub(span.took).unwrap_or(UNIX_EPOCH);
    let (number, _) = Uuid::new_v4().as_u64_pair();
    SpanData {
        span_context: SpanContext::new(
            opentelemetry::TraceId::from_bytes(span.trace.0),
            SpanId::from_bytes(number.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Server,
        name: format!("{} {}", span.protocol, span.step.label()).into(),
        start_time: began,
        end_time: ended,
        attributes: vec![
            KeyValue::new("muster.machine", span.name),
            KeyValue::new("muster.machine.uuid", span.machine.to_string()),
            KeyValue::new("muster.step", span.step.label()),
            KeyValue::new("muster.detail", detail(&span.step).into_owned()),
            KeyValue::new("network.protocol.name", span.protocol.to_string()),
        ],
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("muster.boot").build(),
    }
}

//! How far machines have come, and what they went through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Error;
use serde::Serialize;

/// What a machine has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Stage {
    /// DORA of the firmware.
    Address,
    /// First-stage loader, by TFTP or HTTP.
    Loader,
    /// DORA of iPXE.
    LoaderAddress,
    /// Boot script.
    Script,
    /// Initial RAM disk.
    Initrd,
    /// Kernel, which is started.
    Kernel,
    /// DORA of the operating system.
    System,
    /// Report, committed.
    Callback,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Address,
        Self::Loader,
        Self::LoaderAddress,
        Self::Script,
        Self::Initrd,
        Self::Kernel,
        Self::System,
        Self::Callback,
    ];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "firmware's DORA",
            Self::Loader => "loader",
            Self::LoaderAddress => "iPXE's DORA",
            Self::Script => "script",
            Self::Initrd => "initrd",
            Self::Kernel => "kernel",
            Self::System => "system's DORA",
            Self::Callback => "callback",
        }
    }
}

/// How many machines have passed which stage, while they run.
#[derive(Debug, Default)]
pub struct Progress([AtomicUsize; Stage::ALL.len()]);

impl Progress {
    /// How often a stage was passed.
    pub fn reached(&self, stage: Stage) -> usize {
        self.0[stage as usize].load(Ordering::Relaxed)
    }
}

/// What one machine went through.
#[derive(Debug)]
pub struct Journal {
    progress: Arc<Progress>,
    /// Since the stage before, or a failure.
    since: Instant,
    /// What each stage took, in the order in which they were passed.
    pub stages: Vec<(Stage, Duration)>,
    /// How often a fetch failed that something else was tried after.
    pub fall_backs: usize,
    /// How often another entry of the boot order had to be tried.
    pub next_entries: usize,
    /// How often the boot order was begun anew.
    pub anew: usize,
    /// What went wrong, in order.
    pub setbacks: Vec<String>,
}

impl Journal {
    /// Of a machine that is switched on now.
    pub fn new(progress: &Arc<Progress>) -> Self {
        Self {
            progress: Arc::clone(progress),
            since: Instant::now(),
            stages: Vec::new(),
            fall_backs: 0,
            next_entries: 0,
            anew: 0,
            setbacks: Vec::new(),
        }
    }

    /// A stage is passed.
    pub fn done(&mut self, stage: Stage) {
        let now = Instant::now();
        self.stages.push((stage, now.duration_since(self.since)));
        self.since = now;
        self.progress.0[stage as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A fetch failed; the script knows what to try then.
    pub fn fell_back(&mut self, error: &Error) {
        self.fall_backs += 1;
        self.setbacks.push(format!("{error:#}"));
    }

    /// An entry of the boot order failed.
    pub fn failed(&mut self, error: &Error) {
        self.next_entries += 1;
        self.setbacks.push(format!("the entry fails: {error:#}"));
        self.since = Instant::now();
    }

    /// The boot order begins anew.
    pub fn begins_anew(&mut self) {
        self.anew += 1;
    }
}

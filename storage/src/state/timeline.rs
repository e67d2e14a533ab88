//! What was seen of how machines boot, and which boots come to nothing.

use std::sync::Arc;

use uuid::Uuid;

use super::boot::{BootClient, BootTarget};
use super::install::SKEW_SECS;
use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Command, Effect, Rejection};
use crate::event::{Action, Subject};
use crate::model::{
    Alert, FACTS_MAX, Fact, LOCAL, NodeId, Seen, Settings, Step, Timeline, Timestamp, Trouble,
    UnderWay,
};

impl State {
    /// What was seen of how a machine boots.
    pub fn timeline(&self, machine: Uuid) -> Option<&Timeline> {
        self.timelines.get(&machine).map(Arc::as_ref)
    }

    /// Machines that began to boot and of which nothing was seen for longer than the settings allow.
    pub fn stalled_boots(&self, now: Timestamp) -> impl Iterator<Item = Uuid> {
        let patience = u64::from(self.settings().boot_stall_secs).saturating_mul(1000);
        let is_due = move |at: Timestamp| patience > 0 && at.0.saturating_add(patience) <= now.0;
        self.boots_under_way
            .iter()
            .take_while(move |(progress_at, _)| is_due(*progress_at))
            .map(|(_, machine)| *machine)
    }

    pub(super) fn saw(
        &mut self,
        context: Context<'_>,
        node: NodeId,
        seen: &[Seen],
    ) -> Result<Effect, Rejection> {
        if seen.len() > Command::SEEN_MAX {
            return Err(Rejection::Invalid {
                field: "seen".into(),
                problem: format!("more than {} facts in one command", Command::SEEN_MAX),
            });
        }
        for Seen { machine, at, step } in seen {
            if self.machine_with_uuid(*machine).is_some() {
                if matches!(step, Step::Kernel { .. }) {
                    self.start_attempt(*machine, *at);
                }
                self.append(context, *machine, *at, Some(node), step.clone());
            }
        }
        Ok(Effect::Done)
    }

    pub(super) fn boot_stalled(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        node: NodeId,
    ) -> Result<Effect, Rejection> {
        // Something may have been seen of it in the meantime.
        let due = self.stalled_boots(context.at).any(|due| due == machine);
        let under_way = self
            .timeline(machine)
            .and_then(|timeline| timeline.under_way.clone());
        let Some(boot) = under_way.filter(|_| due) else {
            return Ok(Effect::Done);
        };
        if self.schema() >= 2 && !boot.is_of(self.awaited(machine).as_deref()) {
            // It is to boot something else by now, and may not have been on since.
            self.forget_boot(machine);
            return Ok(Effect::Done);
        }
        self.note(context, machine, None, Step::Stalled);
        let trouble = Trouble::BootStalled {
            machine,
            bootenv: boot.bootenv,
            since: boot.progress_at,
        };
        let subject = Subject::Alert(Alert { node, trouble });
        self.changed(context, Action::Created, subject);
        Ok(Effect::Done)
    }

    /// Ends the watch of a boot, without a fact.
    fn forget_boot(&mut self, machine: Uuid) {
        if let Some(known) = self.timelines.get(&machine) {
            let timeline = Timeline {
                under_way: None,
                ..(**known).clone()
            };
            let row = Row::Timeline(Arc::new(timeline));
            self.put(RowKey::Timeline(machine), Some(row));
        }
    }

    /// Notes a fact that a command brings about.
    pub(super) fn note(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        node: Option<NodeId>,
        step: Step,
    ) {
        self.append(context, machine, context.at, node, step);
    }

    fn append(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        at: Timestamp,
        node: Option<NodeId>,
        step: Step,
    ) {
        // A clock that was wrong is no reason to take all that follows for late.
        let at = match self.schema() {
            ..2 => at,
            _ => at.min(context.at),
        };
        let known = self.timelines.get(&machine);
        let mut timeline = known.map_or_else(|| empty(machine), |known| (**known).clone());
        if !self.is_overtaken(&timeline, at, &step) {
            let before = timeline.under_way.take();
            timeline.under_way = match self.schema() {
                ..2 => under_way(before, &step, context.at),
                _ => self.under_way(&timeline, before, at, &step, context.at),
            };
        }
        let last = timeline.facts.last_mut();
        match last.filter(|last| last.node == node && is_same(&last.step, &step)) {
            Some(last) => {
                last.times = last.times.saturating_add(1);
                last.until = Some(at);
                last.step = step;
            }
            None => {
                let excess = (timeline.facts.len() + 1).saturating_sub(FACTS_MAX);
                timeline.facts.drain(..excess);
                timeline.facts.push(Fact {
                    at,
                    until: None,
                    times: 1,
                    node,
                    step,
                });
            }
        }
        self.put(
            RowKey::Timeline(machine),
            Some(Row::Timeline(Arc::new(timeline))),
        );
    }

    /// Whether a step is of a boot before the one that is under way, told late by a node that could not
    /// say so in time, or of this one and told after what came next. Before schema 2 such a step counted.
    fn is_overtaken(&self, timeline: &Timeline, at: Timestamp, step: &Step) -> bool {
        if self.schema() < 2 {
            return false;
        }
        let is_script = |step: &Step| matches!(step, Step::Script { .. });
        let is_kernel = |step: &Step| matches!(step, Step::Kernel { .. });
        timeline.facts.iter().any(|fact| {
            let seen = fact.until.unwrap_or(fact.at);
            let begins = is_script(&fact.step) || is_kernel(&fact.step);
            match step {
                Step::Script { .. } => begins && seen > at,
                // Another node's clock may be a little behind, and no machine is as fast.
                _ if is_of_firmware(step) => begins && seen.plus_secs(SKEW_SECS) > at,
                // Another node's clock may be a little ahead.
                _ => is_script(&fact.step) && seen > at.plus_secs(SKEW_SECS),
            }
        })
    }

    /// What is under way after what was before and a step that was seen at a time, as it is told from schema 2 on: a boot
    /// begins with what firmware is given, and a machine that is held although it is to boot something is
    /// waited for.
    fn under_way(
        &self,
        timeline: &Timeline,
        before: Option<UnderWay>,
        at: Timestamp,
        step: &Step,
        now: Timestamp,
    ) -> Option<UnderWay> {
        let awaited = || self.awaited(timeline.machine);
        // What is told so late that people would be told at once is over, one way or the other.
        let is_late = at.plus_secs(self.settings().boot_stall_secs.into()) <= now;
        let begun = |bootenv| UnderWay {
            bootenv,
            attempt: None,
            progress_at: at,
            stalled: false,
        };
        let is_hold = |boots: &str| boots == Settings::hold();
        match step {
            // Firmware that begins again and again makes no progress, but people who were told may
            // have made it begin again.
            _ if is_of_firmware(step) => {
                let bootenv = awaited()?;
                match before.filter(|boot| boot.is_of(Some(&bootenv))) {
                    Some(boot) if boot.stalled => Some(boot.goes_on(now)),
                    Some(boot) => Some(boot),
                    // Whose loader it is may be a guess.
                    None if is_late || matches!(step, Step::Loader { .. }) => None,
                    None => Some(begun(bootenv)),
                }
            }
            Step::Script { boots, .. } if is_hold(boots) => {
                let bootenv = awaited()?;
                before.or_else(|| Some(begun(bootenv)).filter(|_| !is_late))
            }
            Step::Script { .. } => {
                let last = timeline
                    .facts
                    .iter()
                    .rev()
                    .find_map(|fact| match &fact.step {
                        Step::Script { boots, .. } => Some(is_hold(boots)),
                        _ => None,
                    });
                // What it was held for is over.
                under_way(before.filter(|_| last != Some(true)), step, now)
            }
            _ => under_way(before, step, now),
        }
    }

    /// The bootenv that a machine is to boot, whether or not it can be booted now.
    fn awaited(&self, machine: Uuid) -> Option<String> {
        let machine = self.machine_with_uuid(machine)?;
        let mac = *machine.macs.first()?;
        match self.boot_plan(&BootClient { mac }).target {
            BootTarget::Local => None,
            BootTarget::Hold { .. } if machine.bootenv == Settings::hold() => None,
            _ => Some(machine.bootenv.clone()),
        }
    }

    pub(super) fn index_timeline(
        &mut self,
        machine: Uuid,
        new: Option<Arc<Timeline>>,
    ) -> Option<Arc<Timeline>> {
        let since = |timeline: &Arc<Timeline>| {
            let boot = timeline.under_way.as_ref().filter(|boot| !boot.stalled)?;
            Some(boot.progress_at)
        };
        if let Some(at) = new.as_ref().and_then(since) {
            self.boots_under_way.insert((at, machine));
        }
        let kept = new.as_ref().and_then(since);
        let old = match new {
            Some(timeline) => self.timelines.insert(machine, timeline),
            None => self.timelines.remove(&machine),
        };
        if let Some(at) = old.as_ref().and_then(since).filter(|at| Some(*at) != kept) {
            self.boots_under_way.remove(&(at, machine));
        }
        old
    }
}

fn empty(machine: Uuid) -> Timeline {
    Timeline {
        machine,
        facts: Vec::new(),
        under_way: None,
    }
}

/// Whether it is a step of what comes before the script.
fn is_of_firmware(step: &Step) -> bool {
    matches!(
        step,
        Step::Offered { .. } | Step::Bound { .. } | Step::Loader { .. }
    )
}

/// Whether a step is told by that before it: a script that is read again may be of a later revision.
fn is_same(last: &Step, step: &Step) -> bool {
    match (last, step) {
        (
            Step::Script { boots, attempt, .. },
            Step::Script {
                boots: now,
                attempt: present,
                ..
            },
        ) => boots == now && attempt == present,
        _ => last == step,
    }
}

/// What is under way after a step. A boot is under way until its kernel was handed over, because nobody
/// can see more of it, an install until it has ended. As 0.1.0 has it, both begin with their script.
fn under_way(before: Option<UnderWay>, step: &Step, now: Timestamp) -> Option<UnderWay> {
    match step {
        Step::Script { boots, .. } if *boots == LOCAL || *boots == Settings::hold() => None,
        Step::Script { boots, attempt, .. } => {
            // Reading the same script again and again is no progress.
            let same = |boot: &UnderWay| boot.bootenv == *boots && boot.attempt == *attempt;
            Some(before.filter(same).unwrap_or_else(|| UnderWay {
                bootenv: boots.clone(),
                attempt: *attempt,
                progress_at: now,
                stalled: false,
            }))
        }
        Step::Install { .. } => None,
        Step::Stalled => before.map(|boot| UnderWay {
            stalled: true,
            ..boot
        }),
        Step::Kernel { .. } | Step::Reported => before
            .filter(|boot| boot.attempt.is_some())
            .map(|boot| boot.goes_on(now)),
        Step::Offered { .. }
        | Step::Bound { .. }
        | Step::Loader { .. }
        | Step::Initrd { .. }
        | Step::File { .. } => before.map(|boot| boot.goes_on(now)),
    }
}

impl UnderWay {
    /// Whether it is still meant, of a machine that is to boot `awaited`. An attempt is until it has ended.
    fn is_of(&self, awaited: Option<&str>) -> bool {
        self.attempt.is_some() || awaited == Some(self.bootenv.as_str())
    }

    fn goes_on(self, now: Timestamp) -> Self {
        Self {
            progress_at: now,
            stalled: false,
            ..self
        }
    }
}

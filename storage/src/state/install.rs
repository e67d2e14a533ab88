//! Rules of installing machines: destructive steps are fenced (invariant 10).
//!
//! An attempt is used up once its kernel has been handed to the machine, or once nothing has been
//! served for it in [`RESUME_MILLIS`]: the script that is served next is that of the next attempt.
//! Until then every script is of the same attempt, however often it is read and by whichever node:
//! iPXE reads it again in its retries, and a node that dies in the middle costs no attempt.

use std::sync::Arc;

use uuid::Uuid;

use super::objects::{invalid, not_found};
use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Effect, Rejection, TokenUse};
use crate::event::{Action, Subject};
use crate::model::{
    Alert, Attempt, Ended, Install, InstallPhase, LOCAL, Lock, Machine, NodeId, Object, ObjectKind,
    Served, Status, Step, Timestamp, Trouble, Verdict,
};

/// Most attempts of one order.
const ATTEMPTS_MAX: u32 = 100;

/// How long after its last script an attempt may still be gone on with, when nobody saw its kernel
/// being handed over: the node that did may have died before it could say so.
const RESUME_MILLIS: u64 = 10 * 60 * 1000;

/// How far the clock of a node may be behind that of the leader.
pub(super) const SKEW_SECS: u64 = 2;

/// Longest reason of a lock, in octets.
const REASON_MAX: usize = 255;

impl State {
    /// The order to install a machine, ended or not.
    pub fn install(&self, machine: Uuid) -> Option<&Install> {
        self.installs.get(&machine).map(Arc::as_ref)
    }

    /// The order to install a machine that has not ended.
    pub fn active_install(&self, machine: Uuid) -> Option<&Install> {
        self.install(machine).filter(|install| install.is_active())
    }

    /// A machine that is being installed, if there is one: what it was given is in use.
    pub fn open_install(&self) -> Option<&Install> {
        let mut installs = self.installs.values().map(Arc::as_ref);
        installs.find(|install| install.phase == InstallPhase::Open)
    }

    /// Whether the token of an attempt is good for the machine now.
    pub fn admits(&self, machine: Uuid, attempt: Attempt) -> bool {
        self.install(machine)
            .is_some_and(|install| install.admits(attempt))
    }

    /// What keeps a machine as it is.
    pub fn lock(&self, machine: Uuid) -> Option<&Lock> {
        self.locks.get(&machine).map(Arc::as_ref)
    }

    /// Refuses when the machine is locked.
    pub(super) fn check_unlocked(&self, machine: &Machine) -> Result<(), Rejection> {
        match self.lock(machine.uuid) {
            None => Ok(()),
            Some(lock) => Err(Rejection::Locked {
                machine: machine.name.clone(),
                reason: lock.reason.clone(),
            }),
        }
    }

    /// A machine that must be there.
    pub(super) fn named_machine(&self, machine: Uuid) -> Result<&Machine, Rejection> {
        self.machine_with_uuid(machine)
            .ok_or_else(|| not_found(ObjectKind::Machine, &machine.to_string()))
    }

    pub(super) fn order_install(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
        bootenv: &str,
        attempts: Option<u32>,
    ) -> Result<Effect, Rejection> {
        let machine = self.named_machine(uuid)?;
        self.check_unlocked(machine)?;
        if self.active_install(uuid).is_some() {
            return Err(Rejection::Conflict(format!(
                "machine `{0}` is being installed already; `muster machines cancel {0}` ends that",
                machine.name
            )));
        }
        let known = self
            .bootenv(bootenv)
            .ok_or_else(|| not_found(ObjectKind::Bootenv, bootenv))?;
        if !known.installs {
            return Err(invalid(
                "bootenv",
                &format!(
                    "`{bootenv}` does not install: set `installs: true` in it, \
                     or set it as the machine's bootenv without an order"
                ),
            ));
        }
        let attempts = attempts.unwrap_or_else(|| self.settings().install_attempts);
        check_attempts("attempts", attempts)?;
        let install = Install {
            machine: uuid,
            order: context.revision,
            bootenv: bootenv.to_owned(),
            attempts,
            attempt: 0,
            phase: InstallPhase::Armed,
            started: false,
            ordered_at: context.at,
            ordered_by: context.actor.clone(),
            served: None,
            ended: None,
        };
        self.set_bootenv(context, uuid, bootenv);
        self.write_install(context, Action::Created, install.clone());
        Ok(Effect::Install(Box::new(install)))
    }

    pub(super) fn open_attempt(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
        read: Attempt,
        started: bool,
        node: NodeId,
    ) -> Result<Effect, Rejection> {
        let name = &self.named_machine(uuid)?.name;
        let mut install = self
            .active_install(uuid)
            .filter(|install| install.is(read) && install.started == started)
            .ok_or_else(|| {
                Rejection::Conflict(format!(
                    "the install of machine `{name}` has gone on meanwhile"
                ))
            })?
            .clone();
        let goes_on = install.served.as_ref().is_some_and(|served| {
            !install.started && context.at.0 < served.at.0.saturating_add(RESUME_MILLIS)
        });
        if !goes_on && install.attempt >= install.attempts {
            let why = format!(
                "it came to boot once more after {} of {} attempts, and never said that it was \
                 installed",
                install.attempt, install.attempts
            );
            let install =
                self.end_install(context, install, InstallPhase::Failed, &why, Some(node));
            return Ok(Effect::Install(Box::new(install)));
        }
        let action = if goes_on {
            None
        } else {
            install.attempt += 1;
            install.started = false;
            install.phase = InstallPhase::Open;
            Some(Action::Updated)
        };
        let first = install.served.take().filter(|_| goes_on);
        install.served = Some(Served {
            first_at: first.map_or(context.at, |served| served.first_at),
            at: context.at,
            node,
        });
        let step = Step::Script {
            boots: install.bootenv.clone(),
            revision: context.revision,
            attempt: Some(install.attempt),
        };
        match action {
            Some(action) => self.write_install(context, action, install.clone()),
            // Read again: no news to anybody.
            None => self.put_install(install.clone()),
        }
        self.note(context, uuid, Some(node), step);
        Ok(Effect::Install(Box::new(install)))
    }

    /// The kernel of what a machine boots was handed over, as a node saw at that time. What a node
    /// could write late only says nothing of an attempt that was opened after it.
    pub(super) fn start_attempt(&mut self, machine: Uuid, at: Timestamp) {
        let open = |install: &&Install| {
            let first_at = install.served.as_ref().map(|served| served.first_at);
            install.phase == InstallPhase::Open
                && !install.started
                && first_at.is_some_and(|first| at.plus_secs(SKEW_SECS) >= first)
        };
        if let Some(mut install) = self.install(machine).filter(open).cloned() {
            install.started = true;
            self.put_install(install);
        }
    }

    pub(super) fn settle_install(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        verdict: Verdict,
        node: Option<NodeId>,
    ) -> Result<Effect, Rejection> {
        let phase = match verdict.status {
            Status::Done => InstallPhase::Installed,
            Status::Failed => InstallPhase::Failed,
        };
        let token = match self.install(machine).cloned() {
            Some(install) if install.admits(verdict.attempt) => {
                let why = format!("the machine said so in attempt {}", install.attempt);
                self.end_install(context, install, phase, &why, node);
                TokenUse::Used
            }
            Some(install) if install.is(verdict.attempt) && install.phase == phase => {
                TokenUse::Repeated
            }
            _ => TokenUse::Spent,
        };
        Ok(Effect::Reported(token))
    }

    pub(super) fn cancel_install(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
    ) -> Result<Effect, Rejection> {
        let name = &self.named_machine(uuid)?.name;
        let install = self.active_install(uuid).cloned().ok_or_else(|| {
            Rejection::Conflict(format!("machine `{name}` is not being installed"))
        })?;
        let phase = InstallPhase::Cancelled;
        let why = format!("{} cancelled it", context.actor.0);
        let install = self.end_install(context, install, phase, &why, None);
        Ok(Effect::Install(Box::new(install)))
    }

    /// Ends an order whose machine is given another bootenv.
    pub(super) fn supersede_install(&mut self, context: Context<'_>, machine: &Machine) {
        let other = |install: &&Install| install.bootenv != machine.bootenv;
        if let Some(install) = self.active_install(machine.uuid).filter(other).cloned() {
            let why = format!(
                "{} gave the machine bootenv `{}`",
                context.actor.0, machine.bootenv
            );
            self.conclude(context, install, InstallPhase::Cancelled, &why, None);
        }
    }

    pub(super) fn lock_machine(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
        reason: &str,
    ) -> Result<Effect, Rejection> {
        let machine = self.named_machine(uuid)?;
        if reason.len() > REASON_MAX || reason.chars().any(char::is_control) {
            return Err(invalid(
                "reason",
                &format!("has at most {REASON_MAX} octets, on one line"),
            ));
        }
        if self.active_install(uuid).is_some() {
            return Err(Rejection::Conflict(format!(
                "machine `{0}` is being installed; wait for its end, or \
                 `muster machines cancel {0}` first",
                machine.name
            )));
        }
        let known = self.lock(uuid);
        if known.is_some_and(|lock| lock.reason == reason) {
            return Ok(Effect::Done);
        }
        let action = match known {
            Some(_) => Action::Updated,
            None => Action::Created,
        };
        let lock = Lock {
            machine: uuid,
            reason: reason.to_owned(),
            at: context.at,
            by: context.actor.clone(),
        };
        self.put(RowKey::Lock(uuid), Some(Row::Lock(Arc::new(lock.clone()))));
        self.changed(context, action, Subject::Lock(lock));
        Ok(Effect::Done)
    }

    /// Unlocking what is not locked is no change.
    pub(super) fn unlock_machine(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
    ) -> Result<Effect, Rejection> {
        self.named_machine(uuid)?;
        if let Some(lock) = self.lock(uuid).cloned() {
            self.put(RowKey::Lock(uuid), None);
            self.changed(context, Action::Deleted, Subject::Lock(lock));
        }
        Ok(Effect::Done)
    }

    /// Forgets how a machine booted that is deleted.
    pub(super) fn forget_boots(&mut self, machine: Uuid) {
        let rows = [
            (self.reports.contains_key(&machine), RowKey::Report(machine)),
            (
                self.installs.contains_key(&machine),
                RowKey::Install(machine),
            ),
            (
                self.timelines.contains_key(&machine),
                RowKey::Timeline(machine),
            ),
        ];
        for (_, key) in rows.into_iter().filter(|(there, _)| *there) {
            self.put(key, None);
        }
    }

    /// Ends an order; its machine boots the disk.
    fn end_install(
        &mut self,
        context: Context<'_>,
        install: Install,
        phase: InstallPhase,
        why: &str,
        node: Option<NodeId>,
    ) -> Install {
        self.set_bootenv(context, install.machine, LOCAL);
        self.conclude(context, install, phase, why, node)
    }

    /// Ends an order, and says so.
    fn conclude(
        &mut self,
        context: Context<'_>,
        install: Install,
        phase: InstallPhase,
        why: &str,
        node: Option<NodeId>,
    ) -> Install {
        let install = Install {
            phase,
            ended: Some(Ended {
                at: context.at,
                why: why.to_owned(),
            }),
            ..install
        };
        self.write_install(context, Action::Updated, install.clone());
        let why = why.to_owned();
        let step = Step::Install { phase, why };
        self.note(context, install.machine, node, step);
        if phase == InstallPhase::Failed {
            let alert = Alert {
                node: node.unwrap_or_default(),
                trouble: Trouble::InstallFailed {
                    machine: install.machine,
                    bootenv: install.bootenv.clone(),
                    attempts: install.attempt,
                    why: install.ended.clone().map_or_else(String::new, |it| it.why),
                },
            };
            self.changed(context, Action::Created, Subject::Alert(alert));
        }
        install
    }

    fn set_bootenv(&mut self, context: Context<'_>, uuid: Uuid, bootenv: &str) {
        let machine = self.machine_with_uuid(uuid);
        if let Some(machine) = machine.filter(|machine| machine.bootenv != bootenv) {
            let machine = Machine {
                bootenv: bootenv.to_owned(),
                ..machine.clone()
            };
            self.write_object(context, Object::Machine(machine));
        }
    }

    fn write_install(&mut self, context: Context<'_>, action: Action, install: Install) {
        self.put_install(install.clone());
        self.changed(context, action, Subject::Install(install));
    }

    fn put_install(&mut self, install: Install) {
        self.put(
            RowKey::Install(install.machine),
            Some(Row::Install(Arc::new(install))),
        );
    }
}

pub(super) fn check_attempts(field: &str, attempts: u32) -> Result<(), Rejection> {
    if (1..=ATTEMPTS_MAX).contains(&attempts) {
        Ok(())
    } else {
        Err(invalid(field, &format!("must be 1 to {ATTEMPTS_MAX}")))
    }
}

//! From a committed entry to new state: the one `match` on commands.

use std::sync::Arc;

use uuid::Uuid;

use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Command, Effect, Entry, Outcome, Rejection};
use crate::event::{Action, Change, Subject};
use crate::model::{BootReport, NodeId, Revision, Step, Verdict};

/// Characters of a callback in its event; the whole of the last one stands beside the machine.
const REPORT_TOLD_MAX: usize = 1024;

impl State {
    /// Applies a committed entry: the only way in which state changes.
    ///
    /// `revision` is that of the entry's first proposal. Deterministic: the same entries in the
    /// same order give the same rows, outcomes and changes on every node. A refused proposal
    /// changes nothing.
    pub fn apply(&mut self, revision: Revision, entry: &Entry) -> Vec<(Outcome, Vec<Arc<Change>>)> {
        let at = self.meta.time.max(entry.at);
        let mut meta = self.meta.clone();
        meta.time = at;
        let last = entry.proposals.len().saturating_sub(1) as u64;
        meta.revision = Revision(revision.0.saturating_add(last));
        meta.schema = meta.schema.max(1);
        meta.forgotten = self.trim_history().unwrap_or(meta.forgotten);
        meta.retries_forgotten = self.forget(at).unwrap_or(meta.retries_forgotten);
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        let outcomes = entry
            .proposals
            .iter()
            .zip(0u64..)
            .map(|(proposal, position)| {
                let revision = Revision(revision.0.saturating_add(position));
                let context = Context {
                    request: proposal.request,
                    revision,
                    // A proposal before this one may have corrected it.
                    at: self.meta.time,
                    actor: &proposal.actor,
                };
                self.undo.clear();
                self.changes.clear();
                let first = match self.recall(context, proposal.remember) {
                    Ok(Some(first)) => return (first, Vec::new()),
                    Ok(None) => Ok(()),
                    Err(rejection) => Err(rejection),
                };
                let result = first
                    .and_then(|()| self.check_revision(proposal.if_match, &proposal.command))
                    .and_then(|()| self.execute(context, &proposal.command));
                match &result {
                    Ok(effect) => self.keep(context, proposal.remember, effect),
                    Err(_) => self.roll_back(),
                }
                let changes = std::mem::take(&mut self.changes);
                self.record(&changes);
                (Outcome { revision, result }, changes)
            })
            .collect();
        self.undo.clear();
        outcomes
    }

    fn execute(&mut self, context: Context<'_>, command: &Command) -> Result<Effect, Rejection> {
        self.check_needs(command)?;
        match command {
            Command::Found(founding) => self.found(context, founding),
            Command::Refound(refounding) => self.refound(context, refounding),
            Command::Put { object, mode } => self.put_object(context, object, *mode),
            Command::Delete { kind, key } => self.delete_object(context, *kind, key),
            Command::Expect {
                kind,
                key,
                revision,
            } => self.expect(*kind, key, *revision),
            Command::Many(commands) => self.execute_many(context, commands),
            Command::Bind(bind) => self.bind(context, bind),
            Command::Release {
                client,
                address,
                sent,
            } => self.release(context, client, *address, *sent),
            Command::Decline { client, address } => self.decline(context, client, *address),
            Command::Quarantine {
                client,
                address,
                node,
            } => self.quarantine(context, client, *address, *node),
            Command::Expire => Ok(self.expire(context)),
            Command::Reclaim { applied_by_all } => Ok(self.reclaim(context, *applied_by_all)),
            Command::CorrectTime { to } => Ok(self.correct_time(context, *to)),
            Command::EndLease { address } => self.end_lease(context, *address),
            Command::AddMember { member, token } => self.add_member(context, member, *token),
            Command::UpdateMember(member) => self.update_member(context, member),
            Command::RemoveMember { node } => self.remove_member(context, *node),
            Command::RaiseSchema { to } => self.raise_schema(context, *to),
            Command::AddJoinToken(token) => {
                self.put(
                    RowKey::JoinToken(token.hash),
                    Some(Row::JoinToken(token.clone())),
                );
                Ok(Effect::Done)
            }
            Command::RevokeJoinTokens => {
                for hash in self.join_tokens.keys().copied().collect::<Vec<_>>() {
                    self.put(RowKey::JoinToken(hash), None);
                }
                Ok(Effect::Done)
            }
            Command::AddToken(token) => self.add_token(token),
            Command::RevokeTokens { user } => {
                self.revoke_tokens(user);
                Ok(Effect::Done)
            }
            Command::AddKey(key) => self.add_key(key),
            Command::DropKeys { below } => self.drop_keys(*below),
            Command::Alert(alert) => {
                let subject = Subject::Alert((**alert).clone());
                self.changed(context, Action::Created, subject);
                Ok(Effect::Done)
            }
            Command::Report {
                machine,
                body,
                verdict,
                node,
            } => self.report_boot(context, *machine, body, *verdict, *node),
            Command::OrderInstall {
                machine,
                bootenv,
                attempts,
            } => self.order_install(context, *machine, bootenv, *attempts),
            Command::OpenAttempt {
                machine,
                read,
                started,
                node,
            } => self.open_attempt(context, *machine, *read, *started, *node),
            Command::CancelInstall { machine } => self.cancel_install(context, *machine),
            Command::LockMachine { machine, reason } => {
                self.lock_machine(context, *machine, reason)
            }
            Command::UnlockMachine { machine } => self.unlock_machine(context, *machine),
            Command::LabelMachine {
                machine,
                set,
                remove,
            } => self.label_machine(context, *machine, set, remove),
            Command::Saw { node, seen } => self.saw(context, *node, seen),
            Command::BootStalled { machine, node } => self.boot_stalled(context, *machine, *node),
        }
    }

    fn execute_many(
        &mut self,
        context: Context<'_>,
        commands: &[Command],
    ) -> Result<Effect, Rejection> {
        if commands.len() > Command::MANY_MAX {
            return Err(Rejection::Invalid {
                field: "commands".into(),
                problem: format!("more than {} in one bundle; split it", Command::MANY_MAX),
            });
        }
        let effects = commands.iter().map(|command| match command {
            Command::Many(_) => Err(Rejection::Invalid {
                field: "commands".into(),
                problem: "a bundle inside a bundle".into(),
            }),
            single => self.execute(context, single),
        });
        effects.collect::<Result<_, _>>().map(Effect::Many)
    }

    fn report_boot(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        body: &str,
        verdict: Option<Verdict>,
        node: Option<NodeId>,
    ) -> Result<Effect, Rejection> {
        self.named_machine(machine)?;
        let report = BootReport {
            machine,
            at: context.at,
            body: body.to_owned(),
        };
        self.put(RowKey::Report(machine), Some(Row::Report(report.clone())));
        let told = BootReport {
            body: report.body.chars().take(REPORT_TOLD_MAX).collect(),
            ..report
        };
        self.changed(context, Action::Created, Subject::Report(told));
        self.note(context, machine, node, Step::Reported);
        match verdict {
            None => Ok(Effect::Done),
            Some(verdict) => self.settle_install(context, machine, verdict, node),
        }
    }
}

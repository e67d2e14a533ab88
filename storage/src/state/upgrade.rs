//! Which schema the cluster behaves as, and when it may go on to the next.
//!
//! Every member says which schemas its binary supports. The cluster goes on to a newer one by an
//! entry of the log, and only when all members support it; there is no way back from then on.

use super::row::{Row, RowKey};
use super::table::{Context, Meta, State};
use crate::command::{Command, Effect, Rejection};
use crate::event::{Action, Subject};
use crate::model::{Member, Timestamp};
use crate::schema::{self, Corrupt, Needs};

impl State {
    /// Schema that the cluster behaves as.
    pub fn schema(&self) -> u16 {
        self.meta.schema.max(1)
    }

    /// The newest schema that every member, learners included, supports.
    pub fn common_schema(&self) -> u16 {
        let supported = self.members().map(|member| member.max_schema);
        supported.min().unwrap_or(self.schema())
    }

    /// Since when every member has supported a newer schema than the cluster behaves as.
    pub fn raisable_since(&self) -> Option<Timestamp> {
        self.meta.raisable_since
    }

    /// When the cluster goes on to a newer schema by itself: what the settings say after every
    /// member has come to support it. None while one does not, or when only people decide.
    pub fn raise_due(&self) -> Option<Timestamp> {
        let after = u64::from(self.settings().finalize_after_secs);
        let since = self.meta.raisable_since.filter(|_| after != 0)?;
        Some(Timestamp(
            since.0.saturating_add(after.saturating_mul(1000)),
        ))
    }

    /// Whether the cluster is at a schema that has this command, and the fields in it.
    ///
    /// # Errors
    /// Says what to do when it is not.
    pub fn check_needs(&self, command: &Command) -> Result<(), Rejection> {
        let (needed, schema) = (command.needs(), self.schema());
        if needed <= schema {
            return Ok(());
        }
        Err(Rejection::Conflict(format!(
            "this needs schema {needed}, and the cluster is at {schema}: when every node is \
             upgraded, `muster cluster finalize`"
        )))
    }

    pub(super) fn raise_schema(
        &mut self,
        context: Context<'_>,
        to: u16,
    ) -> Result<Effect, Rejection> {
        if to <= self.schema() {
            return Ok(Effect::Done);
        }
        let without: Vec<&str> = self
            .members()
            .filter(|member| member.max_schema < to)
            .map(|member| member.name.as_str())
            .collect();
        if !without.is_empty() {
            return Err(Rejection::Conflict(format!(
                "schema {to} is not known to the muster on {}; upgrade there first",
                without.join(", ")
            )));
        }
        if to > schema::CURRENT {
            // This node's record says that its binary knows it, and the binary was put back since.
            self.stop(Corrupt::Newer {
                what: "state",
                found: to,
            });
        }
        let meta = Meta {
            schema: to,
            ..self.meta.clone()
        };
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        self.note_raisable(context.at);
        self.changed(context, Action::Updated, Subject::Schema(to));
        Ok(Effect::Done)
    }

    /// Whether a node may be a member while the cluster is as it is.
    pub(super) fn check_member_schema(&self, member: &Member) -> Result<(), Rejection> {
        let schema = self.schema();
        if member.max_schema < schema {
            return Err(Rejection::Conflict(format!(
                "the muster {} on node `{}` knows schemas up to {}, and this cluster is at {schema}; \
                 install a newer one there",
                member.version, member.name, member.max_schema
            )));
        }
        if member.min_schema > schema {
            return Err(Rejection::Conflict(format!(
                "the muster {} on node `{}` knows schemas from {} on, and this cluster is at \
                 {schema}; install a version in between there, and `muster cluster finalize`",
                member.version, member.name, member.min_schema
            )));
        }
        Ok(())
    }

    /// Notes whether the cluster can go on to a newer schema, after its members have changed.
    pub(super) fn note_raisable(&mut self, at: Timestamp) {
        let raisable = self.common_schema() > self.schema();
        let since = self.meta.raisable_since;
        let now = raisable.then(|| since.unwrap_or(at));
        if now != since {
            let meta = Meta {
                raisable_since: now,
                ..self.meta.clone()
            };
            self.put(RowKey::Meta, Some(Row::Meta(meta)));
        }
    }
}

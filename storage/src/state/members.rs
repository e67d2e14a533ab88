//! Nodes, tokens and the founding of the cluster.

use std::net::Ipv4Addr;

use super::row::{Row, RowKey};
use super::table::{Cluster, Context, Meta, State};
use crate::command::{Effect, Founding, Refounding, Rejection};
use crate::event::{Action, Subject};
use crate::model::{
    Identifier, JoinToken, Member, NodeId, Object, Record, Settings, Sha256, Timestamp, Token, User,
};

impl State {
    pub(super) fn found(
        &mut self,
        context: Context<'_>,
        founding: &Founding,
    ) -> Result<Effect, Rejection> {
        if self.cluster.is_some() {
            return Err(Rejection::Conflict("the cluster is founded already".into()));
        }
        self.put(
            RowKey::Cluster,
            Some(Row::Cluster(Cluster {
                id: founding.cluster_id,
                ca_pem: founding.ca_pem.clone(),
                ca_key_sealed: founding.ca_key_sealed.clone(),
                keyring: founding.keyring.clone(),
            })),
        );
        let member = Member {
            id: NodeId(1),
            ..founding.member.clone()
        };
        // A new cluster has nobody to wait for.
        let meta = Meta {
            schema: member.max_schema.max(1),
            ..self.meta.clone()
        };
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        self.write_member(context, member, Action::Created);
        for object in [
            Object::Settings(Settings::default()),
            Object::User(User {
                name: "admin".into(),
                password_hash: founding.admin_password_hash.clone(),
            }),
        ] {
            self.write_object(context, object);
        }
        Ok(Effect::Member(NodeId(1)))
    }

    pub(super) fn refound(
        &mut self,
        context: Context<'_>,
        refounding: &Refounding,
    ) -> Result<Effect, Rejection> {
        let Some(cluster) = self.cluster.as_deref().cloned() else {
            return Err(Rejection::Conflict("there is no cluster yet".into()));
        };
        self.put(
            RowKey::Cluster,
            Some(Row::Cluster(Cluster {
                id: refounding.cluster_id,
                ca_pem: cluster.ca_pem,
                ca_key_sealed: refounding.ca_key_sealed.clone(),
                keyring: refounding.keyring.clone(),
            })),
        );
        for node in self.members.keys().copied().collect::<Vec<_>>() {
            self.remove_member(context, node)?;
        }
        // What was revoked after the state was kept must not come alive again.
        let join_tokens = self.join_tokens.keys().copied().map(RowKey::JoinToken);
        let tokens = self.tokens.keys().copied().map(RowKey::Token);
        for token in join_tokens.chain(tokens).collect::<Vec<_>>() {
            self.put(token, None);
        }
        let id = NodeId(context.revision.0);
        let member = Member {
            id,
            ..refounding.member.clone()
        };
        self.write_member(context, member, Action::Created);
        Ok(Effect::Member(id))
    }

    pub(super) fn add_member(
        &mut self,
        context: Context<'_>,
        member: &Member,
        token: Option<Sha256>,
    ) -> Result<Effect, Rejection> {
        if let Some(hash) = token {
            let valid = |known: &&JoinToken| known.expires_at > context.at;
            self.join_token(&hash)
                .filter(valid)
                .ok_or(Rejection::TokenRefused)?;
        }
        self.check_member_name(member, None)?;
        self.check_member_schema(member)?;
        // The position keeps ids apart when several nodes join in one entry; ids of entries cannot
        // overlap because the log index is scaled.
        let id = NodeId(context.revision.0);
        let member = Member {
            id,
            ..member.clone()
        };
        self.write_member(context, member, Action::Created);
        Ok(Effect::Member(id))
    }

    pub(super) fn update_member(
        &mut self,
        context: Context<'_>,
        member: &Member,
    ) -> Result<Effect, Rejection> {
        if self.member(member.id).is_none() {
            return Err(Rejection::NotFound {
                kind: "node".into(),
                key: member.id.to_string(),
            });
        }
        self.check_member_name(member, Some(member.id))?;
        self.check_member_schema(member)?;
        self.write_member(context, member.clone(), Action::Updated);
        Ok(Effect::Done)
    }

    pub(super) fn check_member_name(
        &self,
        member: &Member,
        own: Option<NodeId>,
    ) -> Result<(), Rejection> {
        match self.member_named(&member.name) {
            Some(other) if Some(other.id) != own => Err(Rejection::Conflict(format!(
                "a node named `{}` is in the cluster already; remove it first or use another name",
                member.name
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn remove_member(
        &mut self,
        context: Context<'_>,
        node: NodeId,
    ) -> Result<Effect, Rejection> {
        let member = self.member(node).cloned().ok_or(Rejection::NotFound {
            kind: "node".into(),
            key: node.to_string(),
        })?;
        self.retire_identifiers(context, node, &[]);
        // It may not have heard of what was given back, and may confirm it while it is cut off.
        let meta = Meta {
            no_reclaim_until: self
                .meta
                .no_reclaim_until
                .max(self.longest_hold(context.at)),
            ..self.meta.clone()
        };
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        self.put(RowKey::Member(node), None);
        self.note_raisable(context.at);
        self.changed(context, Action::Deleted, Subject::Member(member));
        Ok(Effect::Done)
    }

    /// When the last lease that was granted so far ends; `at` if that is over.
    fn longest_hold(&self, at: Timestamp) -> Timestamp {
        self.leases_due
            .last()
            .map_or(at, |(held_until, _)| (*held_until).max(at))
    }

    /// Identifiers of a node that are not in `kept` are honoured until the longest lease granted so
    /// far ends: clients name them until then.
    fn retire_identifiers(&mut self, context: Context<'_>, node: NodeId, kept: &[Ipv4Addr]) {
        let until = self.longest_hold(context.at);
        let retired: Vec<Identifier> = self
            .identifiers
            .values()
            .filter(|known| {
                known.node == node && known.until.is_none() && !kept.contains(&known.address)
            })
            .cloned()
            .collect();
        for identifier in retired {
            let identifier = Identifier {
                until: Some(until),
                ..identifier
            };
            self.put(
                RowKey::Identifier(identifier.address),
                Some(Row::Identifier(identifier)),
            );
        }
    }

    pub(super) fn write_member(&mut self, context: Context<'_>, member: Member, action: Action) {
        self.retire_identifiers(context, member.id, &member.identifiers);
        for address in &member.identifiers {
            self.put(
                RowKey::Identifier(*address),
                Some(Row::Identifier(Identifier {
                    address: *address,
                    node: member.id,
                    until: None,
                })),
            );
        }
        let created_at = self
            .members
            .get(&member.id)
            .map_or(context.at, |record| record.created_at);
        let record = Record {
            revision: context.revision,
            created_at,
            updated_at: context.at,
            object: member.clone(),
        };
        self.put(RowKey::Member(member.id), Some(Row::Member(record)));
        self.note_raisable(context.at);
        self.changed(context, action, Subject::Member(member));
    }

    pub(super) fn add_token(&mut self, token: &Token) -> Result<Effect, Rejection> {
        if self.user(&token.user).is_none() {
            return Err(Rejection::NotFound {
                kind: "user".into(),
                key: token.user.clone(),
            });
        }
        self.put(RowKey::Token(token.hash), Some(Row::Token(token.clone())));
        Ok(Effect::Done)
    }

    pub(super) fn revoke_tokens(&mut self, user: &str) {
        let of_user = self.tokens.values().filter(|token| token.user == user);
        for hash in of_user.map(|token| token.hash).collect::<Vec<_>>() {
            self.put(RowKey::Token(hash), None);
        }
    }

    /// Tokens and identifiers whose time is over at `at`.
    pub(super) fn forgettable(&self, at: Timestamp) -> impl Iterator<Item = RowKey> + '_ {
        let tokens = self
            .tokens
            .values()
            .filter(move |token| token.expires_at <= at)
            .map(|token| RowKey::Token(token.hash));
        let join_tokens = self
            .join_tokens
            .values()
            .filter(move |token| token.expires_at <= at)
            .map(|token| RowKey::JoinToken(token.hash));
        let identifiers = self
            .identifiers
            .values()
            .filter(move |identifier| identifier.until.is_some_and(|until| until <= at))
            .map(|identifier| RowKey::Identifier(identifier.address));
        tokens.chain(join_tokens).chain(identifiers)
    }

    pub(super) fn has_forgettable(&self, at: Timestamp) -> bool {
        self.forgettable(at).next().is_some()
    }

    pub(super) fn forget_expired(&mut self, at: Timestamp) {
        for key in self.forgettable(at).collect::<Vec<_>>() {
            self.put(key, None);
        }
    }
}

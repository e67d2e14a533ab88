//! Rules for the objects that people write.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use uuid::Uuid;

use super::artifacts::check_settings;
use super::install::check_attempts;
use super::labels::check_labels;
use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Command, Effect, PutMode, Rejection};
use crate::event::{Action, Subject};
use crate::model::{
    Bootenv, LOCAL, Mac, Machine, Object, ObjectKind, Pool, Record, Reservation, Revision,
    Settings, Subnet,
};

/// Longest name or path, in octets: it has to fit a URL and a screen.
const NAME_MAX: usize = 255;

/// Widest pool, as a number of addresses: its bitmap is 2 MiB.
const POOL_MAX: u32 = 1 << 24;

impl State {
    pub(super) fn check_revision(
        &self,
        if_match: Option<Revision>,
        command: &Command,
    ) -> Result<(), Rejection> {
        let Some(expected) = if_match else {
            return Ok(());
        };
        let current = match command {
            Command::Put { object, .. } => self.revision_of(object.kind(), &object.key()),
            Command::Delete { kind, key } => self.revision_of(*kind, key),
            Command::EndLease { address } => self
                .leases
                .get(address)
                .map_or_else(Revision::default, |record| record.revision),
            _ => Revision::default(),
        };
        is_at(current, expected)
    }

    pub(super) fn expect(
        &self,
        kind: ObjectKind,
        key: &str,
        revision: Revision,
    ) -> Result<Effect, Rejection> {
        is_at(self.revision_of(kind, key), revision).map(|()| Effect::Done)
    }

    fn revision_of(&self, kind: ObjectKind, key: &str) -> Revision {
        let record = self.object(kind, key);
        record.map_or_else(Revision::default, |record| record.revision)
    }

    pub(super) fn put_object(
        &mut self,
        context: Context<'_>,
        object: &Object,
        mode: PutMode,
    ) -> Result<Effect, Rejection> {
        let (kind, key) = (object.kind(), object.key());
        let known = self.object(kind, &key).cloned();
        match (mode, &known) {
            (PutMode::Create, Some(_)) => {
                return Err(Rejection::Exists {
                    kind: kind.to_string(),
                    key,
                });
            }
            (PutMode::Replace | PutMode::Reseal, None) => return Err(not_found(kind, &key)),
            (PutMode::Reseal, Some(known)) if !known.object.is_but_resealed(object) => {
                return Err(invalid("sealed", "only that may differ, by newer keys"));
            }
            _ => {}
        }
        let mut object = object.clone();
        if let Object::Machine(machine) = &mut object {
            self.settle_uuid(context, machine)?;
        }
        if let Object::Param(param) = &object
            && !param.secure
        {
            self.check_shown(&param.name, true)?;
        }
        self.check(&object)?;
        self.check_sealed(&object)?;
        let created = known.is_none();
        // Writing what is there already is no change: bundles can be applied again and again.
        if known.is_none_or(|record| record.object != object) {
            if let Object::Machine(machine) = &object {
                if mode != PutMode::Reseal {
                    self.check_unlocked(machine)?;
                }
                self.supersede_install(context, machine);
            }
            self.write_object(context, object);
        }
        Ok(Effect::Stored { kind, key, created })
    }

    pub(super) fn write_object(&mut self, context: Context<'_>, object: Object) {
        let (kind, key) = (object.kind(), object.key());
        let known = self.object(kind, &key);
        let action = match known {
            Some(_) => Action::Updated,
            None => Action::Created,
        };
        let record = Record {
            revision: context.revision,
            created_at: known.map_or(context.at, |record| record.created_at),
            updated_at: context.at,
            object: object.clone(),
        };
        self.put(
            RowKey::Object(kind, key),
            Some(Row::Object(Box::new(record))),
        );
        self.changed(context, action, Subject::Object(object));
    }

    /// Refuses to take away what hides the values of a param while there are some; with `default`,
    /// the default of the declaration is one.
    fn check_shown(&self, name: &str, default: bool) -> Result<(), Rejection> {
        let Some(declared) = self.param(name).filter(|param| param.secure) else {
            return Ok(());
        };
        let has_default = declared.default.is_some() || declared.default_sealed.is_some();
        let own = (default && has_default).then(|| "its own default".to_owned());
        let holders = self
            .holders(name)
            .map(|holder| format!("{} `{}`", holder.object.kind(), holder.object.key()));
        let named: Vec<String> = own.into_iter().chain(holders).take(5).collect();
        if named.is_empty() {
            return Ok(());
        }
        Err(Rejection::InUse {
            kind: ObjectKind::Param.to_string(),
            key: name.to_owned(),
            by: format!("{}, whose secret would be shown", named.join(", ")),
        })
    }

    pub(super) fn delete_object(
        &mut self,
        context: Context<'_>,
        kind: ObjectKind,
        key: &str,
    ) -> Result<Effect, Rejection> {
        let record = self
            .object(kind, key)
            .cloned()
            .ok_or_else(|| not_found(kind, key))?;
        if kind == ObjectKind::User && key == "admin" {
            return Err(Rejection::Conflict(
                "the user `admin` cannot be deleted; change its password instead".into(),
            ));
        }
        if kind == ObjectKind::Param {
            self.check_shown(key, false)?;
        }
        if let Some(by) = self.user_of(kind, key) {
            return Err(Rejection::InUse {
                kind: kind.to_string(),
                key: key.to_owned(),
                by,
            });
        }
        if let Object::Machine(machine) = &record.object {
            self.check_unlocked(machine)?;
            self.forget_boots(machine.uuid);
        }
        self.put(RowKey::Object(kind, key.to_owned()), None);
        if let Object::User(user) = &record.object {
            self.revoke_tokens(&user.name);
        }
        self.changed(
            context,
            Action::Deleted,
            Subject::Object(record.object.clone()),
        );
        Ok(Effect::Done)
    }

    /// The first object that names this one.
    fn user_of(&self, kind: ObjectKind, key: &str) -> Option<String> {
        let names = |object: &Object| match (kind, object) {
            (ObjectKind::Bootenv, Object::Machine(machine)) => machine.bootenv == key,
            (ObjectKind::Bootenv, Object::Settings(settings)) => settings.unknown_bootenv == key,
            (ObjectKind::Profile, Object::Machine(machine)) => {
                machine.profiles.iter().any(|name| name == key)
            }
            (ObjectKind::Template, Object::Bootenv(bootenv)) => {
                bootenv.files.iter().any(|file| file.template == key)
            }
            (ObjectKind::Artifact, Object::Bootenv(bootenv)) => bootenv
                .kernel
                .iter()
                .chain(&bootenv.initrds)
                .any(|path| path == key),
            _ => false,
        };
        [
            ObjectKind::Settings,
            ObjectKind::Bootenv,
            ObjectKind::Machine,
        ]
        .into_iter()
        .flat_map(|user| self.objects_after(user, None))
        .map(|record| &record.object)
        .find(|object| names(object))
        .map(|object| format!("{} `{}`", object.kind(), object.key()))
    }

    /// A machine keeps its UUID for life; one without gets one that every node computes alike.
    fn settle_uuid(&self, context: Context<'_>, machine: &mut Machine) -> Result<(), Rejection> {
        let known =
            self.object(ObjectKind::Machine, &machine.name)
                .and_then(|record| match &record.object {
                    Object::Machine(known) => Some(known.uuid),
                    _ => None,
                });
        machine.uuid = match (known, machine.uuid) {
            (Some(known), given) if given.is_nil() || given == known => known,
            (Some(known), _) => {
                return Err(Rejection::Conflict(format!(
                    "machine `{}` has uuid {known}, which cannot change",
                    machine.name
                )));
            }
            (None, given) if given.is_nil() => {
                // Not to be guessed: the request's id is random, unless a client chose its key.
                let unique = format!("{} {} {}", context.revision, context.at.0, machine.name);
                Uuid::new_v5(&context.request.0, unique.as_bytes())
            }
            (None, given) => given,
        };
        Ok(())
    }

    fn check(&self, object: &Object) -> Result<(), Rejection> {
        match object {
            Object::Reservation(reservation) => return self.check_reservation(reservation),
            Object::Artifact(artifact) => {
                return self.check_artifact(&artifact.path, artifact.size);
            }
            Object::Settings(settings) if settings.name != Settings::name() => {
                return Err(invalid("name", "there is one settings object, `cluster`"));
            }
            other => check_name("name", &other.key())?,
        }
        match object {
            Object::Subnet(subnet) => self.check_subnet(subnet),
            Object::Machine(machine) => self.check_machine(machine),
            Object::Bootenv(bootenv) => check_bootenv(bootenv),
            Object::User(user) if user.name.contains(['/', ':']) => {
                Err(invalid("name", "a user's name has no `/` and no `:`"))
            }
            Object::Settings(settings) if settings.lease_secs == 0 => {
                Err(invalid("lease_secs", "must be at least 1"))
            }
            Object::Settings(settings) => {
                check_attempts("install_attempts", settings.install_attempts)?;
                check_settings(settings)
            }
            _ => Ok(()),
        }
    }

    fn check_subnet(&self, subnet: &Subnet) -> Result<(), Rejection> {
        if subnet.cidr.network() != subnet.cidr.addr() {
            return Err(invalid(
                "cidr",
                &format!("has host bits set; write {}", subnet.cidr.trunc()),
            ));
        }
        if let Some(other) = self.overlapping(subnet) {
            return Err(Rejection::Conflict(format!(
                "cidr {} overlaps subnet `{other}`",
                subnet.cidr
            )));
        }
        let mut names = BTreeSet::new();
        for class in &subnet.classes {
            check_name("classes.name", &class.name)?;
            if !names.insert(&class.name) {
                return Err(invalid(
                    "classes",
                    &format!("two are named `{}`", class.name),
                ));
            }
            if class.lease_secs == Some(0) {
                return Err(invalid("classes.lease_secs", "must be at least 1"));
            }
        }
        if let Some(name) = &subnet.shared_network {
            check_name("shared_network", name)?;
        }
        let classes = subnet.classes.iter().flat_map(|class| &class.pools);
        let pools: Vec<&Pool> = subnet.pools.iter().chain(classes).collect();
        for pool in &pools {
            if !subnet.cidr.contains(&pool.first) || !subnet.cidr.contains(&pool.last) {
                return Err(invalid(
                    "pools",
                    &format!("{pool} is not inside {}", subnet.cidr),
                ));
            }
            if pool.len() > POOL_MAX {
                return Err(invalid(
                    "pools",
                    &format!("{pool} has more than {POOL_MAX} addresses"),
                ));
            }
            let unusable = |address: Ipv4Addr| {
                subnet.cidr.prefix_len() < 31
                    && (address == subnet.cidr.network() || address == subnet.cidr.broadcast())
            };
            if unusable(pool.first) || unusable(pool.last) {
                return Err(invalid(
                    "pools",
                    &format!("{pool} has the network or the broadcast address in it"),
                ));
            }
        }
        for (index, pool) in pools.iter().enumerate() {
            let overlaps =
                |other: &&&Pool| pool.contains(other.first) || other.contains(pool.first);
            if let Some(other) = pools.iter().skip(index + 1).find(overlaps) {
                return Err(invalid("pools", &format!("{pool} overlaps {other}")));
            }
        }
        match subnet.lease_secs {
            Some(0) => Err(invalid("lease_secs", "must be at least 1")),
            _ => Ok(()),
        }
    }

    /// Another subnet that shares addresses with this one.
    fn overlapping(&self, subnet: &Subnet) -> Option<String> {
        self.objects_after(ObjectKind::Subnet, None)
            .find_map(|record| match &record.object {
                Object::Subnet(other)
                    if other.name != subnet.name
                        && (other.cidr.contains(&subnet.cidr)
                            || subnet.cidr.contains(&other.cidr)) =>
                {
                    Some(other.name.clone())
                }
                _ => None,
            })
    }

    fn check_reservation(&self, reservation: &Reservation) -> Result<(), Rejection> {
        let owners = usize::from(reservation.mac.is_some())
            + usize::from(reservation.client_id.is_some())
            + usize::from(reservation.machine.is_some())
            + usize::from(reservation.uuid.is_some())
            + usize::from(reservation.circuit_id.is_some() || reservation.remote_id.is_some());
        if owners != 1 {
            return Err(invalid(
                "mac",
                "a reservation has exactly one of mac, client_id, machine, uuid, or circuit_id \
                 with or without remote_id",
            ));
        }
        Ok(())
    }

    fn check_machine(&self, machine: &Machine) -> Result<(), Rejection> {
        if machine.name.parse::<Mac>().is_ok() || machine.name.parse::<Uuid>().is_ok() {
            return Err(invalid(
                "name",
                "a machine's name must not be a MAC or a UUID",
            ));
        }
        if machine.name.contains('/') {
            return Err(invalid("name", "a machine's name has no `/`"));
        }
        if machine.macs.is_empty() {
            return Err(invalid("macs", "a machine has at least one MAC"));
        }
        check_labels(machine)?;
        for mac in &machine.macs {
            match self.machines_by_mac.get(mac) {
                Some(owner) if *owner != machine.name => {
                    return Err(Rejection::Conflict(format!(
                        "MAC {mac} belongs to machine `{owner}`"
                    )));
                }
                _ => {}
            }
        }
        match self.machines_by_uuid.get(&machine.uuid) {
            Some(owner) if *owner != machine.name => Err(Rejection::Conflict(format!(
                "uuid {} belongs to machine `{owner}`",
                machine.uuid
            ))),
            _ => Ok(()),
        }
    }
}

fn is_at(current: Revision, expected: Revision) -> Result<(), Rejection> {
    if current == expected {
        Ok(())
    } else {
        Err(Rejection::Stale { current })
    }
}

fn check_bootenv(bootenv: &Bootenv) -> Result<(), Rejection> {
    if bootenv.name == LOCAL || bootenv.name == Settings::hold() {
        return Err(invalid("name", "`local` and `hold` are built in"));
    }
    for path in bootenv.kernel.iter().chain(&bootenv.initrds) {
        check_name("kernel or initrds", path)?;
    }
    for file in &bootenv.files {
        check_name("files.path", &file.path)?;
    }
    Ok(())
}

/// Names and paths are what a URL, a TFTP path and a shell take as they are.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Rejection> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+:@/".contains(c);
    let segments_hold = name
        .split('/')
        .all(|segment| !segment.is_empty() && segment != "." && segment != "..");
    if name.is_empty() || name.len() > NAME_MAX {
        Err(invalid(field, &format!("must have 1 to {NAME_MAX} octets")))
    } else if !name.chars().all(plain) || !segments_hold || name.trim() != name {
        Err(invalid(
            field,
            &format!("`{name}` may have letters, digits, . _ - + : @ and single / between parts"),
        ))
    } else {
        Ok(())
    }
}

pub(super) fn invalid(field: &str, problem: &str) -> Rejection {
    Rejection::Invalid {
        field: field.to_owned(),
        problem: problem.to_owned(),
    }
}

pub(super) fn not_found(kind: ObjectKind, key: &str) -> Rejection {
    Rejection::NotFound {
        kind: kind.to_string(),
        key: key.to_owned(),
    }
}

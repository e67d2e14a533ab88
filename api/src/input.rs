//! From JSON to objects, and the checks that need a template engine or a schema validator.
//!
//! What the state decides (names, addresses, owners) is decided when the write is applied; what is
//! checked here concerns only what was sent and what it names.

mod check;
mod schemas;
mod seal;

pub use check::check;
pub use schemas::{Affected, Declared, Schemas, affected};
pub use seal::{Sealing, reseal, sealing};

use std::collections::BTreeMap;

use muster_storage::model::{HIDDEN, Machine, Object, ObjectKind, Param, Profile, Sealed};
use muster_storage::state::{Kept, value_in};
use muster_storage::{Revision, State};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::auth;
use crate::problem::Problem;
use crate::view::{ADDED, INSTALL, LOCKED};

/// Name of the field that is an object's key.
pub fn key_field(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Reservation => "address",
        ObjectKind::Artifact => "path",
        ObjectKind::Subnet
        | ObjectKind::Template
        | ObjectKind::Bootenv
        | ObjectKind::Machine
        | ObjectKind::Profile
        | ObjectKind::Param
        | ObjectKind::Settings
        | ObjectKind::User => "name",
    }
}

/// A JSON object as it was sent, of a known kind, without what the cluster adds on reading.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its fields.
    pub fields: Map<String, Value>,
    /// Secrets that were put back, by param; of a param, that of its default.
    sealed: BTreeMap<String, Sealed>,
}

impl Draft {
    /// Takes what was sent; `kind` is that of the path, else the object has to say it.
    ///
    /// # Errors
    /// When it is no object, or of no or another kind.
    pub fn new(kind: Option<ObjectKind>, value: Value) -> Result<Self, Problem> {
        let Value::Object(mut fields) = value else {
            return Err(Problem::new(
                "invalid",
                "an object is expected, as in {\"name\": …}",
            ));
        };
        let said = match fields.remove("kind") {
            None => None,
            Some(Value::String(text)) => {
                let parsed = text.parse::<ObjectKind>();
                Some(parsed.map_err(|error| Problem::invalid("kind", error.to_string()))?)
            }
            Some(_) => return Err(Problem::invalid("kind", "must be a text")),
        };
        let kind = match (kind, said) {
            (Some(kind), Some(said)) if kind != said => {
                return Err(Problem::invalid(
                    "kind",
                    format!("is {said}, but {kind} is expected here"),
                ));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => return Err(Problem::invalid("kind", "is missing")),
        };
        for name in ADDED {
            fields.remove(*name);
        }
        if kind == ObjectKind::Machine {
            // As they are read; what is written by hand is refused as unknown.
            for name in [INSTALL, LOCKED] {
                if fields.get(name).is_some_and(Value::is_object) {
                    fields.remove(name);
                }
            }
        }
        Self::of_fields(kind, fields)
    }

    /// Of fields that are all the object's own.
    ///
    /// # Errors
    /// When they have what only the cluster makes.
    pub fn of_fields(kind: ObjectKind, fields: Map<String, Value>) -> Result<Self, Problem> {
        let own = ["sealed", "default_sealed"];
        match own.into_iter().find(|name| fields.contains_key(*name)) {
            Some(name) => Err(unknown_field(name, "secrets are sent as they are")),
            None => Ok(Self {
                kind,
                fields,
                sealed: BTreeMap::new(),
            }),
        }
    }

    /// Puts the key of the path in; one that was sent has to be the same.
    ///
    /// # Errors
    /// When another key was sent: objects are not renamed.
    pub fn with_key(mut self, key: &str) -> Result<Self, Problem> {
        let field = key_field(self.kind);
        let sent = self.fields.entry(field).or_insert_with(|| key.into());
        if sent.as_str() == Some(key) {
            Ok(self)
        } else {
            Err(Problem::invalid(
                field,
                format!("is not `{key}`; objects cannot be renamed"),
            ))
        }
    }

    /// The key, as far as it was sent.
    pub fn key(&self) -> Option<&str> {
        self.fields.get(key_field(self.kind))?.as_str()
    }

    /// Hashes the password that was sent for a user.
    ///
    /// # Errors
    /// When it is none.
    pub async fn with_password_hashed(mut self) -> Result<Self, Problem> {
        if self.kind != ObjectKind::User {
            return Ok(self);
        }
        if self.fields.contains_key("password_hash") {
            return Err(unknown_field("password_hash", "send `password`"));
        }
        match self.fields.remove("password") {
            Some(Value::String(password)) => {
                let hash = auth::hash_password(password).await?;
                self.fields.insert("password_hash".to_owned(), hash.into());
            }
            Some(_) => return Err(Problem::invalid("password", "must be a text")),
            None => {}
        }
        Ok(self)
    }

    /// Puts back what reading hid, so that an object can be read, edited and written: hidden params
    /// and the password of a user keep their values. The revision of what was put back, if anything
    /// was.
    pub fn keep_secrets(&mut self, state: &State) -> Option<Revision> {
        let record = state.object(self.kind, self.key()?)?;
        let kept = match &record.object {
            Object::User(user) => {
                let sent = self.fields.contains_key("password_hash");
                let hash = || user.password_hash.clone().into();
                self.fields.entry("password_hash").or_insert_with(hash);
                !sent
            }
            Object::Machine(_) | Object::Profile(_) => {
                let sent = self.fields.get_mut("params").and_then(Value::as_object_mut);
                keep_params(&record.object, sent, &mut self.sealed)
            }
            Object::Param(param) => {
                let hidden = self
                    .fields
                    .get("default")
                    .is_some_and(|sent| sent == HIDDEN);
                let known = param.default_sealed.clone().filter(|_| hidden);
                known.is_some_and(|known| {
                    self.fields.remove("default");
                    self.sealed.insert(param.name.clone(), known);
                    true
                })
            }
            Object::Subnet(_)
            | Object::Reservation(_)
            | Object::Template(_)
            | Object::Bootenv(_)
            | Object::Settings(_)
            | Object::Artifact(_) => false,
        };
        kept.then_some(record.revision)
    }

    /// Lets a reservation name its machine by name or MAC; `find` gives the UUID.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn settle_machine(&mut self, find: impl Fn(&str) -> Option<Uuid>) -> Result<(), Problem> {
        if self.kind != ObjectKind::Reservation {
            return Ok(());
        }
        if let Some(Value::String(text)) = self.fields.get_mut("machine")
            && text.parse::<Uuid>().is_err()
        {
            let uuid = find(text).ok_or_else(|| {
                Problem::invalid("machine", format!("machine `{text}` does not exist"))
            })?;
            *text = uuid.to_string();
        }
        Ok(())
    }

    /// The object, with every field checked.
    ///
    /// # Errors
    /// When a field is unknown, missing or of the wrong form; the field is named.
    pub fn parse(mut self) -> Result<Object, Problem> {
        if matches!(self.kind, ObjectKind::Subnet | ObjectKind::Machine) {
            options_to_text(self.fields.get_mut("options"));
            let classes = self.fields.get_mut("classes").and_then(Value::as_array_mut);
            for class in classes.into_iter().flatten() {
                options_to_text(class.get_mut("options"));
            }
        }
        let value = Value::Object(self.fields);
        Ok(match self.kind {
            ObjectKind::Subnet => Object::Subnet(parse(value)?),
            ObjectKind::Reservation => Object::Reservation(parse(value)?),
            ObjectKind::Template => Object::Template(parse(value)?),
            ObjectKind::Bootenv => Object::Bootenv(parse(value)?),
            ObjectKind::Machine => Object::Machine(Machine {
                sealed: self.sealed,
                ..parse(value)?
            }),
            ObjectKind::Profile => Object::Profile(Profile {
                sealed: self.sealed,
                ..parse(value)?
            }),
            ObjectKind::Param => Object::Param(Param {
                default_sealed: self.sealed.into_values().next(),
                ..parse(value)?
            }),
            ObjectKind::Settings => Object::Settings(parse(value)?),
            ObjectKind::Artifact => Object::Artifact(parse(value)?),
            ObjectKind::User => {
                Object::User(
                    parse(value).map_err(|problem| match problem.more.get("field") {
                        Some(field) if field == "password_hash" => {
                            Problem::invalid("password", "is missing")
                        }
                        _ => problem,
                    })?,
                )
            }
        })
    }
}

/// Takes those params that stand there hidden, and are sealed in the object as it is, out of what
/// was sent; whether there are any.
fn keep_params(
    known: &Object,
    sent: Option<&mut Map<String, Value>>,
    kept: &mut BTreeMap<String, Sealed>,
) -> bool {
    let Some(sent) = sent else {
        return false;
    };
    sent.retain(|name, value| {
        let known = value_in(known, name).map(|known| known.value);
        match known {
            Some(Kept::Sealed(sealed)) if *value == HIDDEN => {
                kept.insert(name.clone(), sealed.clone());
                false
            }
            _ => true,
        }
    });
    !kept.is_empty()
}

/// DHCP options whose values are numbers or booleans may be written as one would expect, too.
fn options_to_text(options: Option<&mut Value>) {
    let options = options.and_then(Value::as_object_mut);
    for value in options.into_iter().flat_map(Map::values_mut) {
        if matches!(value, Value::Number(_) | Value::Bool(_)) {
            *value = value.to_string().into();
        }
    }
}

/// Reads a value into a type that refuses unknown fields; says which field is wrong.
///
/// # Errors
/// As [`Draft::parse`].
pub fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let message = error.inner().to_string();
        let named = |prefix: &str| {
            let name = message.strip_prefix(prefix)?.split('`').next()?;
            // The path may end with the name already.
            let inside = path
                .strip_suffix(name)
                .unwrap_or(&path)
                .trim_end_matches('.');
            Some(if inside.is_empty() {
                name.to_owned()
            } else {
                format!("{inside}.{name}")
            })
        };
        if let Some(field) = named("unknown field `") {
            let advice = message.split_once(", ").map_or("", |(_, advice)| advice);
            unknown_field(&field, advice)
        } else if let Some(field) = named("missing field `") {
            Problem::invalid(&field, "is missing")
        } else if path.is_empty() {
            Problem::new("invalid", message)
        } else {
            Problem::invalid(&path, message)
        }
    })
}

fn unknown_field(field: &str, advice: &str) -> Problem {
    Problem::new(
        "unknown_field",
        format!("unknown field `{field}`; {advice}"),
    )
    .with("field", field)
}

/// Merges an RFC 7396 patch into `target`.
pub fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            if let Value::Object(fields) = target {
                for (name, value) in patch {
                    if value.is_null() {
                        fields.remove(&name);
                    } else {
                        merge(fields.entry(name).or_insert(Value::Null), value);
                    }
                }
            }
        }
        other => *target = other,
    }
}

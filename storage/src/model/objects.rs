//! What people write: machines, templates, boot environments, profiles, params, settings.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Artifact, ArtifactSettings, Loaders, LocalBoot, Mac, Reservation, Sealed, Subnet, Timestamp,
    User,
};

/// Name of the boot environment that boots the local disk.
pub const LOCAL: &str = "local";

fn local() -> String {
    LOCAL.to_owned()
}

/// A server that Muster provisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Given by the cluster if absent; never changes.
    #[serde(default)]
    pub uuid: Uuid,
    /// Unique name.
    pub name: String,
    /// Its network cards, at least one; each MAC belongs to one machine.
    pub macs: Vec<Mac>,
    /// What it boots.
    #[serde(default = "local")]
    pub bootenv: String,
    /// Sources of params, in order of precedence.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// Params of this machine, before all profiles.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    /// Values of those of its params that are secure.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sealed: BTreeMap<String, Sealed>,
    /// DHCP options of this machine, before those of its subnet, written as there.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// What its firmware loads first, before what its profiles and its subnet say.
    #[serde(default, skip_serializing_if = "Loaders::is_empty")]
    pub loaders: Loaders,
    /// How it is sent to its own disk, before what its profiles say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_boot: Option<LocalBoot>,
    /// What people tell machines apart by: rack, owner, purpose. Since schema 2.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A text that is rendered per machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Unique name.
    pub name: String,
    /// Tera source.
    pub contents: String,
}

/// What a machine boots: kernel, initrds, arguments and rendered files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootenv {
    /// Unique name.
    pub name: String,
    /// Artifact path.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Artifact paths, in load order.
    #[serde(default)]
    pub initrds: Vec<String>,
    /// Template of the kernel command line.
    #[serde(default)]
    pub kernel_args: String,
    /// Files under the machine's tree.
    #[serde(default)]
    pub files: Vec<RenderedFile>,
    /// Whether it can destroy what is on the machine's disks: it is booted by order only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub installs: bool,
}

/// A virtual file in a machine's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderedFile {
    /// Path below `/machines/UUID/`.
    pub path: String,
    /// Name of the template.
    pub template: String,
}

/// What machines share: params, and how their model boots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Unique name; `global` applies to all machines.
    pub name: String,
    /// Values by param name.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    /// What firmware of these machines loads first, before what their subnet says.
    #[serde(default, skip_serializing_if = "Loaders::is_empty")]
    pub loaders: Loaders,
    /// How these machines are sent to their own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_boot: Option<LocalBoot>,
    /// Values of params that are secure.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sealed: BTreeMap<String, Sealed>,
}

/// What a param may hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// Unique name.
    pub name: String,
    /// JSON Schema of the value.
    #[serde(default)]
    pub schema: Option<Value>,
    /// Value when nothing else gives one.
    #[serde(default)]
    pub default: Option<Value>,
    /// The same, when it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_sealed: Option<Sealed>,
    /// Whether the values are secrets: they are kept sealed, and only rendering opens them.
    #[serde(default)]
    pub secure: bool,
}

/// Cluster-wide settings: one object named `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Always `cluster`.
    #[serde(default = "Settings::name")]
    pub name: String,
    /// Bootenv of a MAC that no machine owns; `hold` prints what to do and retries slowly.
    #[serde(default = "Settings::hold")]
    pub unknown_bootenv: String,
    /// Promised lease time of subnets that name none, in seconds.
    #[serde(default = "Settings::lease_secs")]
    pub lease_secs: u32,
    /// Distance in seconds between the last committed end of a lease and its next holder.
    #[serde(default = "Settings::margin_secs")]
    pub lease_margin_secs: u32,
    /// How long a declined address is given to nobody, in seconds.
    #[serde(default = "Settings::decline_secs")]
    pub decline_secs: u32,
    /// Attempts of an install that is ordered without saying how many it may take.
    #[serde(default = "Settings::install_attempts")]
    pub install_attempts: u32,
    /// How long nothing may be seen of a boot that is under way, in seconds; 0: for ever.
    #[serde(default = "Settings::boot_stall_secs")]
    pub boot_stall_secs: u32,
    /// How long after all nodes have come to support a newer schema the cluster goes on to it by
    /// itself, in seconds; 0: only when told to by `muster cluster finalize`.
    #[serde(default = "Settings::finalize_after_secs")]
    pub finalize_after_secs: u32,
    /// What artifacts may take, and how they are looked after.
    #[serde(default, skip_serializing_if = "ArtifactSettings::is_default")]
    pub artifacts: ArtifactSettings,
}

impl Settings {
    /// Key of the one settings object.
    pub fn name() -> String {
        "cluster".to_owned()
    }

    /// Built-in answer to unknown machines.
    pub fn hold() -> String {
        "hold".to_owned()
    }

    fn lease_secs() -> u32 {
        3600
    }

    fn margin_secs() -> u32 {
        10
    }

    fn decline_secs() -> u32 {
        600
    }

    fn install_attempts() -> u32 {
        3
    }

    fn boot_stall_secs() -> u32 {
        900
    }

    fn finalize_after_secs() -> u32 {
        24 * 3600
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: Self::name(),
            unknown_bootenv: Self::hold(),
            lease_secs: Self::lease_secs(),
            lease_margin_secs: Self::margin_secs(),
            decline_secs: Self::decline_secs(),
            install_attempts: Self::install_attempts(),
            boot_stall_secs: Self::boot_stall_secs(),
            finalize_after_secs: Self::finalize_after_secs(),
            artifacts: ArtifactSettings::default(),
        }
    }
}

/// The last callback of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootReport {
    /// Who reported; the key.
    pub machine: Uuid,
    /// Entry time.
    pub at: Timestamp,
    /// What it sent, at most 64 KiB; lossy UTF-8.
    pub body: String,
}

/// One of the objects that people write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// See [`Subnet`].
    Subnet(Box<Subnet>),
    /// See [`Reservation`].
    Reservation(Reservation),
    /// See [`Template`].
    Template(Template),
    /// See [`Bootenv`].
    Bootenv(Bootenv),
    /// See [`Machine`].
    Machine(Machine),
    /// See [`Profile`].
    Profile(Profile),
    /// See [`Param`].
    Param(Param),
    /// See [`Settings`].
    Settings(Settings),
    /// See [`Artifact`].
    Artifact(Artifact),
    /// See [`User`].
    User(User),
}

/// Kinds of [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// `subnets`
    Subnet,
    /// `reservations`
    Reservation,
    /// `templates`
    Template,
    /// `bootenvs`
    Bootenv,
    /// `machines`
    Machine,
    /// `profiles`
    Profile,
    /// `params`
    Param,
    /// `settings`
    Settings,
    /// `artifacts`
    Artifact,
    /// `users`
    User,
}

impl ObjectKind {
    /// Every kind, in the order in which a bundle is applied: what is named before what names it.
    pub const ALL: [Self; 10] = [
        Self::Settings,
        Self::Param,
        Self::Profile,
        Self::Template,
        Self::Artifact,
        Self::Bootenv,
        Self::Machine,
        Self::Subnet,
        Self::Reservation,
        Self::User,
    ];

    /// The word in `kind:`.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Subnet => "subnet",
            Self::Reservation => "reservation",
            Self::Template => "template",
            Self::Bootenv => "bootenv",
            Self::Machine => "machine",
            Self::Profile => "profile",
            Self::Param => "param",
            Self::Settings => "settings",
            Self::Artifact => "artifact",
            Self::User => "user",
        }
    }

    /// The word in paths and on the command line.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Subnet => "subnets",
            Self::Reservation => "reservations",
            Self::Template => "templates",
            Self::Bootenv => "bootenvs",
            Self::Machine => "machines",
            Self::Profile => "profiles",
            Self::Param => "params",
            Self::Settings => "settings",
            Self::Artifact => "artifacts",
            Self::User => "users",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

/// No such kind of object.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no kind of object")]
pub struct UnknownKind(String);

impl FromStr for ObjectKind {
    type Err = UnknownKind;

    /// Takes the singular and the plural.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.singular() == text || kind.plural() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// What stands for a secret where it may be read.
pub const HIDDEN: &str = "<secure>";

impl Object {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Subnet(_) => ObjectKind::Subnet,
            Self::Reservation(_) => ObjectKind::Reservation,
            Self::Template(_) => ObjectKind::Template,
            Self::Bootenv(_) => ObjectKind::Bootenv,
            Self::Machine(_) => ObjectKind::Machine,
            Self::Profile(_) => ObjectKind::Profile,
            Self::Param(_) => ObjectKind::Param,
            Self::Settings(_) => ObjectKind::Settings,
            Self::Artifact(_) => ObjectKind::Artifact,
            Self::User(_) => ObjectKind::User,
        }
    }

    /// Its key among objects of its kind: the name, an address, or a path.
    pub fn key(&self) -> String {
        match self {
            Self::Subnet(o) => o.name.clone(),
            Self::Reservation(o) => o.address.to_string(),
            Self::Template(o) => o.name.clone(),
            Self::Bootenv(o) => o.name.clone(),
            Self::Machine(o) => o.name.clone(),
            Self::Profile(o) => o.name.clone(),
            Self::Param(o) => o.name.clone(),
            Self::Settings(o) => o.name.clone(),
            Self::Artifact(o) => o.path.clone(),
            Self::User(o) => o.name.clone(),
        }
    }

    /// Whether `other` is the same with its secrets sealed by newer keys.
    pub fn is_but_resealed(&self, other: &Self) -> bool {
        let newer = |one: &Sealed, other: &Sealed| one == other || one.key < other.key;
        let all_newer = |one: &BTreeMap<String, Sealed>, other: &BTreeMap<String, Sealed>| {
            let mut pairs = one.iter().zip(other);
            one.len() == other.len()
                && pairs.all(|((a, one), (b, other))| a == b && newer(one, other))
        };
        let mut resealed = self.clone();
        match (&mut resealed, other) {
            (
                Self::Machine(Machine { sealed, .. }) | Self::Profile(Profile { sealed, .. }),
                Self::Machine(Machine { sealed: after, .. })
                | Self::Profile(Profile { sealed: after, .. }),
            ) if all_newer(sealed, after) => sealed.clone_from(after),
            (Self::Param(param), Self::Param(after)) => {
                let pair = param
                    .default_sealed
                    .as_ref()
                    .zip(after.default_sealed.as_ref());
                if pair.is_none_or(|(sealed, after)| !newer(sealed, after)) {
                    return false;
                }
                param.default_sealed.clone_from(&after.default_sealed);
            }
            _ => return false,
        }
        resealed == *other
    }

    /// As anybody may read it: [`HIDDEN`] for the hash of a password, for what is sealed, and for
    /// the values of those params that are `secure`.
    pub fn without_secrets(mut self, secure: impl Fn(&str) -> bool) -> Self {
        match &mut self {
            Self::Machine(Machine { params, sealed, .. })
            | Self::Profile(Profile { params, sealed, .. }) => {
                for (_, value) in params.iter_mut().filter(|(name, _)| secure(name)) {
                    *value = HIDDEN.into();
                }
                let sealed = std::mem::take(sealed).into_keys();
                params.extend(sealed.map(|name| (name, HIDDEN.into())));
            }
            Self::Param(param) if param.secure => {
                let sealed = param.default_sealed.take().is_some();
                let known = param.default.take().is_some();
                param.default = (sealed || known).then(|| HIDDEN.into());
            }
            Self::User(user) => HIDDEN.clone_into(&mut user.password_hash),
            Self::Subnet(_)
            | Self::Reservation(_)
            | Self::Template(_)
            | Self::Bootenv(_)
            | Self::Param(_)
            | Self::Settings(_)
            | Self::Artifact(_) => {}
        }
        self
    }
}

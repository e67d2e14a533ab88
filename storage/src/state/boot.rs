//! What a machine boots: one answer for DHCP, TFTP and HTTP.

use super::table::State;
use crate::model::{
    Artifact, Bootenv, Install, LOCAL, Mac, Machine, Object, ObjectKind, Settings, Template,
};

/// Who asks to be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootClient {
    /// Its hardware address, as its packet or URL says.
    pub mac: Mac,
}

/// What the asking machine gets.
#[derive(Clone, Debug, PartialEq)]
pub struct BootPlan<'a> {
    /// The machine, if one owns the MAC.
    pub machine: Option<&'a Machine>,
    /// What to boot.
    pub target: BootTarget<'a>,
    /// Which rule said so, in words for people.
    pub rule: String,
}

/// What to boot.
#[derive(Clone, Debug, PartialEq)]
pub enum BootTarget<'a> {
    /// The local disk.
    Local,
    /// Kernel, initrds and files, all of which are there.
    Bootenv(&'a Bootenv),
    /// The same, but it can destroy what is on the disks: only for an attempt that a committed
    /// `OpenAttempt` of this order has opened or gone on with (invariant 10).
    Install {
        /// What installs.
        bootenv: &'a Bootenv,
        /// The order, which has not ended.
        install: &'a Install,
    },
    /// Nothing yet: print why, wait, ask again.
    Hold {
        /// What stands in the way and what to do, for the machine's screen; one or more lines.
        reason: String,
    },
}

impl State {
    /// What this client boots now.
    pub fn boot_plan(&self, client: &BootClient) -> BootPlan<'_> {
        let machine = self.machine_with_mac(client.mac);
        let (name, origin) = match machine {
            Some(machine) => (
                machine.bootenv.clone(),
                format!("bootenv of machine `{}`", machine.name),
            ),
            None => (
                self.settings().unknown_bootenv,
                "setting `unknown_bootenv`, because no machine owns this MAC".to_owned(),
            ),
        };
        let mut rule = format!("{origin}: `{name}`");
        let target = if name == LOCAL {
            BootTarget::Local
        } else if name == Settings::hold() {
            BootTarget::Hold {
                reason: match machine {
                    Some(machine) => format!("machine {} is set to hold", machine.name),
                    None => unowned(client.mac),
                },
            }
        } else {
            let install = machine
                .and_then(|machine| self.active_install(machine.uuid))
                .filter(|install| install.bootenv == name);
            match (self.bootenv(&name), install, machine) {
                (None, ..) => BootTarget::Hold {
                    reason: format!("bootenv {name} does not exist: create it or choose another"),
                },
                (Some(bootenv), None, Some(machine)) if bootenv.installs => {
                    rule = format!(
                        "{rule}, which installs; no install is ordered, so the machine boots its \
                         disk (muster machines install {} --bootenv {name})",
                        machine.name
                    );
                    BootTarget::Local
                }
                (Some(bootenv), None, None) if bootenv.installs => {
                    rule = format!("{rule}, which installs, and so is not for unknown machines");
                    BootTarget::Hold {
                        reason: unowned(client.mac),
                    }
                }
                (Some(bootenv), install, _) => self.bootenv_target(bootenv, install),
            }
        };
        if let BootTarget::Install { install, .. } = target {
            rule = format!(
                "{rule}, as {} ordered: {} of {} attempts",
                install.ordered_by.0, install.attempt, install.attempts
            );
        }
        BootPlan {
            machine,
            target,
            rule,
        }
    }

    fn bootenv_target<'a>(
        &self,
        bootenv: &'a Bootenv,
        install: Option<&'a Install>,
    ) -> BootTarget<'a> {
        let name = &bootenv.name;
        match (self.bootenv_problems(bootenv).into_iter().next(), install) {
            (None, _) if bootenv.kernel.is_none() => BootTarget::Hold {
                reason: format!("bootenv {name} names no kernel"),
            },
            (None, Some(install)) => BootTarget::Install { bootenv, install },
            (None, None) => BootTarget::Bootenv(bootenv),
            (Some(problem), _) => BootTarget::Hold {
                reason: format!("bootenv {name} is not available: {problem}"),
            },
        }
    }

    /// A bootenv by name.
    pub fn bootenv(&self, name: &str) -> Option<&Bootenv> {
        match &self.object(ObjectKind::Bootenv, name)?.object {
            Object::Bootenv(bootenv) => Some(bootenv),
            _ => None,
        }
    }

    /// A template by name.
    pub fn template(&self, name: &str) -> Option<&Template> {
        match &self.object(ObjectKind::Template, name)?.object {
            Object::Template(template) => Some(template),
            _ => None,
        }
    }

    /// An artifact by path.
    pub fn artifact(&self, path: &str) -> Option<&Artifact> {
        match &self.object(ObjectKind::Artifact, path)?.object {
            Object::Artifact(artifact) => Some(artifact),
            _ => None,
        }
    }

    /// Why an object cannot be used now: what it names and is not there.
    pub fn problems(&self, object: &Object) -> Vec<String> {
        match object {
            Object::Bootenv(bootenv) => self.bootenv_problems(bootenv),
            Object::Machine(machine) => self.machine_problems(machine),
            Object::Reservation(reservation) => {
                match self.subnets_of_link(&[reservation.address]).next() {
                    Some(_) => Vec::new(),
                    None => vec![format!("no subnet holds {}", reservation.address)],
                }
            }
            Object::Settings(settings) => self.bootenv_named_problems(&settings.unknown_bootenv),
            Object::Subnet(subnet) => self.loader_problems(&subnet.loaders),
            Object::Profile(profile) => self.loader_problems(&profile.loaders),
            Object::Template(_) | Object::Param(_) | Object::Artifact(_) | Object::User(_) => {
                Vec::new()
            }
        }
    }

    fn machine_problems(&self, machine: &Machine) -> Vec<String> {
        let mut problems = self.bootenv_named_problems(&machine.bootenv);
        problems.extend(
            machine
                .profiles
                .iter()
                .filter(|name| self.profile(name).is_none())
                .map(|name| format!("profile `{name}` does not exist")),
        );
        problems.extend(self.loader_problems(&machine.loaders));
        problems
    }

    fn bootenv_named_problems(&self, name: &str) -> Vec<String> {
        if name == LOCAL || name == Settings::hold() {
            return Vec::new();
        }
        match self.bootenv(name) {
            None => vec![format!("bootenv `{name}` does not exist")],
            Some(bootenv) => self
                .bootenv_problems(bootenv)
                .into_iter()
                .map(|problem| format!("bootenv `{name}`: {problem}"))
                .collect(),
        }
    }

    fn bootenv_problems(&self, bootenv: &Bootenv) -> Vec<String> {
        let artifacts = bootenv
            .kernel
            .iter()
            .chain(&bootenv.initrds)
            .filter(|path| self.artifact(path).is_none())
            .map(|path| format!("artifact `{path}` has not been uploaded"));
        let templates = bootenv
            .files
            .iter()
            .filter(|file| self.template(&file.template).is_none())
            .map(|file| format!("template `{}` does not exist", file.template));
        artifacts.chain(templates).collect()
    }
}

/// What to do about a MAC that nobody owns, for its screen.
fn unowned(mac: Mac) -> String {
    format!(
        "no machine owns the MAC {mac}; to provision it, run on a node:\n\
         echo '{{name: NAME, macs: [\"{mac}\"], bootenv: BOOTENV}}' \
         | muster machines create -f -"
    )
}

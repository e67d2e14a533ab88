//! The last resort after a majority was lost for good: one survivor goes on alone, as a new cluster.
//!
//! What it does not have is lost, acknowledged or not. The others can never take part again with
//! what they have: to them it is of another cluster.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use muster_storage::model::Member;
use muster_storage::{Revision, State, Timestamp};
use uuid::Uuid;

use crate::Error;
use crate::identity::{Files, Identity, RECOVERED};
use crate::refound::{NewMember, Refounded, refound};
use crate::store::Inspection;

/// What makes a directory a node's, in the order in which it is put aside: without the first it is
/// nobody's.
const PARTS: [&str; 9] = [
    "node.json",
    "log",
    "state",
    "snapshots",
    "keyring",
    "node.key",
    "node.crt",
    "succession",
    "diverged",
];

/// A stopped node that is to go on alone.
pub struct Survivor {
    files: Files,
    identity: Identity,
    inspection: Inspection,
    state: State,
    member: Member,
}

/// What a survivor has, and so what is lost: everything after it.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Its cluster.
    pub cluster_id: Uuid,
    /// Its name.
    pub node_name: String,
    /// Term and index of its last log entry.
    pub last: (u64, u64),
    /// Revision of the last write in it.
    pub revision: Revision,
    /// When that write was made.
    pub at: Timestamp,
    /// The members that are given up.
    pub given_up: Vec<Member>,
}

impl Survivor {
    /// Opens the directory of a stopped node. Nothing is changed yet.
    ///
    /// # Errors
    /// When it is not a node's, is damaged, or a node is running on it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        if !dir.is_dir() {
            return Err(Error::NoCluster(dir.to_owned()));
        }
        let files = Files::open(dir)?;
        resume_swap(dir)?;
        let identity = files.identity()?.filter(|identity| identity.complete);
        let identity = identity.ok_or_else(|| Error::NoCluster(dir.to_owned()))?;
        let inspection = Inspection::open_in_place(dir)?;
        let state = inspection.replay(|_, _| Ok::<_, Error>(()))?;
        let own = state.member(muster_storage::NodeId(identity.node_id));
        let member = own.cloned().ok_or_else(|| {
            Error::Refused(
                "this node was not a member yet, or not any more, as of its own data; recover \
                 from another node or a backup"
                    .to_owned(),
            )
        })?;
        Ok(Self {
            files,
            identity,
            inspection,
            state,
            member,
        })
    }

    /// What would be lost.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn loss(&self) -> Result<Loss, Error> {
        let others = self.state.members();
        let others = others.filter(|member| member.id != self.member.id);
        Ok(Loss {
            cluster_id: self.identity.cluster_id,
            node_name: self.member.name.clone(),
            last: self.inspection.last()?,
            revision: self.state.revision(),
            at: self.state.time(),
            given_up: others.cloned().collect(),
        })
    }

    /// Makes the directory a new cluster of this node alone. The old data is put aside below it, in
    /// the directory that is returned.
    ///
    /// # Errors
    /// When the disk fails: the node then does not start before this was done again.
    pub fn recover(self) -> Result<(Refounded, PathBuf), Error> {
        let dir = self.files.dir().to_owned();
        let (_, last) = self.inspection.last()?;
        let keyring = self.files.sealer()?;
        let prepared = dir.join(RECOVERED);
        let doing = || Error::io(format!("preparing {}", prepared.display()));
        if prepared.exists() {
            fs::remove_dir_all(&prepared).map_err(doing())?;
        }
        let member = NewMember::like(&self.member);
        let refounded = refound(&prepared, self.state, last, &keyring, member)?;
        drop(self.inspection);
        let aside = format!("before-recovery-{}", self.identity.cluster_id);
        // From here on the directory is no node's until all is done.
        Files::open(&prepared)?.set_aside(&aside)?;
        let aside = dir.join(aside);
        swap(&dir, &aside)?;
        Ok((refounded, aside))
    }
}

/// Goes on where a swap was interrupted.
fn resume_swap(dir: &Path) -> Result<(), Error> {
    let Some(aside) = Files::interrupted_recovery(dir)? else {
        return Ok(());
    };
    swap(dir, &dir.join(aside))?;
    Err(Error::Refused(
        "the recovery that was interrupted is complete now: start the node".to_owned(),
    ))
}

/// Puts the old parts aside and the prepared ones in their place. Done again, it goes on where it
/// was interrupted: what is still prepared has not been put in place.
fn swap(dir: &Path, aside: &Path) -> Result<(), Error> {
    let prepared = dir.join(RECOVERED);
    let swap = || -> io::Result<()> {
        fs::create_dir_all(aside)?;
        for part in PARTS {
            let old = dir.join(part);
            if old.exists() && (prepared.join(part).exists() || part == "diverged") {
                fs::rename(&old, aside.join(part))?;
                sync(dir)?;
            }
        }
        sync(aside)?;
        for part in PARTS.iter().rev() {
            let new = prepared.join(part);
            if new.exists() {
                fs::rename(&new, dir.join(part))?;
                sync(dir)?;
            }
        }
        fs::remove_dir_all(&prepared)?;
        sync(dir)
    };
    swap().map_err(Error::io(format!(
        "putting {} in place",
        prepared.display()
    )))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A directory whose swap was interrupted after so many of its steps.
    fn interrupted(steps: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (prepared, aside) = (dir.path().join(RECOVERED), dir.path().join("aside"));
        for (place, text) in [(dir.path(), "old"), (&prepared, "new")] {
            fs::create_dir_all(place).unwrap();
            for part in PARTS.iter().filter(|part| **part != "diverged") {
                fs::write(place.join(part), text).unwrap();
            }
        }
        fs::write(dir.path().join("diverged"), "old").unwrap();
        Files::open(&prepared).unwrap().set_aside("aside").unwrap();
        fs::create_dir_all(&aside).unwrap();
        let out = PARTS.map(|part| (dir.path().join(part), aside.join(part)));
        let into = PARTS.map(|part| (prepared.join(part), dir.path().join(part)));
        let moves = out.into_iter().chain(into.into_iter().rev());
        for (from, to) in moves.filter(|(from, _)| from.exists()).take(steps) {
            fs::rename(from, to).unwrap();
        }
        dir
    }

    #[test]
    fn an_interrupted_swap_starts_no_node_and_is_finished_by_the_next_recovery() {
        for steps in 0..=2 * PARTS.len() - 1 {
            let dir = interrupted(steps);
            let files = Files::open(dir.path()).unwrap();
            assert!(files.identity().is_err(), "{steps}");
            let why = Survivor::open(dir.path()).err().unwrap();
            assert!(why.to_string().contains("complete now"), "{steps}: {why}");
            for part in PARTS {
                let read = |place: &Path| fs::read_to_string(place.join(part)).ok();
                let new = (part != "diverged").then(|| "new".to_owned());
                assert_eq!(read(dir.path()), new, "{steps} {part}");
                let aside = dir.path().join("aside");
                assert_eq!(read(&aside).unwrap(), "old", "{steps} {part}");
            }
            assert!(!dir.path().join(RECOVERED).exists());
        }
    }
}

//! The files that make a directory a node: who it is, and the secrets that only members hold.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;
use crate::tls::Sealer;

/// Where a recovery prepares what is to be put in place.
pub const RECOVERED: &str = "recovered";

/// Who this node is. Written last when a directory is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster_id: Uuid,
    /// Its number there.
    pub node_id: u64,
    /// False while the cluster is being founded: nothing has been promised yet.
    pub complete: bool,
    /// Whether its log has been made: from then on a missing log is a lost one.
    pub has_log: bool,
}

impl Identity {
    /// As the log notes it.
    pub fn mark(&self) -> String {
        format!("{} {}", self.cluster_id, self.node_id)
    }
}

/// The files of a data directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// The files of `dir`, which is made if it does not exist.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
        Ok(Self::at(dir))
    }

    /// The files of `dir`, which may not exist.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Into which directory a recovery that was interrupted puts the old data aside.
    pub fn interrupted_recovery(dir: &Path) -> Result<Option<String>, Error> {
        let prepared = Self::at(&dir.join(RECOVERED));
        let name = prepared.read("aside")?;
        Ok(name.map(|name| String::from_utf8_lossy(&name).into_owned()))
    }

    /// Says that what a recovery prepared here is whole, and where the old data goes.
    pub fn set_aside(&self, name: &str) -> Result<(), Error> {
        self.write("aside", name.as_bytes(), 0o644)
    }

    /// Who this node is, if it is in a cluster.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        if Self::interrupted_recovery(&self.dir)?.is_some() {
            return Err(Error::Refused(
                "a recovery of this node was interrupted: run `muster node recover` again".into(),
            ));
        }
        let Some(text) = self.read("node.json")? else {
            if self.dir.join("log").exists() {
                return Err(Error::IdentityMissing(self.dir.clone()));
            }
            return Ok(None);
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| self.bad("node.json", error))
    }

    /// Writes who this node is.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), Error> {
        let text =
            serde_json::to_vec_pretty(identity).map_err(|error| self.bad("node.json", error))?;
        self.write("node.json", &text, 0o644)
    }

    /// Removes what an interrupted founding left behind.
    pub fn clear_unfinished(&self) -> Result<(), Error> {
        for name in ["log", "state", "snapshots"] {
            let path = self.dir.join(name);
            if path.exists() {
                fs::remove_dir_all(&path)
                    .map_err(Error::io(format!("removing {}", path.display())))?;
            }
        }
        Ok(())
    }

    /// The key under which the cluster's secrets are sealed.
    pub fn sealer(&self) -> Result<Sealer, Error> {
        let text = self.required("keyring")?;
        let bytes = hex::decode(text.trim_ascii()).map_err(|error| self.bad("keyring", error))?;
        let key = bytes
            .try_into()
            .map_err(|_| self.bad("keyring", "not 64 hexadecimal digits"))?;
        Ok(Sealer::new(key))
    }

    /// Writes that key.
    pub fn set_sealer(&self, sealer: &Sealer) -> Result<(), Error> {
        let text = format!("{}\n", hex::encode(sealer.key()));
        self.write("keyring", text.as_bytes(), 0o600)
    }

    /// The cluster's certificate authority, PEM.
    pub fn ca_pem(&self) -> Result<String, Error> {
        self.required_text("ca.pem")
    }

    /// Writes it.
    pub fn set_ca_pem(&self, pem: &str) -> Result<(), Error> {
        self.write("ca.pem", pem.as_bytes(), 0o644)
    }

    /// The private key of this node, PEM; absent in a new directory.
    pub fn node_key(&self) -> Result<Option<String>, Error> {
        self.text("node.key")
    }

    /// Writes it.
    pub fn set_node_key(&self, pem: &str) -> Result<(), Error> {
        self.write("node.key", pem.as_bytes(), 0o600)
    }

    /// The certificate of this node, PEM; absent when it was lost.
    pub fn node_certificate(&self) -> Result<Option<String>, Error> {
        self.text("node.crt")
    }

    /// Writes it.
    pub fn set_node_certificate(&self, pem: &str) -> Result<(), Error> {
        self.write("node.crt", pem.as_bytes(), 0o644)
    }

    /// How this node's key follows from earlier ones; empty if it is its first.
    pub fn succession(&self) -> Result<String, Error> {
        let text = self.read("succession")?.unwrap_or_default();
        String::from_utf8(text).map_err(|error| self.bad("succession", error))
    }

    /// Writes it.
    pub fn set_succession(&self, text: &str) -> Result<(), Error> {
        self.write("succession", text.as_bytes(), 0o644)
    }

    /// Why nothing that this node says can be trusted, if that was found out.
    pub fn diverged(&self) -> Result<Option<String>, Error> {
        let text = self.read("diverged")?;
        Ok(text.map(|bytes| String::from_utf8_lossy(bytes.trim_ascii()).into_owned()))
    }

    /// Notes it: the node does not start again.
    pub fn set_diverged(&self, why: &str) -> Result<(), Error> {
        self.write("diverged", format!("{why}\n").as_bytes(), 0o644)
    }

    /// What is wrong with one of them.
    pub fn bad(&self, name: &str, problem: impl ToString) -> Error {
        Error::BadIdentity {
            file: self.dir.join(name).display().to_string(),
            problem: problem.to_string(),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(self.dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.bad(name, error)),
        }
    }

    fn required(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.read(name)?
            .ok_or_else(|| self.bad(name, "the file is missing"))
    }

    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let text = self.read(name)?.map(String::from_utf8).transpose();
        text.map_err(|error| self.bad(name, error))
    }

    fn required_text(&self, name: &str) -> Result<String, Error> {
        self.text(name)?
            .ok_or_else(|| self.bad(name, "the file is missing"))
    }

    /// Replaces a file so that after a crash it is either the old or the new one.
    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!(".{name}.new"));
        let write = || -> io::Result<()> {
            if new.exists() {
                fs::remove_file(&new)?;
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(Error::io(format!("writing {}", path.display())))
    }
}

/// Whether a data directory belongs to a cluster already.
///
/// # Errors
/// When the directory has a log without an identity, or a damaged identity.
pub fn belongs_to_cluster(data_dir: &Path) -> Result<bool, Error> {
    let files = Files::at(data_dir);
    Ok(files.identity()?.is_some_and(|identity| identity.complete))
}

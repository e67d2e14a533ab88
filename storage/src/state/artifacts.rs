//! How much artifacts may take.

use super::objects::{check_name, invalid};
use super::table::State;
use crate::command::Rejection;
use crate::model::{Object, ObjectKind, Settings};

impl State {
    /// Refuses an artifact of so many bytes at a path that cannot be one, or for which the settings
    /// leave no room.
    ///
    /// # Errors
    /// When it is so.
    pub fn check_artifact(&self, path: &str, size: u64) -> Result<(), Rejection> {
        check_name("path", path)?;
        let limits = self.settings().artifacts;
        if size > limits.max_bytes {
            return Err(Rejection::TooLarge {
                limit: limits.max_bytes,
            });
        }
        let (own, others) = self.artifact_bytes(path);
        match limits.quota_bytes {
            // One that gets no larger is no worse than what is there.
            Some(quota) if size > own && size > quota.saturating_sub(others) => {
                Err(Rejection::Quota {
                    quota,
                    left: quota.saturating_sub(others.saturating_add(own)),
                })
            }
            _ => Ok(()),
        }
    }

    /// Bytes that an artifact at a path may have.
    pub fn artifact_room(&self, path: &str) -> u64 {
        let limits = self.settings().artifacts;
        let (own, others) = self.artifact_bytes(path);
        let left = limits
            .quota_bytes
            .map_or(u64::MAX, |quota| quota.saturating_sub(others));
        left.max(own).min(limits.max_bytes)
    }

    /// Bytes of the artifact at a path, and of all others.
    fn artifact_bytes(&self, path: &str) -> (u64, u64) {
        let artifacts = self.objects_after(ObjectKind::Artifact, None);
        artifacts.fold((0, 0), |(own, others), record| match &record.object {
            Object::Artifact(artifact) if artifact.path == path => (artifact.size, others),
            Object::Artifact(artifact) => (own, u64::saturating_add(others, artifact.size)),
            _ => (own, others),
        })
    }
}

pub(super) fn check_settings(settings: &Settings) -> Result<(), Rejection> {
    if settings.artifacts.verify_secs == 0 {
        return Err(invalid("artifacts.verify_secs", "must be at least 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::command::{Actor, Command, Effect, Entry, Proposal, PutMode, RequestId};
    use crate::model::{Artifact, ArtifactSettings, Revision, Sha256, Timestamp};

    fn put(state: &mut State, object: Object) -> Result<Effect, Rejection> {
        let mode = PutMode::Apply;
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("tester".into()),
            if_match: None,
            remember: None,
            command: Command::Put { object, mode },
        };
        let entry = Entry {
            at: Timestamp(1),
            proposals: vec![proposal],
        };
        let revision = Revision::new(state.revision().log_index() + 1, 0);
        let (outcome, _) = state.apply(revision, &entry).remove(0);
        outcome.result
    }

    fn limit(state: &mut State, quota: Option<u64>, most: u64) -> Result<Effect, Rejection> {
        let artifacts = ArtifactSettings {
            quota_bytes: quota,
            max_bytes: most,
            ..ArtifactSettings::default()
        };
        let settings = Settings {
            artifacts,
            ..Settings::default()
        };
        put(state, Object::Settings(settings))
    }

    fn upload(state: &mut State, path: &str, size: u64) -> Result<Effect, Rejection> {
        let artifact = Artifact {
            path: path.into(),
            sha256: Sha256([7; 32]),
            size,
        };
        // What is refused in advance is refused when it is applied, and nothing else.
        let advance = state.check_artifact(path, size);
        let room = state.artifact_room(path);
        assert_eq!(advance.is_ok(), size <= room, "{path} {size} {room}");
        let result = put(state, Object::Artifact(artifact));
        assert_eq!(advance.err(), result.clone().err(), "{path} {size}");
        result
    }

    #[test]
    fn artifacts_keep_to_the_quota_and_none_is_larger_than_it_may_be() {
        let mut state = State::default();
        let full = |left| Err(Rejection::Quota { quota: 100, left });
        limit(&mut state, Some(100), 80).expect("settings");
        assert_eq!(
            upload(&mut state, "a", 81),
            Err(Rejection::TooLarge { limit: 80 })
        );
        assert!(upload(&mut state, "a", 80).is_ok());
        assert_eq!(upload(&mut state, "b", 21), full(20));
        assert!(upload(&mut state, "b", 20).is_ok());
        assert_eq!(upload(&mut state, "c", 1), full(0));
        assert!(upload(&mut state, "c", 0).is_ok());
        // Another one in its place counts instead of it.
        assert!(upload(&mut state, "b", 19).is_ok());
        assert!(upload(&mut state, "b", 20).is_ok());
        assert_eq!(upload(&mut state, "b", 21), full(0));
        // With a smaller quota everything stays, and what gets smaller may.
        limit(&mut state, Some(10), 80).expect("settings");
        assert!(upload(&mut state, "a", 79).is_ok());
        assert!(upload(&mut state, "a", 80).is_err());
        limit(&mut state, None, 1000).expect("settings");
        assert!(upload(&mut state, "d", 1000).is_ok());
    }

    #[test]
    fn no_path_leads_elsewhere() {
        let state = State::default();
        for path in [
            "", "/a", "a/", "a//b", "a/../b", "..", "a b", "a\\b", "a\0", "é",
        ] {
            let refused = state.check_artifact(path, 1);
            assert!(
                matches!(refused, Err(Rejection::Invalid { .. })),
                "{path:?}: {refused:?}"
            );
        }
        let longest = "a".repeat(255);
        assert!(state.check_artifact(&longest, 1).is_ok());
        assert!(state.check_artifact(&(longest + "a"), 1).is_err());
    }
}

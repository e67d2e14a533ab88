//! `muster artifacts upload`: files, and all files of directories, with a bar that shows how far it is.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use muster_api::client::{Call, Error as ClientError, Upload};
use muster_storage::model::Sha256;
use reqwest::Method;
use sha2::Digest as _;

use super::super::{Context, Error};
use super::requests::columns;

/// Octets read at a time.
const CHUNK: usize = 1 << 20;

/// A file, and the path by which it is to be known.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    file: PathBuf,
    path: String,
}

/// Uploads what `files` are, one after the other. One file is kept as `path`; a directory, and each of
/// several files, below it.
pub async fn run(
    context: &Context,
    files: &[PathBuf],
    path: &str,
    sha256: Option<Sha256>,
) -> Result<(), Error> {
    let items = items(files, path)?;
    if sha256.is_some() && items.len() != 1 {
        return Err(Error::Usage("--sha256 is for one file".to_owned()));
    }
    let single = matches!(files, [file] if !file.is_dir());
    let mut uploaded = Vec::with_capacity(items.len());
    for item in items {
        upload(context, &item, sha256).await?;
        let call = Call::new(Method::GET, &["artifacts", &item.path]);
        uploaded.push(context.client.json(call).await?);
    }
    match uploaded.as_slice() {
        [one] if single => context.printer.object(one),
        _ => context.printer.list(uploaded, columns("artifacts")),
    }
}

async fn upload(context: &Context, item: &Item, expected: Option<Sha256>) -> Result<(), Error> {
    let unreadable = |source: io::Error| ClientError::File {
        path: item.file.display().to_string(),
        source,
    };
    let size = std::fs::metadata(&item.file).map_err(unreadable)?.len();
    // Shown on a terminal only, on standard error.
    let bar = ProgressBar::new(size).with_style(style());
    bar.set_message(format!("reading {}", item.path));
    let sha256 = digest(&item.file, &bar).map_err(unreadable)?;
    if let Some(expected) = expected.filter(|expected| *expected != sha256) {
        return Err(Error::Failed(format!(
            "{} has the SHA-256 {sha256}, but {expected} was expected",
            item.file.display()
        )));
    }
    bar.reset();
    bar.set_message(format!("sending {}", item.path));
    let upload = Upload {
        file: &item.file,
        path: &item.path,
        sha256,
        size,
    };
    let shown = bar.clone();
    let uploaded = context
        .client
        .upload(&upload, move |at| shown.set_position(at))
        .await;
    bar.finish_and_clear();
    Ok(uploaded?)
}

fn style() -> ProgressStyle {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn digest(file: &Path, bar: &ProgressBar) -> io::Result<Sha256> {
    let (mut file, mut chunk) = (File::open(file)?, vec![0; CHUNK]);
    let mut hash = sha2::Sha256::new();
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            return Ok(Sha256(hash.finalize().into()));
        }
        hash.update(chunk.get(..length).unwrap_or_default());
        bar.inc(length as u64);
    }
}

/// All files that are meant, in order.
fn items(files: &[PathBuf], path: &str) -> Result<Vec<Item>, Error> {
    if let [file] = files
        && !file.is_dir()
    {
        let path = path.to_owned();
        return Ok(vec![Item {
            file: file.clone(),
            path,
        }]);
    }
    let mut items = Vec::new();
    for file in files {
        if file.is_dir() {
            walk(file, path, &mut items)?;
        } else {
            items.push(named(file.clone(), path)?);
        }
    }
    items.sort_by(|one, other| one.path.cmp(&other.path));
    let same = |pair: &&[Item]| matches!(pair, [one, other] if one.path == other.path);
    if let Some([one, other]) = items.windows(2).find(same) {
        return Err(Error::Usage(format!(
            "{} and {} would both be kept as {}",
            one.file.display(),
            other.file.display(),
            one.path
        )));
    }
    Ok(items)
}

fn walk(dir: &Path, path: &str, items: &mut Vec<Item>) -> Result<(), Error> {
    let unreadable = |source| ClientError::File {
        path: dir.display().to_string(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let kind = entry.file_type().map_err(unreadable)?;
        let item = named(entry.path(), path)?;
        // Links to directories are not followed: they may lead round in a circle.
        if kind.is_dir() {
            walk(&item.file, &item.path, items)?;
        } else if item.file.is_file() {
            items.push(item);
        }
    }
    Ok(())
}

/// A file by its own name below a path.
fn named(file: PathBuf, path: &str) -> Result<Item, Error> {
    let name = file.file_name().and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| Error::Usage(format!("{} has no name to be kept by", file.display())))?;
    let path = format!("{}/{name}", path.trim_end_matches('/'));
    Ok(Item { file, path })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn a_directory_is_kept_below_the_path_and_one_file_as_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("os");
        fs::create_dir_all(root.join("boot/empty")).unwrap();
        for name in ["boot/vmlinuz", "boot/initrd.img", "notes"] {
            fs::write(root.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink(&root, root.join("boot/round")).unwrap();
        let paths = |files: &[PathBuf], path| -> Vec<String> {
            let items = items(files, path).unwrap();
            items.into_iter().map(|item| item.path).collect()
        };
        assert_eq!(
            paths(std::slice::from_ref(&root), "debian/12/"),
            [
                "debian/12/boot/initrd.img",
                "debian/12/boot/vmlinuz",
                "debian/12/notes"
            ]
        );
        let notes = root.join("notes");
        assert_eq!(paths(std::slice::from_ref(&notes), "n"), ["n"]);
        let kernel = root.join("boot/vmlinuz");
        assert_eq!(
            paths(&[notes.clone(), kernel], "n"),
            ["n/notes", "n/vmlinuz"]
        );
        assert!(
            items(&[notes.clone(), notes], "n").is_err(),
            "the same twice"
        );
    }
}

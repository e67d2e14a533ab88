//! Objects from files: YAML of many documents, or JSON, which is YAML too.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use muster_api::client::Error as ClientError;
use serde::Deserialize as _;
use serde_json::Value;

use super::Error;

/// Reads all objects of a file, of the files in a directory, or of standard input (`-`). A list is
/// taken as its items.
///
/// # Errors
/// When something cannot be read, or is no YAML.
pub fn objects(path: &Path) -> Result<Vec<Value>, Error> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|source| unreadable(path, source))?;
        return documents("standard input", &text);
    }
    let mut found = Vec::new();
    for file in files(path)? {
        let text = std::fs::read_to_string(&file).map_err(|source| unreadable(&file, source))?;
        found.extend(documents(&file.display().to_string(), &text)?);
    }
    Ok(found)
}

/// As [`objects`], when there has to be just one.
///
/// # Errors
/// As [`objects`], and when there is not just one.
pub fn object(path: &Path) -> Result<Value, Error> {
    let mut found = objects(path)?;
    match (found.pop(), found.is_empty()) {
        (Some(object), true) => Ok(object),
        _ => Err(Error::Usage(format!(
            "{}: one object is expected",
            path.display()
        ))),
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|source| unreadable(path, source))? {
        let file = entry.map_err(|source| unreadable(path, source))?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn documents(name: &str, text: &str) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document)
            .map_err(|error| Error::Usage(format!("{name} is no YAML: {error}")))?;
        match value {
            // What is between two `---` may be nothing.
            Value::Null => {}
            Value::Array(items) => found.extend(items),
            other => found.push(other),
        }
    }
    Ok(found)
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Api(ClientError::File {
        path: path.display().to_string(),
        source,
    })
}

/// A password from a file or standard input, without the end of its line.
///
/// # Errors
/// When it cannot be read.
pub fn secret(path: &Path) -> Result<String, Error> {
    Ok(text(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

/// A text from a file or standard input.
///
/// # Errors
/// When it cannot be read.
pub fn text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|source| unreadable(path, source))?;
    Ok(text)
}

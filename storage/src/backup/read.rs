//! Reading a backup, and checking it.

use std::io::{self, Read};

use super::write::Hashing;
use super::{END, Error, FORMAT, HEADER, Header, SUMS};
use crate::engine::Pair;

/// The largest section that is read into memory: rows of a bundle of large objects.
const SECTION_MAX: u64 = 1 << 30;

fn damaged(section: &str, problem: impl ToString) -> Error {
    Error::Damaged {
        section: section.to_owned(),
        problem: problem.to_string(),
    }
}

/// Reads a backup from its beginning to its end; `each` gets the name and the contents of every
/// section after the header. What `each` sees has not been checked before this returns: read a file
/// once without using it, then again.
///
/// # Errors
/// When it is damaged, cut short, of a newer format or no backup; and what `each` returns.
pub fn read<E: From<Error>>(
    file: impl Read,
    mut each: impl FnMut(&str, &mut dyn Read) -> Result<(), E>,
) -> Result<Header, E> {
    let mut archive = tar::Archive::new(file);
    let mut header = None;
    let mut found = String::new();
    let mut sums = None;
    let mut last = String::from(HEADER);
    let entries = archive.entries().map_err(Error::Disk)?;
    for entry in entries {
        let after = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated(last.clone()),
            _ if header.is_none() => Error::Other(error.to_string()),
            _ => damaged(&last, format!("what comes after it: {error}")),
        };
        let entry = entry.map_err(after)?;
        let name = entry.path().map_err(after)?.display().to_string();
        let inside = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated(name.clone()),
            _ => damaged(&name, error),
        };
        let size = entry.size();
        let mut contents = Hashing::new(entry);
        match (&header, &sums) {
            (None, _) if name != HEADER => {
                return Err(Error::Other(format!("it begins with `{name}`")).into());
            }
            (None, _) => header = Some(parse_header(&whole(&mut contents).map_err(inside)?)?),
            (Some(_), None) if name == SUMS => {
                sums = Some(text(&name, whole(&mut contents).map_err(inside)?)?);
            }
            (Some(_), None) => each(&name, &mut contents)?,
            (Some(header), Some(sums)) if name == END => {
                let end = text(&name, whole(&mut contents).map_err(inside)?)?;
                check(&found, sums, &last_line(&found), &end)?;
                return Ok(header.clone());
            }
            (Some(_), Some(_)) => return Err(damaged(&name, "it stands after the end").into()),
        }
        // What nobody wanted counts as well.
        io::copy(&mut contents, &mut io::sink()).map_err(inside)?;
        if contents.length < size {
            return Err(Error::Truncated(name).into());
        }
        found.push_str(&format!("{}  {name}\n", contents.sum()));
        last = name;
    }
    match header {
        None => Err(Error::Other("it is empty".to_owned()).into()),
        Some(_) => Err(Error::Truncated(last).into()),
    }
}

/// The line of the section that was read last: of the checksums themselves.
fn last_line(found: &str) -> String {
    let line = found.lines().last().unwrap_or_default();
    format!("{line}\n")
}

/// Compares what was found with what was written down.
fn check(found: &str, sums: &str, found_end: &str, end: &str) -> Result<(), Error> {
    if found_end != end {
        return Err(damaged(SUMS, "its checksum is another"));
    }
    let mut written = sums.lines();
    for line in found.lines() {
        let name = line.split_once("  ").map_or(line, |(_, name)| name);
        match written.next() {
            // The checksums do not name themselves.
            None if name == SUMS => return Ok(()),
            Some(known) if known == line => {}
            _ => return Err(damaged(name, "its checksum is another")),
        }
    }
    Err(damaged(SUMS, "it names sections that are not there"))
}

/// All of a section.
fn whole(contents: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    contents.take(SECTION_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(name: &str, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|error| damaged(name, error))
}

fn parse_header(bytes: &[u8]) -> Result<Header, Error> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| damaged(HEADER, error))?;
    // A newer header may have other fields.
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    match format.and_then(|format| u32::try_from(format).ok()) {
        Some(FORMAT) => serde_json::from_value(value).map_err(|error| damaged(HEADER, error)),
        Some(format) if format > FORMAT => Err(Error::Newer(format)),
        _ => Err(damaged(HEADER, "it names no format")),
    }
}

/// The rows in the section `name`: keys and values.
///
/// # Errors
/// When it is damaged.
pub fn rows(name: &str, contents: &mut dyn Read) -> Result<Vec<Pair>, Error> {
    let mut contents = contents;
    let bytes = whole(&mut contents).map_err(|error| damaged(name, error))?;
    let mut rest = bytes.as_slice();
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let row = split(rest).ok_or_else(|| damaged(name, "a row is cut short"))?;
        rows.push((row.0.to_vec(), row.1.to_vec()));
        rest = row.2;
    }
    Ok(rows)
}

/// Key, value, and what comes after them.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key, rest) = bytes.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_first_chunk::<4>()?;
    let length = |octets: &[u8; 4]| usize::try_from(u32::from_be_bytes(*octets)).ok();
    let (key, rest) = rest.split_at_checked(length(key)?)?;
    let (value, rest) = rest.split_at_checked(length(value)?)?;
    Some((key, value, rest))
}

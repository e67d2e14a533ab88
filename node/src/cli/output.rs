//! Printing answers: tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use serde_json::Value;

use super::{Error, for_programs};
use crate::config::Format;

/// Widest cell of a table, in characters.
const CELL_MAX: usize = 48;

/// Prints in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Printer(Format);

impl Printer {
    /// Prints as `format`.
    pub fn new(format: Format) -> Self {
        Self(format)
    }

    /// Whether a program reads what is printed.
    pub fn for_programs(self) -> bool {
        for_programs(self.0)
    }

    /// A text as it is.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn text(self, text: &str) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// One object.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn object(self, value: &Value) -> Result<(), Error> {
        match self.0 {
            Format::Json => self.text(&format!("{value:#}\n")),
            Format::Yaml | Format::Table => self.text(&yaml(value)?),
        }
    }

    /// A list with these columns: member names, which may be paths.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn list(self, items: Vec<Value>, columns: &[&str]) -> Result<(), Error> {
        match self.0 {
            Format::Table => self.text(&table(&items, columns)),
            Format::Json | Format::Yaml => self.object(&Value::Array(items)),
        }
    }

    /// One line of a stream: compact JSON, a YAML document, or a line for people.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn event(self, value: &Value) -> Result<(), Error> {
        match self.0 {
            Format::Json => self.text(&format!("{value}\n")),
            Format::Yaml => self.text(&format!("---\n{}", yaml(value)?)),
            Format::Table => {
                let cell = |name| cell(value, name);
                self.text(&format!(
                    "{} {:>12} {:8} {} {} ({})\n",
                    cell("at"),
                    cell("revision"),
                    cell("action"),
                    cell("kind"),
                    cell("key"),
                    cell("actor"),
                ))
            }
        }
    }

    /// What was done, for people only.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn done(self, text: &str) -> Result<(), Error> {
        match self.0 {
            Format::Table => self.text(&format!("{text}\n")),
            Format::Json | Format::Yaml => Ok(()),
        }
    }
}

fn yaml(value: &Value) -> Result<String, Error> {
    serde_yaml_ng::to_string(value).map_err(|error| Error::Failed(error.to_string()))
}

/// A table with a header; columns are as wide as they need to be.
pub fn table(items: &[Value], columns: &[&str]) -> String {
    let header = columns
        .iter()
        .map(|name| name.to_uppercase().replace('_', " "))
        .collect();
    let rows = items
        .iter()
        .map(|item| columns.iter().map(|name| cell(item, name)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(item: &Value, name: &str) -> String {
    let text = plain(item.get(name).unwrap_or(&Value::Null));
    let text = text.replace('\n', " ");
    if text.chars().count() > CELL_MAX {
        text.chars().take(CELL_MAX - 1).chain(['…']).collect()
    } else {
        text
    }
}

/// A value as people read it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn a_table_is_as_wide_as_it_needs_to_be() {
        let items = [
            json!({"name": "m1", "macs": ["a", "b"], "available": true}),
            json!({"name": "machine-2", "macs": [], "available": false}),
        ];
        let expected = "NAME       MACS  AVAILABLE\nm1         a,b   yes\nmachine-2  -     no\n";
        assert_eq!(table(&items, &["name", "macs", "available"]), expected);
    }
}

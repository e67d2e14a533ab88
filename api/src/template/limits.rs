//! What a template may not say, because it could take more time or memory than a node has.

use super::Problem;

/// Depth to which loops may be nested.
pub const LOOPS_MAX: usize = 2;

/// Refuses loops nested too deep, and variables that outlive the loop that sets them: with these a
/// few lines grow a text without end.
///
/// # Errors
/// With the line.
pub fn check(text: &str) -> Result<(), Problem> {
    let mut depth = 0usize;
    let mut raw = false;
    let mut line = 1;
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        line += before.matches('\n').count();
        let end = match tag.as_bytes().get(1) {
            Some(b'%') => end_of(tag, "%}"),
            Some(b'{') if !raw => end_of(tag, "}}"),
            Some(b'#') if !raw => tag.find("#}").map_or(tag.len(), |end| end + 2),
            _ => 1,
        };
        let (tag, after) = tag.split_at(end);
        let word = tag.strip_prefix("{%").map(first_word);
        match word {
            Some("endraw") => raw = false,
            Some("raw") => raw = true,
            Some("for") if !raw => {
                depth += 1;
                if depth > LOOPS_MAX {
                    let message = format!("loops may be nested {LOOPS_MAX} deep");
                    return Err(at(line, message));
                }
            }
            Some("endfor") if !raw => depth = depth.saturating_sub(1),
            Some("set_global") if !raw => {
                return Err(at(line, "`set_global` is not to be had here; use `set`"));
            }
            _ => {}
        }
        line += tag.matches('\n').count();
        rest = after;
    }
    Ok(())
}

fn at(line: usize, message: impl Into<String>) -> Problem {
    Problem {
        line: Some(line),
        ..Problem::message(message)
    }
}

fn first_word(tag: &str) -> &str {
    let tag = tag.trim_start_matches('-').trim_start();
    let end = tag.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    tag.get(..end.unwrap_or(tag.len())).unwrap_or_default()
}

/// Where a tag ends: not within a text in quotes.
fn end_of(tag: &str, close: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (index, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'' | '`') => quote = Some(c),
            None if tag[index..].starts_with(close) => return index + close.len(),
            None => {}
        }
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_without_end_is_refused() {
        let two = "{% for a in x %}{%- for b in x %}{% endfor %}{% endfor -%}";
        for good in [
            two.repeat(3),
            "{# {% for #} {{ '{% set_global' }} {% set a = '%}{% set_global' %}".to_owned(),
            format!(
                "{{% raw %}}{}{{% set_global x = 1 %}}{{% endraw %}}",
                "{% for a in b %}".repeat(5)
            ),
            "{ {{ a }} } {%".to_owned(),
        ] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
        for (bad, line) in [
            ("{% for a in x %}\n{% for b in x %}\n{%- for c in x %}", 3),
            ("a\n{% set_global x = x ~ x %}", 2),
            ("{%set_global x=1%}", 1),
            ("{{ '}}' }}\n{% set_global x = 1 %}", 2),
            (r#"{{ "\"" }}{% set_global x = 1 %}{{ "" }}"#, 1),
        ] {
            let problem = check(bad).err();
            assert_eq!(problem.and_then(|p| p.line), Some(line), "{bad}");
        }
    }
}

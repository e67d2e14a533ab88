//! Templates compile, params fit their schemas.

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonschema::Validator;
use muster_storage::State;
use muster_storage::model::{Object, Param};
use serde_json::Value;

use crate::options::{self, BadOption};
use crate::problem::Problem;
use crate::template::{Sources, TEMPLATE_MAX, TEMPLATES_MAX};

/// Takes out of the state what is needed to check `objects`, which are to be written together; the
/// returned function checks, and may be called without the state.
pub fn check(
    state: &State,
    objects: &[Object],
) -> impl FnOnce(&[Object]) -> Result<(), Problem> + use<> {
    let has_templates = objects.iter().any(|object| match object {
        Object::Template(_) | Object::Bootenv(_) | Object::Subnet(_) => true,
        Object::Machine(machine) => !machine.options.is_empty(),
        _ => false,
    });
    let sources = if has_templates {
        Sources::of(state)
    } else {
        Sources::default()
    };
    let names = objects.iter().flat_map(|object| match object {
        Object::Machine(machine) => Some(&machine.params),
        Object::Profile(profile) => Some(&profile.params),
        _ => None,
    });
    let declared: BTreeMap<String, Param> = names
        .flat_map(BTreeMap::keys)
        .filter_map(|name| Some((name.clone(), state.param(name)?.clone())))
        .collect();
    move |objects| {
        check_templates(&sources, objects)?;
        check_params(declared, objects)
    }
}

/// Refuses what no client could be sent. What is rendered is known only then.
fn check_option(field: &str, option: &str, value: &str) -> Result<(), Problem> {
    let bad = |error: BadOption| Problem::invalid(field, error.to_string());
    let code = options::code_of(option).map_err(bad)?;
    if !options::is_template(value) {
        options::encode(code, value).map_err(bad)?;
    }
    Ok(())
}

fn check_templates(sources: &Sources, objects: &[Object]) -> Result<(), Problem> {
    let written: Vec<(&str, &str)> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Template(template) => {
                Some((template.name.as_str(), template.contents.as_str()))
            }
            _ => None,
        })
        .collect();
    check_sizes(sources, &written)?;
    let set = if written.is_empty() {
        sources.compiled()
    } else {
        Arc::new(sources.compiled_with(written.iter().copied()))
    };
    if let Some(problem) = written.iter().find_map(|(name, _)| set.problem(name)) {
        return Err(problem.clone().into());
    }
    let text = |field: &str, key: &str, text: &str| {
        if !text.contains('{') {
            return Ok(());
        }
        set.check_text(text)
            .map_err(|problem| Problem::from(problem).inside(&format!("{field} of `{key}`")))
    };
    let options =
        |place: &str, key: &str, options: &BTreeMap<String, String>| -> Result<(), Problem> {
            for (option, value) in options {
                let field = format!("{place}.{option}");
                check_option(&field, option, value)?;
                text(&field, key, value)?;
            }
            Ok(())
        };
    for object in objects {
        match object {
            Object::Bootenv(bootenv) => {
                text("kernel_args", &bootenv.name, &bootenv.kernel_args)?;
                // That is where the machine's callback goes.
                let report = |path: &str| path.trim_start_matches('/') == "report";
                if let Some(index) = bootenv.files.iter().position(|file| report(&file.path)) {
                    let place = format!("files[{index}].path");
                    let advice = "`report` is where machines report to; choose another path";
                    return Err(Problem::invalid(&place, advice));
                }
            }
            Object::Subnet(subnet) => {
                options("options", &subnet.name, &subnet.options)?;
                for (index, class) in subnet.classes.iter().enumerate() {
                    let place = format!("classes[{index}].options");
                    options(&place, &subnet.name, &class.options)?;
                }
            }
            Object::Machine(machine) => options("options", &machine.name, &machine.options)?,
            Object::Reservation(_)
            | Object::Template(_)
            | Object::Profile(_)
            | Object::Param(_)
            | Object::Settings(_)
            | Object::Artifact(_)
            | Object::User(_) => {}
        }
    }
    Ok(())
}

/// Templates that would be more than there is room for would stand in the way of all others. What was
/// longer before there was a limit may stay, and become shorter.
fn check_sizes(sources: &Sources, written: &[(&str, &str)]) -> Result<(), Problem> {
    if written.is_empty() {
        return Ok(());
    }
    let before = sources.lengths();
    let mut after = before.clone();
    for (name, contents) in written {
        let length = contents.len();
        after.insert(*name, length);
        if length > TEMPLATE_MAX.max(before.get(name).copied().unwrap_or(0)) {
            let advice = format!(
                "template `{name}` has {length} octets, and {TEMPLATE_MAX} at most are taken: \
                 upload what is not a template as an artifact"
            );
            return Err(Problem::invalid("contents", advice));
        }
    }
    let sum = |lengths: &BTreeMap<&str, usize>| lengths.values().sum::<usize>();
    let length = sum(&after);
    if length > TEMPLATES_MAX.max(sum(&before)) {
        let advice = format!(
            "all templates would have {length} octets together, and {TEMPLATES_MAX} at most are \
             taken: delete some that nothing uses"
        );
        return Err(Problem::invalid("contents", advice));
    }
    Ok(())
}

fn check_params(mut declared: BTreeMap<String, Param>, objects: &[Object]) -> Result<(), Problem> {
    for object in objects {
        if let Object::Param(param) = object {
            declared.insert(param.name.clone(), param.clone());
        }
    }
    let mut validators: BTreeMap<&str, Validator> = BTreeMap::new();
    for param in declared.values() {
        if let Some(schema) = &param.schema {
            match jsonschema::validator_for(schema) {
                Ok(validator) => {
                    validators.insert(&param.name, validator);
                }
                // One that is declared already and bad binds nobody.
                Err(error)
                    if objects
                        .iter()
                        .any(|o| matches!(o, Object::Param(p) if p == param)) =>
                {
                    return Err(Problem::invalid(
                        "schema",
                        format!("of param `{}` is no JSON Schema: {error}", param.name),
                    ));
                }
                Err(_) => {}
            }
        }
    }
    let fits = |path: &str, name: &str, value: &Value| match validators.get(name) {
        None => Ok(()),
        Some(validator) => validator.validate(value).map_err(|error| {
            let place = format!("{path}{}", error.instance_path());
            let secure = declared.get(name).is_some_and(|param| param.secure);
            // The message quotes the value.
            let message = if secure {
                "does not fit its schema".to_owned()
            } else {
                error.to_string()
            };
            Problem::invalid(&place, message)
        }),
    };
    for object in objects {
        match object {
            Object::Param(param) => {
                if let Some(default) = &param.default {
                    fits("default", &param.name, default)?;
                }
            }
            Object::Machine(machine) => {
                for (name, value) in &machine.params {
                    fits(&format!("params.{name}"), name, value)?;
                }
            }
            Object::Profile(profile) => {
                for (name, value) in &profile.params {
                    fits(&format!("params.{name}"), name, value)?;
                }
            }
            Object::Subnet(_)
            | Object::Reservation(_)
            | Object::Template(_)
            | Object::Bootenv(_)
            | Object::Settings(_)
            | Object::Artifact(_)
            | Object::User(_) => {}
        }
    }
    Ok(())
}

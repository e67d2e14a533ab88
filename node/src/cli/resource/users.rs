//! Users, their tokens and passwords.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use muster_api::client::{Call, Payload};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::{Context, Error, files};
use super::Verb;
use crate::config::duration;

/// What can be done with users.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// List, get, create and so on.
    #[command(flatten)]
    Verb(Verb),
    /// Print a new token of a user.
    Token {
        /// User.
        name: String,
        /// How long it is valid.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// Instead: turn away all tokens of the user.
        #[arg(long)]
        revoke: bool,
    },
    /// Set a password; print it when it is made up here.
    Passwd {
        /// User.
        #[arg(default_value = "admin")]
        name: String,
        /// File with the new password, `-` for standard input [default: a random one].
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// A verb on users.
pub async fn run(context: &Context, verb: UserVerb) -> Result<(), Error> {
    match verb {
        UserVerb::Verb(verb) => super::run(context, "users", verb).await,
        UserVerb::Token {
            name, revoke: true, ..
        } => {
            let call = Call::new(Method::DELETE, &["users", &name, "tokens"]);
            context.client.send(call).await?;
            context
                .printer
                .done(&format!("all tokens of {name} are revoked"))
        }
        UserVerb::Token {
            name,
            ttl,
            revoke: false,
        } => {
            let body = json!({"ttl_secs": ttl.as_secs()});
            let call = Call::new(Method::POST, &["users", &name, "tokens"]);
            let answer = context
                .client
                .json(call.payload(Payload::Json(body)))
                .await?;
            let token = answer
                .get("token")
                .and_then(Value::as_str)
                .unwrap_or_default();
            context.printer.text(&format!("{token}\n"))
        }
        UserVerb::Passwd {
            name,
            password_file,
        } => {
            let (password, made_up) = match password_file {
                Some(path) => (files::secret(&path)?, false),
                None => {
                    let random = muster_api::auth::random_secret();
                    (
                        random.map_err(|problem| Error::Failed(problem.detail))?,
                        true,
                    )
                }
            };
            let call = Call::new(Method::PUT, &["users", &name, "password"]);
            let body = json!({"password": password});
            context
                .client
                .send(call.payload(Payload::Json(body)))
                .await?;
            match made_up {
                true => context.printer.text(&format!("{password}\n")),
                false => context
                    .printer
                    .done(&format!("the password of {name} is set")),
            }
        }
    }
}

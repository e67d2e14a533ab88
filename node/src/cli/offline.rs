//! `muster node`: a data directory looked at without a server.

use std::path::Path;

use super::Error;
use crate::config::NodeCommand;

pub fn run(_dir: &Path, _command: &NodeCommand) -> Result<(), Error> {
    Err(Error::Failed("not built yet".to_owned()))
}

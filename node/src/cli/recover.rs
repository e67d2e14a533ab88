//! `muster node recover`: the last resort after a majority was lost for good.

use std::fmt::Write as _;
use std::path::Path;

use muster_raft::{Loss, Survivor};
use serde_json::json;

use super::Error;
use super::output::Printer;

/// Says what would be lost, and does it when that is accepted.
pub fn run(printer: Printer, dir: &Path, accepted: bool) -> Result<(), Error> {
    let survivor = Survivor::open(dir)?;
    let loss = survivor.loss()?;
    eprint!("{}", warning(&loss));
    if !accepted {
        return Err(Error::Usage(
            "nothing was changed; do it with --i-know-writes-may-be-lost".to_owned(),
        ));
    }
    super::keep_private();
    let (refounded, aside) = survivor.recover()?;
    printer.object(&json!({
        "data_dir": dir,
        "cluster_id": refounded.cluster_id,
        "node_id": refounded.node_id.0,
        "revision": refounded.revision.0,
        "old_data": aside,
    }))?;
    printer.done(
        "Start this node with `muster serve`, then let others join it with empty directories.",
    )
}

fn warning(loss: &Loss) -> String {
    let (term, index) = loss.last;
    let mut text = format!(
        "\n*** WRITES MAY BE LOST ***\n\n\
         Node {} of cluster {} has what was written up to log entry {index} of term {term}:\n\
         revision {}, made {}.\n\
         Whatever the cluster acknowledged after that is lost for good. If another survivor has a\n\
         later entry (a higher term, then a higher index: `muster node check`), recover there.\n\n",
        loss.node_name, loss.cluster_id, loss.revision, loss.at
    );
    for member in &loss.given_up {
        let _ = writeln!(
            text,
            "Given up: node {} ({}). Never start it again on its present data directory.",
            member.name, member.address
        );
    }
    text.push('\n');
    text
}

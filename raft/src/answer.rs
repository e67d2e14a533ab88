//! What one node wants of another by itself, orders above all, and what became of it: why one failed by
//! number, and in words for people.

use std::time::Duration;

use muster_storage::NodeId;
use tonic::{Code, Response, Status};

use crate::Error;
use crate::inner::Inner;
use crate::peer::{Link, PeerClient};
use crate::wire::proto::{Cause, OrderReply};

/// For the answer: longer than it takes to hand leadership over, to commit a write, or to look at a disk
/// and listen on links.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is said when a node cannot be reached for something.
pub struct Excuses {
    /// After "is not live".
    pub not_live: &'static str,
    /// After "is of a version that".
    pub old_version: &'static str,
}

/// Has a node carry out an order about itself: this one does it, another one is asked to.
pub async fn order<F: Future<Output = Result<Response<OrderReply>, Status>>>(
    inner: &Inner,
    node: NodeId,
    excuses: &Excuses,
    carry_out: impl Future<Output = Result<(), Error>>,
    ask: impl FnOnce(PeerClient) -> F,
) -> Result<(), Error> {
    inner.check_running()?;
    if node == inner.id {
        return carry_out.await;
    }
    let (_, OrderReply { problem, cause }) =
        reach(inner, node, excuses, |link| ask(link.fast)).await?;
    decode(cause, problem)
}

/// Asks another node something: its name, and its answer.
pub async fn reach<T, F: Future<Output = Result<Response<T>, Status>>>(
    inner: &Inner,
    node: NodeId,
    excuses: &Excuses,
    ask: impl FnOnce(Link) -> F,
) -> Result<(String, T), Error> {
    let name = inner
        .memory
        .read(|state| state.member(node).map(|member| member.name.clone()))
        .ok_or_else(|| Error::NoSuchNode(node.to_string()))?;
    if !inner.board.is_live(node.0) {
        return Err(Error::Refused(format!(
            "node `{name}` is not live{}",
            excuses.not_live
        )));
    }
    let asked = ask(inner.links.to(node.0)?);
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(answer)) => Ok((name, answer.into_inner())),
        Ok(Err(status)) => Err(Error::Refused(no_answer(&name, excuses, &status))),
        Err(_) => Err(Error::Timeout),
    }
}

fn no_answer(name: &str, excuses: &Excuses, status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => {
            format!("node `{name}` is of a version that {}", excuses.old_version)
        }
        _ => format!(
            "node `{name}` could not be asked: {}",
            crate::peer::root_cause(status)
        ),
    }
}

/// What a peer is told that gave this node an order about itself.
pub async fn reply(carry_out: impl Future<Output = Result<(), Error>>) -> OrderReply {
    let (cause, problem) = encode(carry_out.await);
    OrderReply { problem, cause }
}

/// The cause and the words; no words when the order was carried out.
pub fn encode(result: Result<(), Error>) -> (i32, String) {
    let Err(error) = result else {
        return (Cause::Refused.into(), String::new());
    };
    let cause = match error {
        Error::Timeout => Cause::Timeout,
        Error::NoLeader => Cause::NoLeader,
        Error::Overloaded => Cause::Overloaded,
        Error::NotYet(_) => Cause::NotYet,
        _ => Cause::Refused,
    };
    (cause.into(), error.to_string())
}

/// What the other node said. A cause that this version does not know is a refusal.
pub fn decode(cause: i32, problem: String) -> Result<(), Error> {
    if problem.is_empty() {
        return Ok(());
    }
    Err(match Cause::try_from(cause) {
        Ok(Cause::Timeout) => Error::Timeout,
        Ok(Cause::NoLeader) => Error::NoLeader,
        Ok(Cause::Overloaded) => Error::Overloaded,
        Ok(Cause::NotYet) => Error::NotYet(problem),
        Ok(Cause::Refused) | Err(_) => Error::Refused(problem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_an_older_version_is_told_apart_from_one_that_is_gone() {
        let excuses = Excuses {
            not_live: "",
            old_version: "cannot do it; ask it with --endpoint",
        };
        let old = no_answer("a", &excuses, &Status::unimplemented(""));
        assert!(old.contains("--endpoint"), "{old}");
        let gone = Status::unavailable("tcp connect error");
        let gone = no_answer("a", &excuses, &gone);
        assert!(gone.contains("tcp connect error"), "{gone}");
    }

    fn arrives_as(error: Error) -> Error {
        let (cause, problem) = encode(Err(error));
        decode(cause, problem).unwrap_err()
    }

    #[test]
    fn an_error_keeps_its_kind_on_the_way() {
        assert!(matches!(arrives_as(Error::Timeout), Error::Timeout));
        assert!(matches!(arrives_as(Error::NoLeader), Error::NoLeader));
        assert!(matches!(arrives_as(Error::Overloaded), Error::Overloaded));
        let not_yet = arrives_as(Error::NotYet("later".into()));
        assert!(matches!(not_yet, Error::NotYet(why) if why == "later"));
        let refused = arrives_as(Error::Refused("no".into()));
        assert!(matches!(refused, Error::Refused(why) if why == "no"));
        let stopped = arrives_as(Error::Stopped("a failed disk".into()));
        assert!(matches!(stopped, Error::Refused(why) if why.contains("a failed disk")));
        let (cause, problem) = encode(Ok(()));
        assert!(decode(cause, problem).is_ok());
        // From a newer version.
        let unknown = decode(99, "new".into());
        assert!(matches!(unknown, Err(Error::Refused(why)) if why == "new"));
    }
}

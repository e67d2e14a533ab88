//! What became of an order, as one node tells another: why it failed by number, and in words for
//! people.

use crate::Error;
use crate::wire::proto::Cause;

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

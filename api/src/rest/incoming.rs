//! Bodies that go to the disk as they come: bounded in length, and not slower than somebody who means
//! it.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::problem::Problem;

/// Pieces of a body that wait for the disk.
const PIECES_MAX: usize = 8;

/// A body of which so many octets do not come in such a time is given up.
const PACE: (u64, Duration) = (64 << 10, Duration::from_secs(60));

/// Something that takes octets. Blocks.
pub trait Sink: Send + 'static {
    /// Adds octets.
    ///
    /// # Errors
    /// When they cannot be stored.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Writes a body of at most `most` octets to the disk on a thread of its own, as fast as the disk
/// takes it. Gives the sink back with what came before the body ended, however it did.
///
/// # Errors
/// When the body breaks off, is too long or too slow, or the disk fails.
pub async fn pour<S: Sink>(
    body: Body,
    most: u64,
    mut sink: S,
) -> Result<(S, Result<(), Problem>), Problem> {
    let (pieces, mut arriving) = mpsc::channel::<Bytes>(PIECES_MAX);
    let disk_thread = tokio::task::spawn_blocking(move || {
        while let Some(piece) = arriving.blocking_recv() {
            if let Err(error) = sink.write(&piece) {
                return (sink, Err(disk(&error)));
            }
        }
        (sink, Ok(()))
    });
    let received = receive(body, most, pieces).await;
    let (sink, stored) = disk_thread.await.map_err(|_| thread_failed())?;
    Ok((sink, stored.and(received)))
}

async fn receive(body: Body, most: u64, pieces: mpsc::Sender<Bytes>) -> Result<(), Problem> {
    let mut stream = body.into_data_stream();
    let mut length = 0u64;
    let (mut owed, mut patience) = PACE;
    loop {
        let began = Instant::now();
        let next = tokio::time::timeout(patience, stream.next()).await;
        let Some(piece) = next.map_err(|_| too_slow())? else {
            return Ok(());
        };
        let piece = piece
            .map_err(|error| Problem::new("malformed", format!("the body ended early: {error}")))?;
        patience = patience.saturating_sub(began.elapsed());
        length = length.saturating_add(piece.len() as u64);
        if length > most {
            let detail = format!("the body may have {most} octets");
            return Err(Problem::new("too_large", detail));
        }
        owed = owed.saturating_sub(piece.len() as u64);
        if owed == 0 {
            (owed, patience) = PACE;
        }
        if pieces.send(piece).await.is_err() {
            // The disk failed; its thread says how.
            return Ok(());
        }
    }
}

fn too_slow() -> Problem {
    let (octets, time) = PACE;
    let detail = format!(
        "less than {octets} octets of the body came in {} seconds",
        time.as_secs()
    );
    Problem::new("too_slow", detail)
}

/// A thread of ours panicked, or the process is ending.
pub fn thread_failed() -> Problem {
    Problem::new("internal", "a worker thread failed")
}

/// Why the disk did not take it.
pub fn disk(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::InvalidData => Problem::invalid("sha256", error.to_string()),
        io::ErrorKind::InvalidInput => Problem::new("too_large", error.to_string()),
        io::ErrorKind::ResourceBusy => Problem::new("unavailable", error.to_string()),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem::new(
            "no_space",
            format!("this node cannot take the file: {error}"),
        ),
        _ => {
            tracing::error!(%error, "an upload could not be written");
            Problem::new(
                "internal",
                format!("the upload could not be written: {error}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::stream;

    use super::*;

    struct Kept(Vec<u8>);

    impl Sink for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn body(pieces: Vec<io::Result<&'static [u8]>>) -> Body {
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn what_came_is_kept_however_the_body_ended() {
        let (kept, ended) = pour(body(vec![Ok(b"ab"), Ok(b"cd")]), 4, Kept(vec![]))
            .await
            .unwrap();
        assert!(kept.0 == b"abcd" && ended.is_ok());
        let broken = vec![Ok(&b"ab"[..]), Err(io::Error::other("cut"))];
        let (kept, ended) = pour(body(broken), 4, Kept(vec![])).await.unwrap();
        assert_eq!(kept.0, b"ab");
        assert_eq!(ended.unwrap_err().code, "malformed");
        let endless = Body::from_stream(stream::repeat_with(|| Ok::<_, io::Error>("abc")));
        let (kept, ended) = pour(endless, 10, Kept(vec![])).await.unwrap();
        assert_eq!(kept.0, b"abcabcabc");
        assert_eq!(ended.unwrap_err().code, "too_large");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let dripping = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok::<_, io::Error>("a drop"), ()))
        });
        let (pieces, mut arriving) = mpsc::channel(PIECES_MAX);
        let draining = async { while arriving.recv().await.is_some() {} };
        let receiving = receive(Body::from_stream(dripping), u64::MAX, pieces);
        let (received, ()) = tokio::join!(receiving, draining);
        assert_eq!(received.unwrap_err().code, "too_slow");
    }
}

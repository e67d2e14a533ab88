//! How many writes a second three nodes commit, at the leader and at a follower, each synced on a
//! quorum: `make bench`. Three nodes in one process share the disk and the cores.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Three, proposal};
use muster_storage::Command;
use muster_storage::command::PutMode;
use muster_storage::model::Object;

#[tokio::main]
async fn main() {
    let three = Three::start().await;
    let leader = three.leader();
    let places = [
        ("leader", &three.nodes[leader]),
        ("follower", &three.nodes[(leader + 1) % 3]),
    ];
    for (place, node) in places {
        for clients in [1, 64, 512, 4096] {
            let done = Arc::new(AtomicU64::new(0));
            let end = Instant::now() + Duration::from_secs(4);
            let tasks: Vec<_> = (0..clients)
                .map(|client| {
                    let (node, done) = (node.clone(), Arc::clone(&done));
                    tokio::spawn(async move {
                        let mut written = 0;
                        while Instant::now() < end {
                            written += 1;
                            let profile = serde_json::json!({
                                "name": format!("c{client}"),
                                "params": { "written": written },
                            });
                            let object = Object::Profile(serde_json::from_value(profile).unwrap());
                            let put = Command::Put {
                                object,
                                mode: PutMode::Apply,
                            };
                            node.propose(proposal(put)).await.unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let rate = done.load(Ordering::Relaxed) / 4;
            println!("{clients:5} clients at the {place}: {rate} writes/s");
        }
    }
    three.stop().await;
}

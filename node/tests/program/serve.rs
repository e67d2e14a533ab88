//! `muster serve` as a process: what it takes from its environment, and what it leaves on the disk.
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use crate::process::{Node, check_private, free_port, serve, started};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

#[test]
fn a_node_is_founded_by_its_environment_and_keeps_its_data_to_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("made-before");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();

    let node = started(serve(&dir).env("MUSTER_FOUND", "1"), &dir);
    check_private(&dir);
    assert_eq!(node.stop(), 0);

    // Once the directory belongs to a cluster, both are ignored, and no token is needed.
    let mut again = serve(&dir);
    again.env("MUSTER_FOUND", "true").args(["--join", "a:8093"]);
    assert_eq!(started(&mut again, &dir).stop(), 0);
}

#[test]
fn an_empty_directory_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let code = |command: &mut Command| command.status().unwrap().code();
    assert_eq!(code(&mut serve(dir.path())), Some(2));
    for nothing in ["", "0", "false", "no"] {
        let mut command = serve(dir.path());
        command.env("MUSTER_FOUND", nothing).env("MUSTER_JOIN", "");
        assert_eq!(code(&mut command), Some(2), "{nothing:?}");
    }
    assert_eq!(code(serve(dir.path()).args(["--join", "a:8093"])), Some(2));
    let both = ["--found", "--join", "a:8093", "--join-token-file", "/x"];
    assert_eq!(code(serve(dir.path()).args(both)), Some(2));
}

#[test]
fn a_token_that_cannot_be_read_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let peer = format!("127.0.0.1:{}", free_port());
    // First a directory in its place, then the first half of a token.
    std::fs::create_dir(&file).unwrap();
    let data = dir.path().join("data");
    let mut command = serve(&data);
    command
        .args(["--join", &peer, "--join-token-file"])
        .arg(&file);
    let mut node = Node(command.spawn().unwrap());
    std::thread::sleep(Duration::from_millis(1500));
    assert!(node.0.try_wait().unwrap().is_none(), "ended by a bad file");
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "mustertoken").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(
        node.0.try_wait().unwrap().is_none(),
        "ended by half a token"
    );
    assert_eq!(node.stop(), 0);
}

/// A collector of logs that hangs does not make the node hang.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("n1");
    let (reader, writer) = std::io::pipe().unwrap();
    // As full as the kernel lets it be: the first line finds no room.
    let flags = |flags| fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
    flags(OFlag::O_NONBLOCK);
    while (&writer).write(&[b'\n'; 4096]).is_ok() {}
    flags(OFlag::empty());
    let node = started(serve(&data).arg("--found").stderr(writer), &data);
    assert_eq!(node.stop(), 0);
    drop(reader);
}

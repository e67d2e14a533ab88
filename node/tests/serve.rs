//! `muster serve` as a process: what it takes from its environment, and what it leaves on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends its process, whatever the test does.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    fn stop(mut self) -> i32 {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code().unwrap_or(-1)
    }
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

fn serve(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MUSTER_")) {
        command.env_remove(name);
    }
    command
        .args(["serve", "--node-name", "n1", "--advertise", "127.0.0.1"])
        .args(["--dhcp-interfaces", "none", "--data-dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for port in ["--api-port", "--boot-port", "--peer-port", "--tftp-port"] {
        command.args([port, &free_port()]);
    }
    command
}

/// Waits until the node belongs to a cluster and has said so.
fn started(command: &mut Command, dir: &Path) -> Node {
    let mut node = Node(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(["cluster", "status", "--timeout", "1s", "--data-dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return node;
        }
        assert!(node.0.try_wait().unwrap().is_none(), "the node ended");
        assert!(Instant::now() < deadline, "the node does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn check_private(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "ca.pem" => assert_eq!(mode(&path), 0o644),
            "muster.sock" => assert_eq!(mode(&path), 0o660),
            _ => {
                assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
                if path.is_dir() {
                    check_private(&path);
                }
            }
        }
    }
}

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

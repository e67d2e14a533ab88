//! The program as processes.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends its process, whatever the test does.
pub struct Node(pub Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    pub fn stop(mut self) -> i32 {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code().unwrap_or(-1)
    }
}

pub fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// The program, whatever is set where the test runs.
pub fn muster() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MUSTER_")) {
        command.env_remove(name);
    }
    command
}

/// What the nodes on a directory say goes to a file beside it.
fn log(dir: &Path) -> File {
    let path = dir.with_extension("log");
    let log = File::options().create(true).append(true).open(path);
    log.unwrap()
}

pub fn serve(dir: &Path) -> Command {
    let mut command = muster();
    command
        .args(["serve", "--node-name", "n1", "--advertise", "127.0.0.1"])
        .args(["--dhcp-interfaces", "none", "--data-dir"])
        .arg(dir)
        .stdout(log(dir))
        .stderr(log(dir));
    for port in ["--api-port", "--boot-port", "--peer-port", "--tftp-port"] {
        command.args([port, &free_port()]);
    }
    command
}

/// Waits until the node belongs to a cluster and has said so.
pub fn started(command: &mut Command, dir: &Path) -> Node {
    let mut node = Node(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = muster()
            .args(["cluster", "status", "--timeout", "1s", "--data-dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return node;
        }
        let said = || std::fs::read_to_string(dir.with_extension("log")).unwrap_or_default();
        let ended = node.0.try_wait().unwrap();
        assert!(ended.is_none(), "the node ended, {ended:?}: {}", said());
        assert!(
            Instant::now() < deadline,
            "the node does not serve: {}",
            said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub fn check_private(dir: &Path) {
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

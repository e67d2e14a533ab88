//! A TFTP client that can be as wrong as firmware and networks are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use muster_node::tftp;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::Site;

/// Starts the service beside the site's HTTP, and waits until it answers.
pub async fn serve(site: &Site) -> SocketAddr {
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let options = tftp::Options {
        tftp_port: address.port(),
        boot_port: site.address.port(),
        advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        loader_dir: site.loaders(),
        recorder: site.recorder.clone(),
    };
    tokio::spawn(tftp::serve(
        site.cluster.clone(),
        options,
        site.stop.clone(),
    ));
    for _ in 0..100 {
        let mut client = Client::new(address).await;
        client.request(1, "undionly.kpxe", "").await;
        let answer = client.receive_within(Duration::from_millis(50)).await;
        if answer.is_some() {
            client.acknowledge(1).await;
            return address;
        }
    }
    panic!("TFTP does not answer");
}

/// What a server answered to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    Data(u16, Vec<u8>),
    Error(u16),
    Options(Vec<(String, String)>),
}

pub struct Client {
    pub socket: UdpSocket,
    server: SocketAddr,
    /// Where answers come from.
    transfer: Option<SocketAddr>,
}

impl Client {
    pub async fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self {
            socket,
            server,
            transfer: None,
        }
    }

    /// Sends a read (1) or write (2) request; options as `blksize 1468 tsize 0`.
    pub async fn request(&mut self, code: u8, path: &str, options: &str) {
        let mut packet = vec![0, code];
        let words = [path, "octet"]
            .into_iter()
            .chain(options.split_whitespace());
        for word in words {
            packet.extend(word.as_bytes());
            packet.push(0);
        }
        self.transfer = None;
        self.socket.send_to(&packet, self.server).await.unwrap();
    }

    /// The next packet, if one comes in time.
    pub async fn receive_within(&mut self, time: Duration) -> Option<Packet> {
        let mut buffer = vec![0; 70_000];
        let received = timeout(time, self.socket.recv_from(&mut buffer));
        let (length, from) = received.await.ok()?.unwrap();
        self.transfer = Some(from);
        let packet = &buffer[..length];
        let number = u16::from_be_bytes([packet[2], packet[3]]);
        Some(match packet[1] {
            3 => Packet::Data(number, packet[4..].to_vec()),
            5 => Packet::Error(number),
            6 => {
                let words: Vec<String> = packet[2..packet.len() - 1]
                    .split(|octet| *octet == 0)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect();
                let pairs = words.chunks(2);
                Packet::Options(pairs.map(|p| (p[0].clone(), p[1].clone())).collect())
            }
            code => panic!("unexpected opcode {code}"),
        })
    }

    pub async fn receive(&mut self) -> Packet {
        let packet = self.receive_within(Duration::from_secs(5)).await;
        packet.expect("an answer in time")
    }

    pub async fn acknowledge(&self, block: u16) {
        let [high, low] = block.to_be_bytes();
        self.reply(&[0, 4, high, low]).await;
    }

    /// Sends an error, as a client does that has seen enough.
    pub async fn abort(&self) {
        self.reply(b"\0\x05\0\x08enough\0").await;
    }

    async fn reply(&self, packet: &[u8]) {
        let to = self.transfer.expect("something was received");
        self.socket.send_to(packet, to).await.unwrap();
    }

    /// Reads a file, or gives the code of the error. Of the packets that arrive, those whose
    /// number `lost` names are thrown away.
    pub async fn read(
        &mut self,
        path: &str,
        options: &str,
        lost: impl Fn(usize) -> bool,
    ) -> Result<Vec<u8>, u16> {
        self.request(1, path, options).await;
        let (mut block_size, mut window) = (512, 1);
        let mut file = Vec::new();
        let mut expected: u16 = 1;
        let mut in_window = 0;
        for number in 0.. {
            let packet = self.receive().await;
            if lost(number) {
                continue;
            }
            match packet {
                Packet::Error(code) => return Err(code),
                Packet::Options(options) => {
                    for (name, value) in options {
                        let value: usize = value.parse().unwrap();
                        match name.as_str() {
                            "blksize" => block_size = value,
                            "windowsize" => window = value,
                            _ => {}
                        }
                    }
                    self.acknowledge(0).await;
                }
                Packet::Data(block, data) if block == expected => {
                    let last = data.len() < block_size;
                    file.extend(data);
                    expected = expected.wrapping_add(1);
                    in_window += 1;
                    if last || in_window == window {
                        self.acknowledge(block).await;
                        in_window = 0;
                    }
                    if last {
                        return Ok(file);
                    }
                }
                // A gap: say what was received in order (RFC 7440 §4).
                Packet::Data(..) => {
                    self.acknowledge(expected.wrapping_sub(1)).await;
                    in_window = 0;
                }
            }
        }
        unreachable!("the loop ends with the file");
    }
}

//! What passes a machine's port: who offered it what, and how much of which file it has. Read from
//! frames, so that it is known of every firmware in the same way.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::wire::Wire;

/// How often the listener looks whether anybody still wants to know.
const GLANCE: Duration = Duration::from_millis(200);

const TFTP_PORT: u16 = 69;
const BOOT_PORT: u16 = 8091;
const DHCP_SERVER: u16 = 67;

/// A file on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Who was asked.
    pub server: Ipv4Addr,
    /// For what.
    pub path: String,
    /// Octets that have come, headers included.
    pub octets: usize,
    /// The machine's port that they come to.
    port: u16,
}

/// All that has passed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Who sent OFFERs, in order.
    pub offers: Vec<Ipv4Addr>,
    /// Who sent ACKs, in order.
    pub acks: Vec<Ipv4Addr>,
    /// How many DISCOVERs and REQUESTs the machine has sent.
    pub asked: usize,
    /// What was asked for, in order.
    pub fetches: Vec<Fetch>,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Ear {
    traffic: Arc<Mutex<Traffic>>,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<Result<()>>>,
}

impl Ear {
    /// Listens to a port of the switch.
    pub fn new(wire: Wire) -> Self {
        let traffic = Arc::<Mutex<Traffic>>::default();
        let over = Arc::<AtomicBool>::default();
        let listening = std::thread::spawn({
            let (traffic, over) = (Arc::clone(&traffic), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    if let Some(frame) = wire.receive_frame(Instant::now() + GLANCE)? {
                        lock(&traffic).take(&frame);
                    }
                }
                Ok(())
            }
        });
        Self {
            traffic,
            over,
            listening: Some(listening),
        }
    }

    /// What has passed so far.
    pub fn heard(&self) -> Traffic {
        lock(&self.traffic).clone()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn lock(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Takes note of a frame; of what is not known of, none.
    fn take(&mut self, frame: &[u8]) -> Option<()> {
        let ip = frame.get(14..)?;
        if frame.get(12..14)? != [8, 0] {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?));
        let (from, to) = (address(12)?, address(16)?);
        let length = usize::from(u16::from_be_bytes(*ip.get(2..)?.first_chunk()?));
        let header = usize::from(ip.first()? & 15) * 4;
        let packet = ip.get(header..length.max(header))?;
        let port = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
        let ports = (port(0)?, port(2)?);
        match ip.get(9)? {
            6 => {
                let header = usize::from(packet.get(12)? >> 4) * 4;
                self.take_http((from, to), ports, packet.get(header..)?)
            }
            17 => self.take_udp((from, to), ports, packet.get(8..)?),
            _ => None,
        }
    }

    fn take_udp(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        ports: (u16, u16),
        payload: &[u8],
    ) -> Option<()> {
        if ports.1 == DHCP_SERVER {
            self.asked += 1;
        } else if ports.0 == DHCP_SERVER {
            // The message type comes first in every message that we send.
            match payload.get(240..243)? {
                [53, 1, 2] => self.offers.push(from),
                [53, 1, 5] => self.acks.push(from),
                _ => {}
            }
        } else if ports.1 == TFTP_PORT {
            let path = payload.get(2..)?.split(|octet| *octet == 0).next()?;
            self.fetches.push(Fetch {
                server: to,
                path: String::from_utf8_lossy(path).into_owned(),
                octets: 0,
                port: ports.0,
            });
        } else if payload.starts_with(&[0, 3]) {
            self.arrived(from, ports.1, payload.len() - 2);
        }
        Some(())
    }

    fn take_http(
        &mut self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        ports: (u16, u16),
        payload: &[u8],
    ) -> Option<()> {
        if ports.0 == BOOT_PORT {
            self.arrived(from, ports.1, payload.len());
        } else if ports.1 == BOOT_PORT {
            let line = payload.split(|octet| *octet == b'\r').next()?;
            let line = std::str::from_utf8(line).ok()?;
            let path = line.strip_prefix("GET ")?.split(' ').next()?;
            self.fetches.push(Fetch {
                server: to,
                path: path.to_owned(),
                octets: 0,
                port: ports.0,
            });
        }
        Some(())
    }

    fn arrived(&mut self, from: Ipv4Addr, port: u16, octets: usize) {
        let mut fetches = self.fetches.iter_mut().rev();
        if let Some(fetch) = fetches.find(|it| it.server == from && it.port == port) {
            fetch.octets += octets;
        }
    }

    /// The last fetch of a file whose path has `part` in it.
    pub fn fetch(&self, part: &str) -> Option<&Fetch> {
        self.fetches.iter().rfind(|fetch| fetch.path.contains(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
    const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

    fn frame(protocol: u8, ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let header = if protocol == 6 { 20 } else { 8 };
        let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        packet.resize(header, 0);
        if protocol == 6 {
            packet[12] = 5 << 4;
        }
        packet.extend(data);
        let length = u16::try_from(packet.len() + 20).unwrap_or_default();
        let mut frame = [&[0; 12][..], &[8, 0, 0x45, 0], &length.to_be_bytes()].concat();
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([ends.0.octets(), ends.1.octets()].concat());
        frame.extend(packet);
        frame
    }

    #[test]
    fn offers_and_files_are_told_apart() {
        let mut traffic = Traffic::default();
        let mut offer = vec![0; 240];
        offer.extend([53, 1, 2]);
        traffic.take(&frame(17, (NODE, MACHINE), (67, 68), &offer));
        let request = b"\x00\x01undionly.kpxe\x00octet\x00";
        traffic.take(&frame(17, (MACHINE, NODE), (2000, 69), request));
        let data = [&[0, 3, 0, 1][..], &[7; 512]].concat();
        traffic.take(&frame(17, (NODE, MACHINE), (40_000, 2000), &data));
        traffic.take(&frame(
            6,
            (MACHINE, NODE),
            (3000, 8091),
            b"GET /a/b?c HTTP/1.1\r\n",
        ));
        traffic.take(&frame(6, (NODE, MACHINE), (8091, 3000), &[1; 100]));
        traffic.take(&frame(6, (NODE, MACHINE), (8091, 3001), &[1; 100]));
        traffic.take(b"short");
        assert_eq!(traffic.offers, [NODE]);
        let octets = |path| traffic.fetch(path).map(|fetch| fetch.octets);
        assert_eq!(octets("undionly.kpxe"), Some(514));
        assert_eq!(octets("/a/b"), Some(100));
    }
}

//! Captures of Ethernet frames, `chaos-tests/fixtures/pcaps`.

use std::path::Path;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Payloads of the UDP datagrams over IPv4 and IPv6 to a port.
pub fn datagrams(capture: &str, port: u16) -> Vec<Vec<u8>> {
    let packets = packets(capture).into_iter();
    packets
        .filter(|(protocol, packet)| *protocol == UDP && packet[2..4] == port.to_be_bytes())
        .map(|(_, packet)| {
            let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            // Payload that was cut off: the end of a request by TFTP is a zero.
            let mut packet = packet;
            packet.resize(packet.len().max(length), 0);
            packet[8..length].to_vec()
        })
        .collect()
}

/// Heads of the HTTP requests, each in one segment.
pub fn heads(capture: &str) -> Vec<Vec<u8>> {
    let packets = packets(capture).into_iter();
    packets
        .filter(|(protocol, _)| *protocol == TCP)
        .map(|(_, packet)| packet[usize::from(packet[12] >> 4) * 4..].to_vec())
        .filter(|data| data.starts_with(b"GET ") || data.starts_with(b"HEAD "))
        .collect()
}

/// What IP carries in each frame, by protocol.
fn packets(capture: &str) -> Vec<(u8, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../chaos-tests/fixtures/pcaps")
        .join(capture);
    let file = std::fs::read(&path).unwrap_or_else(|problem| panic!("{path:?}: {problem}"));
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "pcap of Ethernet");
    let mut found = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let length = word(at + 8) as usize;
        let frame = &file[at + 16..at + 16 + length];
        at += 16 + length;
        match frame[12..14] {
            [0x08, 0x00] => {
                let header = 14 + usize::from(frame[14] & 15) * 4;
                // Short frames are padded.
                let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
                found.push((frame[23], frame[header..end.min(frame.len())].to_vec()));
            }
            [0x86, 0xdd] => found.push((frame[20], frame[54..].to_vec())),
            _ => {}
        }
    }
    found
}

//! Telling the service manager how it goes: the `sd_notify` protocol.

use std::io;
use std::os::unix::net::UnixDatagram;

/// Sends a state, as in `READY=1`; does nothing when nobody wants to know.
pub fn notify(state: &str) {
    if let Err(error) = send(state) {
        tracing::debug!(%error, state, "the service manager could not be told");
    }
}

fn send(state: &str) -> io::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let socket = UnixDatagram::unbound()?;
    match address.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)?;
        }
        None => {
            socket.send_to(state.as_bytes(), &address)?;
        }
    }
    Ok(())
}

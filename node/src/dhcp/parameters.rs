//! What a subnet tells its clients: network parameters, and boot data for those that ask.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use muster_api::options::{self, BadOption, is_template};
use muster_storage::State;
use muster_storage::model::Subnet;

use super::decide::PeerView;
use super::firmware::{self, Boot, Overrides};
use super::request::Request;

const VENDOR_OPTIONS: u8 = 43;
const BOOT_SERVER_NAME: u8 = 66;
const BOOT_FILE: u8 = 67;

/// Boot data, with what the subnet, the client's classes and its machine override; only for clients
/// that ask for it.
pub fn boot(
    state: &State,
    request: &Request,
    subnet: &Subnet,
    view: &PeerView<'_>,
    proxy: bool,
) -> Option<Boot> {
    request.firmware?;
    let client = &request.client;
    let is = |code: u8| move |(key, _): &(&str, &str)| options::code_of(key) == Ok(code);
    let text = |code: u8| {
        let (_, value) = state.options_of(client, subnet).filter(is(code)).last()?;
        rendered(code, value, view).ok()
    };
    // What a subnet says to all is for other devices than PXE ROMs.
    let vendor_options = || {
        let special = state.special_options_of(client, subnet);
        let (key, value) = special.filter(is(VENDOR_OPTIONS)).last()?;
        written(key, value, view).ok().map(|(_, value)| value)
    };
    let overrides = Overrides {
        next_server: state.next_server_of(client, subnet),
        server_name: text(BOOT_SERVER_NAME),
        file: text(BOOT_FILE),
        loader: firmware::platform_of(request)
            .and_then(|platform| state.loader(client.mac, subnet, platform))
            .cloned(),
        vendor_options: vendor_options(),
    };
    firmware::boot(request, view.address, view.boot_port, &overrides, proxy)
}

/// Network parameters by code. An option that cannot be sent is left out, so that it does not take
/// the others down.
pub fn network(
    state: &State,
    request: &Request,
    subnet: &Subnet,
    view: &PeerView<'_>,
) -> BTreeMap<u8, Vec<u8>> {
    let addresses = |list: &[Ipv4Addr]| -> Vec<u8> {
        list.iter().flat_map(|address| address.octets()).collect()
    };
    let domain = subnet.domain_name.clone().unwrap_or_default();
    let mut parameters = BTreeMap::from([
        (1, subnet.cidr.netmask().octets().to_vec()),
        (3, addresses(&subnet.routers)),
        (6, addresses(&subnet.dns_servers)),
        (15, domain.into_bytes()),
        (28, subnet.cidr.broadcast().octets().to_vec()),
    ]);
    let machine = request
        .client
        .mac
        .and_then(|mac| state.machine_with_mac(mac));
    if let Some(machine) = machine {
        parameters.insert(12, machine.name.clone().into_bytes());
    }
    for (key, value) in state.options_of(&request.client, subnet) {
        match written(key, value, view) {
            // Boot data, which only boot clients get.
            Ok((BOOT_SERVER_NAME | BOOT_FILE, _)) => {}
            Ok((code, value)) => {
                parameters.insert(code, value);
            }
            Err(problem) => {
                tracing::debug!(subnet = subnet.name, error = %problem, "option is left out");
            }
        }
    }
    parameters.retain(|_, value| !value.is_empty());
    parameters
}

fn written(key: &str, value: &str, view: &PeerView<'_>) -> Result<(u8, Vec<u8>), BadOption> {
    let code = options::code_of(key)?;
    let text = rendered(code, value, view)?;
    Ok((code, options::encode(code, &text)?))
}

fn rendered(code: u8, value: &str, view: &PeerView<'_>) -> Result<String, BadOption> {
    if is_template(value) {
        (view.render)(value).map_err(|problem| BadOption::Template { code, problem })
    } else {
        Ok(value.to_owned())
    }
}

//! Which loader firmware is told to load, and who may say so.
use crate::world::*;
use muster_storage::model::{Object, Profile};
use serde_json::{Value, json};

/// The boot file that the client is told of.
fn file(world: &mut World, packet: &Packet) -> String {
    let reply = world.reply(packet);
    reply.boot.expect("boot data").file
}

fn http(architecture: u16) -> Packet {
    let class = format!("HTTPClient:Arch:{architecture:05}:UNDI:003000");
    Packet::discover(MAC)
        .pxe(architecture)
        .option(60, class.as_bytes())
}

fn ipxe(architecture: u16) -> Packet {
    Packet::discover(MAC)
        .ipxe()
        .option(93, &architecture.to_be_bytes())
}

const SCRIPT: &str = "http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50";

#[test]
fn each_platform_loads_what_is_named_for_it() {
    let mut world = World::with(|subnet| {
        subnet.loaders = serde_json::from_value(json!({
            "bios": "pxelinux.0", "uefi-x64": "boot/grubnetx64.efi.signed",
            "uefi-ia32": "ia32.efi", "uefi-arm64": "aa64.efi",
            "http-x64": "boot/shim.efi", "http-arm64": "http://10.77.0.9/aa64.efi",
            "ipxe-bios": "lpxelinux.0", "ipxe-x64": "snponly.efi",
        }))
        .unwrap();
    });
    let pxe = |architecture| Packet::discover(MAC).pxe(architecture);
    for (packet, expected) in [
        (pxe(0), "pxelinux.0"),
        (pxe(7), "boot/grubnetx64.efi.signed"),
        (pxe(9), "boot/grubnetx64.efi.signed"),
        (pxe(6), "ia32.efi"),
        (pxe(11), "aa64.efi"),
        (http(16), "http://10.77.0.1:8091/boot/shim.efi"),
        (http(19), "http://10.77.0.9/aa64.efi"),
        (http(15), "http://10.77.0.1:8091/snponly-i386.efi"),
        (http(20), "http://10.77.0.1:8091/undionly.kpxe"),
        (ipxe(0), "lpxelinux.0"),
        // Another iPXE is loaded by the script, which knows whether it is there already.
        (ipxe(7), SCRIPT),
        (ipxe(11), SCRIPT),
    ] {
        assert_eq!(file(&mut world, &packet), expected, "{:?}", packet.options);
    }
}

#[test]
fn machine_comes_before_profiles_before_subnet() {
    let loaders = |name: Option<&str>| match name {
        Some(name) => json!({ "bios": name }),
        None => json!({}),
    };
    // Machine, its first and second profile, `global`, subnet.
    for (named, expected) in [
        ([None, None, None, None, None], "undionly.kpxe"),
        ([None, None, None, None, Some("s.0")], "s.0"),
        ([None, None, None, Some("g.0"), Some("s.0")], "g.0"),
        ([None, None, Some("b.0"), Some("g.0"), Some("s.0")], "b.0"),
        ([None, Some("a.0"), Some("b.0"), None, Some("s.0")], "a.0"),
        ([Some("m.0"), Some("a.0"), None, None, None], "m.0"),
    ] {
        let [machine, first, second, global, subnet] = named.map(loaders);
        let mut world = World::with(|lab| lab.loaders = serde_json::from_value(subnet).unwrap());
        let profile = |name: &str, loaders: Value| -> Object {
            let profile = json!({"name": name, "loaders": loaders});
            Object::Profile(serde_json::from_value::<Profile>(profile).unwrap())
        };
        world.put(profile("first", first));
        world.put(profile("second", second));
        world.put(profile("global", global));
        world.machine_with("m1", MAC, |it| {
            it.profiles = vec![
                "first".to_owned(),
                "missing".to_owned(),
                "second".to_owned(),
            ];
            it.loaders = serde_json::from_value(machine).unwrap();
        });
        let packet = Packet::discover(MAC).pxe(0);
        assert_eq!(file(&mut world, &packet), expected, "{named:?}");
        // Another platform is left alone.
        let packet = Packet::discover(MAC).pxe(7);
        assert_eq!(file(&mut world, &packet), "snponly.efi");
    }
}

#[test]
fn option_67_comes_before_loaders() {
    let mut world = World::with(|subnet| {
        subnet.loaders = serde_json::from_value(json!({"bios": "pxelinux.0"})).unwrap();
        subnet.options.insert("67".to_owned(), "own.0".to_owned());
    });
    let packet = Packet::discover(MAC).pxe(0);
    assert_eq!(file(&mut world, &packet), "own.0");
}

/// iPXE that was built without HTTP could not fetch its script.
#[test]
fn ipxe_without_http_loads_one_that_has_it() {
    let features = |of: &[u8]| -> Vec<u8> {
        let each = of.iter().flat_map(|code| [*code, 1, 1]);
        [0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0]
            .into_iter()
            .chain(each)
            .collect()
    };
    let mut world = World::new();
    for (of, expected) in [
        (&[0x15, 0x13][..], SCRIPT),
        (&[0x15], "undionly.kpxe"),
        // What says nothing of itself is taken for whole.
        (&[], SCRIPT),
    ] {
        let packet = ipxe(0).option(175, &features(of));
        assert_eq!(file(&mut world, &packet), expected, "{of:?}");
    }
    let cut = ipxe(0).option(175, &[0x15, 9]);
    assert_eq!(file(&mut world, &cut), "undionly.kpxe");
    let mut world = World::with(|subnet| {
        subnet.loaders = serde_json::from_value(json!({"ipxe-bios": "undionly.kkpxe"})).unwrap();
    });
    let packet = ipxe(0).option(175, &features(&[0x15]));
    assert_eq!(file(&mut world, &packet), "undionly.kkpxe");
}

#[test]
fn an_operating_system_is_told_of_no_loader() {
    let mut world = World::with(|subnet| {
        subnet.loaders = serde_json::from_value(json!({"bios": "pxelinux.0"})).unwrap();
    });
    assert_eq!(world.reply(&Packet::discover(MAC)).boot, None);
}

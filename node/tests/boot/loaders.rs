//! What loaders and firmware fetch by names that they were built with, by HTTP and by TFTP, on a
//! cluster of one.

use std::time::{Duration, Instant};

use crate::support::tftp::{Client, Packet, serve};
use crate::support::{MAC, Site, UUID};

/// Machine `m1` with a kernel, an initrd and a lease of 127.0.0.1.
async fn lab(site: &Site) {
    site.artifact("lab/vmlinuz", b"kernel").await;
    site.artifact("lab/initrd.img", b"initrd").await;
    site.lab_machine().await;
    site.lease("127.0.0.1", MAC).await;
}

const NAMES: [&str; 12] = [
    "pxelinux.cfg/01-52-54-00-00-00-50",
    // As pxelinux writes it, and as it is.
    "pxelinux.cfg/10b8a76b-ad9d-d111-80b4-00c04fd430c8",
    "pxelinux.cfg/6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "pxelinux.cfg/7F000001",
    "pxelinux.cfg/default",
    "boot/bios/pxelinux.cfg/01-52-54-00-00-00-50",
    "grub/grub.cfg-01-52-54-00-00-00-50",
    "boot/grub/grub.cfg-01-52:54:00:00:00:50",
    "grub/grub.cfg-7F000001",
    "grub/grub.cfg",
    "EFI/debian/grub.cfg",
    "EFI/BOOT/grub.cfg",
];

#[tokio::test]
async fn loaders_find_their_configuration_under_each_of_their_names() {
    let site = Site::new().await;
    let server = serve(&site).await;
    lab(&site).await;
    for name in NAMES {
        let by_http = site.get(&format!("/{name}")).await.ok_text();
        let mut client = Client::new(server).await;
        let by_tftp = client.read(name, "blksize 1408 tsize 0", |_| false).await;
        assert_eq!(by_tftp, Ok(by_http.clone().into_bytes()), "{name}");
        assert!(
            by_http.contains("# bootenv of machine `m1`: `lab`\n"),
            "{by_http}"
        );
        let kernel = match name.contains("pxelinux") {
            true => "KERNEL 127.0.0.1::/artifacts/lab/vmlinuz?sha256=",
            false => "if linux '(tftp,127.0.0.1)/artifacts/lab/vmlinuz?sha256=",
        };
        assert!(by_http.contains(kernel), "{name}: {by_http}");
    }
}

#[tokio::test]
async fn machines_that_nobody_knows_are_told_so_by_every_loader() {
    let site = Site::new().await;
    for (name, expected) in [
        (
            "pxelinux.cfg/01-52-54-00-00-00-99",
            "SAY muster: this machine waits. MAC 52:54:00:00:00:99",
        ),
        (
            "grub/grub.cfg-01-52:54:00:00:00:99",
            "echo 'muster: this machine waits. MAC 52:54:00:00:00:99",
        ),
        // Without a lease nothing is known; GRUB can say who it is.
        ("grub/grub.cfg", "grub/grub.cfg-01-$net_default_mac"),
        ("bios/pxelinux.cfg/default", "::bios/pxelinux.cfg/default\n"),
    ] {
        let text = site.get(&format!("/{name}")).await.ok_text();
        assert!(text.contains(expected), "{name}: {text}");
    }
    for name in [
        "pxelinux.cfg/6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "pxelinux.cfg/7F000001",
        "grub/grub.cfg-7F000001",
    ] {
        assert_eq!(site.get(&format!("/{name}")).await.status, 404, "{name}");
    }
}

#[tokio::test]
async fn ipxe_finds_its_script_beside_whatever_it_was_loaded_from() {
    let site = Site::new().await;
    lab(&site).await;
    for path in [
        "/autoexec.ipxe",
        "/boot/x64/autoexec.ipxe",
        "/a/b/c/autoexec.ipxe",
    ] {
        let script = site.get(path).await.ok_text();
        assert!(script.starts_with("#!ipxe\n"), "{path}: {script}");
        assert!(
            script.contains("bootenv of machine `m1`"),
            "{path}: {script}"
        );
    }
}

#[tokio::test]
async fn artifacts_are_loaders_too() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.artifact("bios/ldlinux.c32", b"module").await;
    site.artifact("grubnetx64.efi.signed", b"grub").await;
    site.artifact("undionly.kpxe", b"another").await;
    for (name, expected) in [
        ("bios/ldlinux.c32", "module"),
        ("grubnetx64.efi.signed", "grub"),
        // A file of the loader directory comes first.
        ("undionly.kpxe", "loader"),
    ] {
        let answer = site.get(&format!("/{name}")).await;
        assert_eq!(answer.ok_text(), expected, "{name}");
        let mut client = Client::new(server).await;
        let read = client.read(name, "", |_| false).await;
        assert_eq!(read, Ok(expected.as_bytes().to_vec()), "{name}");
    }
    assert_eq!(site.get("/bios/other.c32").await.status, 404);
}

/// UEFI asks for the head, then for the file, and takes what it knows the type of.
#[tokio::test]
async fn uefi_is_told_what_it_loads() {
    let site = Site::new().await;
    for name in ["x.efi", "x.efi.signed", "x.iso", "x.img", "uki"] {
        site.artifact(&format!("uefi/{name}"), b"octets").await;
    }
    let firmware = "User-Agent: UefiHttpBoot/1.0";
    for (path, agent, expected) in [
        ("/uefi/x.efi", firmware, "application/efi"),
        ("/uefi/x.efi.signed", firmware, "application/efi"),
        ("/artifacts/uefi/x.efi", firmware, "application/efi"),
        ("/uefi/x.iso", firmware, "application/vnd.efi-iso"),
        ("/uefi/x.img", firmware, "application/vnd.efi-img"),
        ("/uefi/uki", firmware, "application/efi"),
        ("/uefi/uki", "User-Agent: curl", "application/octet-stream"),
        (
            "/undionly.kpxe",
            "User-Agent: curl",
            "application/octet-stream",
        ),
    ] {
        for method in ["HEAD", "GET"] {
            let answer = site.send(method, path, &[agent], b"").await;
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.header("content-type"), expected, "{path} {agent}");
            assert_eq!(answer.header("content-length"), "6", "{path}");
        }
    }
}

/// A machine that boots its disk: what it asks for, how it is set, and whether it is given.
#[tokio::test]
async fn firmware_is_sent_to_the_disk_by_finding_nothing() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.lease("127.0.0.1", MAC).await;
    let machine = |bootenv: &str, local_boot: &str| {
        format!(
            r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "uuid": "{UUID}",
                "bootenv": "{bootenv}", "profiles": ["model"]{local_boot}}}}}"#
        )
    };
    let own = |how: &str| format!(r#", "local_boot": "{how}""#);
    let profile =
        |how: &str| format!(r#"{{"profile": {{"name": "model", "local_boot": "{how}"}}}}"#);
    // bootenv, profile, machine; whether UEFI HTTP Boot, and whether PXE, get a loader.
    for (bootenv, of_profile, of_machine, http, pxe) in [
        ("local", "auto", "", false, true),
        ("local", "auto", "refuse", false, false),
        ("local", "refuse", "", false, false),
        ("local", "refuse", "exit", true, true),
        ("local", "exit", "", true, true),
        ("local", "sanboot", "auto", false, true),
        ("hold", "refuse", "refuse", true, true),
        ("none", "refuse", "refuse", true, true),
    ] {
        site.apply(&profile(of_profile)).await;
        let of_machine_json = if of_machine.is_empty() {
            String::new()
        } else {
            own(of_machine)
        };
        site.apply(&machine(bootenv, &of_machine_json)).await;
        let row = format!("{bootenv} {of_profile} {of_machine}");
        let agent = ["User-Agent: UefiHttpBoot/1.0"];
        let head = site.send("HEAD", "/undionly.kpxe", &agent, b"").await;
        assert_eq!(head.status, if http { 200 } else { 404 }, "{row}");
        let mut client = Client::new(server).await;
        client.request(1, "undionly.kpxe", "").await;
        let answered = client.receive().await;
        let expected = match pxe {
            true => Packet::Data(1, b"loader".to_vec()),
            false => Packet::Error(1),
        };
        assert_eq!(answered, expected, "{row}");
        if pxe {
            client.acknowledge(1).await;
        }
    }
}

#[tokio::test]
async fn each_loader_is_told_how_to_boot_the_disk() {
    let site = Site::new().await;
    for (how, ipxe, pxelinux, grub) in [
        (
            "auto",
            "sanboot --no-describe --drive 0x80 ||\n:firmware\nexit 1\n",
            "LOCALBOOT 0\n",
            "chainloader",
        ),
        ("exit", "disk\nexit 1\n", "LOCALBOOT -1\n", "disk'\nexit\n"),
        (
            "sanboot",
            "disk\nsanboot --no-describe --drive 0x80 ||\nexit 1\n",
            "COM32 chain.c32\n",
            "chainloader",
        ),
        ("refuse", "disk\nexit 1\n", "LOCALBOOT 0\n", "disk'\nexit\n"),
    ] {
        site.apply(&format!(
            r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "local_boot": "{how}"}}}}"#
        ))
        .await;
        for (path, expected) in [
            (format!("/boot.ipxe?mac={MAC}"), ipxe),
            ("/pxelinux.cfg/01-52-54-00-00-00-50".to_owned(), pxelinux),
            ("/grub/grub.cfg-01-52-54-00-00-00-50".to_owned(), grub),
        ] {
            let text = site.get(&path).await.ok_text();
            assert!(text.contains(expected), "{how} {path}: {text}");
        }
    }
}

/// What is never there costs no time, also where nobody can be asked.
#[tokio::test]
async fn what_loaders_look_for_in_vain_is_refused_at_once() {
    let site = Site::new().await;
    for path in [
        "/revocations_sku.efi",
        "/grub/x86_64-efi/command.lst",
        "/grub/fonts/unicode.pf2",
        "/pxelinux.cfg/0A4D00",
        "/pxelinux.cfg/33221100-5544-7766-8899-525400770001",
        "/EFI/BOOT/grub.cfg-0A4D",
    ] {
        let asked = Instant::now();
        assert_eq!(site.get(path).await.status, 404, "{path}");
        assert!(asked.elapsed() < Duration::from_millis(200), "{path}");
    }
}

/// iPXE in a ROM loads the one that was chosen, which must not load itself again.
#[tokio::test]
async fn fuller_ipxe_is_chained_once() {
    let site = Site::new().await;
    lab(&site).await;
    site.apply(
        r#"{"subnet": {"name": "loopback", "cidr": "127.0.0.0/8", "pools": ["127.0.0.1-127.0.0.9"],
            "loaders": {"ipxe-bios": "undionly.kpxe", "ipxe-x64": "http://10.0.0.9/snponly.efi",
                "ipxe-arm64": "grubnetaa64.efi"}}}"#,
    )
    .await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    let expected = format!(
        "\niseq ${{platform}} pcbios || goto own-0\n\
         iseq ${{netX/chip}} undionly && goto own-0 ||\n\
         chain --autofree --timeout 4000 {}/undionly.kpxe ||\n\
         :own-0\n\
         iseq ${{platform}}-${{buildarch}} efi-x86_64 || goto own-1\n\
         iseq ${{netX/chip}} SNP && goto own-1 ||\n\
         iseq ${{netX/chip}} NII && goto own-1 ||\n\
         chain --autofree --timeout 4000 http://10.0.0.9/snponly.efi ||\n\
         :own-1\n\
         echo muster: m1 boots lab/vmlinuz\n",
        site.url
    );
    assert!(script.contains(&expected), "{script}");
}

//! Scripts, word for word.

use super::*;

fn nodes() -> Vec<NodeView> {
    [(1, "a"), (2, "b")]
        .map(|(host, name)| NodeView {
            name: name.to_owned(),
            address: IpAddr::from([10, 77, 0, host]),
            boot_port: 8091,
        })
        .into()
}

fn heading(machine: Option<&str>) -> Heading {
    Heading {
        machine: machine.map(str::to_owned),
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, 0x50])),
        address: IpAddr::from([10, 77, 0, 100]),
        node: "a".to_owned(),
        rule: "bootenv of machine `m1`: `lab`".to_owned(),
        stamp: None,
        revision: Revision(512),
        confirmed: true,
        directory: "bios/".to_owned(),
        fuller: Vec::new(),
    }
}

fn file(path: &str) -> File {
    File {
        path: path.to_owned(),
        sha256: Sha256([0xab; 32]),
        lacking: Vec::new(),
    }
}

#[test]
fn a_node_that_lacks_a_file_is_not_named_for_it_while_another_may_have_it() {
    let script = |lacking: &[&str]| {
        let lacking: Vec<String> = lacking.iter().map(|name| (*name).to_owned()).collect();
        let mut initrd = file("lab/initrd.img");
        let mut kernel = file("lab/vmlinuz");
        (initrd.lacking, kernel.lacking) = (lacking.clone(), lacking);
        let task = Task::Kernel {
            kernel,
            initrds: vec![initrd],
            args: vec!["of=a".to_owned(), "of=b".to_owned()],
        };
        let script = text(&heading(Some("m1")), &task, &nodes());
        let fetches = script.lines().filter(|line| line.contains("/artifacts/"));
        let named = fetches.map(|line| {
            let name = if line.contains("10.77.0.1") { "a" } else { "b" };
            // The command line is that of the node that gives the kernel.
            assert!(!line.starts_with("kernel") || line.contains(&format!("of={name}")));
            name
        });
        named.collect::<String>()
    };
    assert_eq!(script(&[]), "abab");
    assert_eq!(script(&["a"]), "bb");
    assert_eq!(script(&["b", "gone"]), "aa");
    assert_eq!(script(&["a", "b"]), "abab", "else nothing would be left");
}

#[test]
fn other_loaders_are_not_sent_to_a_node_that_lacks_a_file() {
    let script = |language: Language, lacking: &[&str]| {
        let mut kernel = file("lab/vmlinuz");
        kernel.lacking = lacking.iter().map(|name| (*name).to_owned()).collect();
        let task = Task::Kernel {
            kernel,
            initrds: vec![file("lab/initrd.img")],
            args: vec!["of=a".to_owned(), "of=b".to_owned()],
        };
        let script = render(language, &heading(Some("m1")), &task, &nodes());
        let names = script
            .split_whitespace()
            .filter(|word| word.contains("artifacts/"));
        let named = names.map(|name| if name.contains("10.77.0.1") { "a" } else { "b" });
        named.collect::<String>()
    };
    // Kernel and initrd, of each node in turn.
    assert_eq!(script(Language::Grub, &[]), "aabb");
    assert_eq!(script(Language::Grub, &["a"]), "babb");
    assert_eq!(script(Language::Grub, &["b"]), "aaab");
    assert_eq!(script(Language::Grub, &["a", "b"]), "aabb");
    assert_eq!(script(Language::Pxelinux, &["a"]), "ba");
    assert_eq!(script(Language::Pxelinux, &["b"]), "aa");
}

/// With the digest shortened, for lines that people can read.
fn check(heading: &Heading, task: &Task, expected: &str) {
    let digest = "ab".repeat(32);
    assert_eq!(
        text(heading, task, &nodes()).replace(&digest, "ab…"),
        expected
    );
}

const AGAIN: &str = "\
:again
isset ${netX/mac} || goto bare
chain --replace --autofree --timeout 4000 http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
chain --replace --autofree --timeout 4000 http://10.77.0.2:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
echo muster: no node answers
ifconf -c dhcp ||
chain --replace --autofree --timeout 4000 ${filename} ||
goto wait
:bare
echo muster: no network card is left: the machine starts anew
sleep 3 ||
reboot ||
exit 1
";

#[test]
fn kernel_falls_back_over_the_nodes_and_reads_the_script_again() {
    let task = Task::Kernel {
        kernel: file("lab/vmlinuz"),
        initrds: vec![file("lab/initrd.img")],
        args: vec![
            "quiet url=http://10.77.0.1:8091/x".to_owned(),
            "quiet url=http://10.77.0.2:8091/x".to_owned(),
        ],
    };
    let expected = "\
#!ipxe
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
echo muster: m1 boots lab/vmlinuz
imgfree
initrd --name initrd.img --timeout 4000 http://10.77.0.1:8091/artifacts/lab/initrd.img?sha256=ab… && goto initrd-0 ||
initrd --name initrd.img --timeout 4000 http://10.77.0.2:8091/artifacts/lab/initrd.img?sha256=ab… && goto initrd-0 ||
goto failed
:initrd-0
kernel --name vmlinuz --timeout 4000 http://10.77.0.1:8091/artifacts/lab/vmlinuz?sha256=ab… quiet url=http://10.77.0.1:8091/x initrd=initrd.img && goto boot ||
kernel --name vmlinuz --timeout 4000 http://10.77.0.2:8091/artifacts/lab/vmlinuz?sha256=ab… quiet url=http://10.77.0.2:8091/x initrd=initrd.img && goto boot ||
goto failed
:boot
boot ||
:failed
imgfree
echo muster: m1 could not boot lab/vmlinuz
:wait
sleep 3 ||
"
    .to_owned()
        + AGAIN;
    check(&heading(Some("m1")), &task, &expected);
}

#[test]
fn local_needs_no_network() {
    check(
        &heading(Some("m1")),
        &Task::Local(LocalBoot::Auto),
        "\
#!ipxe
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
echo muster: m1 boots its local disk
iseq ${platform} efi && goto firmware ||
sanboot --no-describe --drive 0x80 ||
:firmware
exit 1
",
    );
}

#[test]
fn hold_says_what_to_do_and_asks_again() {
    let task = Task::Hold {
        lines: vec!["run this".to_owned(), "then that".to_owned()],
        wait_secs: 10,
    };
    let expected = "\
#!ipxe
# muster: revision 512, as this node knows it, by node a
# bootenv of machine `m1`: `lab`
echo muster: this machine waits. MAC 52:54:00:00:00:50, address 10.77.0.100, node a
echo muster: run this
echo muster: then that
:wait
sleep 10 ||
"
    .to_owned()
        + AGAIN;
    let heading = Heading {
        confirmed: false,
        ..heading(None)
    };
    check(&heading, &task, &expected);
}

#[test]
fn unidentified_client_is_asked_for_its_address() {
    let heading = Heading {
        mac: None,
        ..heading(None)
    };
    let script = text(&heading, &Task::Identify, &nodes());
    assert!(script.contains("\ngoto again\n"), "{script}");
    assert!(
        script.contains("http://10.77.0.2:8091/boot.ipxe?mac=${netX/mac} ||\n"),
        "{script}"
    );
}

#[test]
fn initrds_of_one_name_are_kept_apart() {
    let names =
        |paths: &[&str]| file_names(&paths.iter().map(|path| file(path)).collect::<Vec<_>>());
    assert_eq!(
        names(&["a/initrd.img", "firmware.cpio"]),
        ["initrd.img", "firmware.cpio"]
    );
    assert_eq!(names(&["a/initrd", "b/initrd"]), ["0-initrd", "1-initrd"]);
}

#[test]
fn own_initrd_argument_is_left_alone() {
    let task = Task::Kernel {
        kernel: file("vmlinuz"),
        initrds: vec![file("initrd.img")],
        args: vec!["initrd=initrd.img quiet".to_owned(); 2],
    };
    let script = text(&heading(None), &task, &nodes());
    assert!(
        script.contains("initrd=initrd.img quiet && goto boot ||\n"),
        "{script}"
    );
}

#[test]
fn texts_of_people_cannot_become_commands() {
    let evil = "a\n||\nexit ; && #b ${net0/mac} \\ \u{e9}";
    let task = Task::Hold {
        lines: vec![evil.to_owned()],
        wait_secs: HOLD_SECS,
    };
    let heading = Heading {
        rule: evil.to_owned(),
        ..heading(None)
    };
    let script = text(&heading, &task, &nodes());
    let plain = "a / exit / / b /{net0/mac} / ?";
    assert!(
        script.contains(&format!("\necho muster: {plain}\n")),
        "{script}"
    );
    assert!(script.contains(&format!("\n# {plain}\n")), "{script}");
}

#[test]
fn arguments_that_ipxe_would_act_upon_are_refused_on_screen() {
    for word in ["||", "&&", ";", "#rest"] {
        let task = Task::Kernel {
            kernel: file("vmlinuz"),
            initrds: Vec::new(),
            args: vec![format!("quiet {word} x"); 2],
        };
        let script = text(&heading(None), &task, &nodes());
        assert!(
            script.contains("kernel arguments have the word"),
            "{script}"
        );
        assert!(!script.contains("\nboot"), "{script}");
    }
}

#[test]
fn arguments_over_several_lines_become_one() {
    let task = Task::Kernel {
        kernel: file("vmlinuz"),
        initrds: Vec::new(),
        args: vec!["a=1\n  b=\"2 3\"\\\n".to_owned(); 2],
    };
    let script = text(&heading(None), &task, &nodes());
    assert!(
        script.contains(" a=1 b=\"2 3\"\\ && goto boot ||\n"),
        "{script}"
    );
}

#[test]
fn this_node_comes_first_and_the_others_differ_by_machine() {
    let all: Vec<NodeView> = ["c", "a", "b", "d", "e"]
        .map(|name| NodeView {
            name: name.to_owned(),
            address: IpAddr::from([10, 77, 0, 1]),
            boot_port: 8091,
        })
        .into();
    let second = |mac: u8| {
        let mut nodes = all.clone();
        order(&mut nodes, Some(Mac([mac; 6])));
        assert_eq!(nodes[0].name, "c");
        nodes[1].name.clone()
    };
    let mut seconds: Vec<String> = (0..64).map(second).collect();
    seconds.sort_unstable();
    seconds.dedup();
    assert_eq!(seconds, ["a", "b", "d", "e"]);
}

fn check_in(language: Language, heading: &Heading, task: &Task, expected: &str) {
    let digest = "ab".repeat(32);
    let text = render(language, heading, task, &nodes());
    assert_eq!(text.replace(&digest, "ab…"), expected);
}

fn lab() -> Task {
    Task::Kernel {
        kernel: file("lab/vmlinuz"),
        initrds: vec![file("lab/initrd.img"), file("firmware.cpio")],
        args: vec![
            "quiet  it's=\"two words\" node=a".to_owned(),
            "quiet  it's=\"two words\" node=b".to_owned(),
        ],
    }
}

#[test]
fn pxelinux_boots_and_reads_the_next_nodes_configuration_when_it_cannot() {
    check_in(
        Language::Pxelinux,
        &heading(Some("m1")),
        &lab(),
        "\
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
SAY muster: m1 boots lab/vmlinuz
DEFAULT boot
PROMPT 0
NOESCAPE 1
ONERROR again
LABEL boot
KERNEL 10.77.0.1::/artifacts/lab/vmlinuz?sha256=ab…
INITRD 10.77.0.1::/artifacts/lab/initrd.img?sha256=ab…,10.77.0.1::/artifacts/firmware.cpio?sha256=ab…
APPEND quiet it's=\"two words\" node=a
TIMEOUT 30
ONTIMEOUT again
LABEL again
CONFIG 10.77.0.2::bios/pxelinux.cfg/01-52-54-00-00-00-50
APPEND 10.77.0.2::bios/
",
    );
}

#[test]
fn pxelinux_holds() {
    let task = Task::Hold {
        lines: vec!["run this".to_owned()],
        wait_secs: 10,
    };
    check_in(
        Language::Pxelinux,
        &heading(None),
        &task,
        "\
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
SAY muster: this machine waits. MAC 52:54:00:00:00:50, address 10.77.0.100, node a
SAY muster: run this
PROMPT 1
TIMEOUT 100
ONTIMEOUT again
LABEL again
CONFIG 10.77.0.2::bios/pxelinux.cfg/01-52-54-00-00-00-50
APPEND 10.77.0.2::bios/
",
    );
}

#[test]
fn what_pxelinux_cannot_load_is_said_on_screen() {
    let with = |path: &str, args: &str| Task::Kernel {
        kernel: file(path),
        initrds: Vec::new(),
        args: vec![args.to_owned(); 2],
    };
    let long = "x".repeat(170);
    for (task, expected) in [
        (with(&long, ""), "pxelinux cannot load x"),
        (with("a,b", ""), "pxelinux cannot load a,b"),
        (
            with("vmlinuz", &"y".repeat(2000)),
            "have 2000 octets, and pxelinux takes 19",
        ),
    ] {
        let text = render(Language::Pxelinux, &heading(None), &task, &nodes());
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("PROMPT 1\n") && !text.contains("KERNEL"),
            "{text}"
        );
    }
}

#[test]
fn grub_tries_each_node_and_reads_the_script_again() {
    check_in(
        Language::Grub,
        &heading(Some("m1")),
        &lab(),
        r#"# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
set muster_read=yes
echo 'muster: m1 boots lab/vmlinuz'
if linux '(tftp,10.77.0.1)/artifacts/lab/vmlinuz?sha256=ab…' 'quiet' 'it'\''s=two words' 'node=a'; then
  if initrd '(tftp,10.77.0.1)/artifacts/lab/initrd.img?sha256=ab…' '(tftp,10.77.0.1)/artifacts/firmware.cpio?sha256=ab…'; then
    boot
  fi
fi
if linux '(tftp,10.77.0.2)/artifacts/lab/vmlinuz?sha256=ab…' 'quiet' 'it'\''s=two words' 'node=b'; then
  if initrd '(tftp,10.77.0.2)/artifacts/lab/initrd.img?sha256=ab…' '(tftp,10.77.0.2)/artifacts/firmware.cpio?sha256=ab…'; then
    boot
  fi
fi
echo 'muster: m1 could not boot lab/vmlinuz'
set muster_wait=3
if [ "$muster_loop" != yes ]; then
  set muster_loop=yes
  while true; do
    sleep $muster_wait
    set muster_read=no
    if [ "$muster_read" = no ]; then
      source "(tftp,10.77.0.1)/grub/grub.cfg-01-52-54-00-00-00-50"
    fi
    if [ "$muster_read" = no ]; then
      source "(tftp,10.77.0.2)/grub/grub.cfg-01-52-54-00-00-00-50"
    fi
  done
fi
"#,
    );
}

#[test]
fn grub_boots_the_disk_by_what_is_on_it() {
    let check = |how, expected: &str| {
        check_in(
            Language::Grub,
            &heading(Some("m1")),
            &Task::Local(how),
            expected,
        );
    };
    check(
        LocalBoot::Exit,
        "\
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
set muster_read=yes
echo 'muster: m1 boots its local disk'
exit
",
    );
    check(
        LocalBoot::Auto,
        r#"# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
set muster_read=yes
echo 'muster: m1 boots its local disk'
if [ "$grub_platform" = efi ]; then
  for file in debian/shimx64.efi ubuntu/shimx64.efi redhat/shimx64.efi fedora/shimx64.efi centos/shimx64.efi rocky/shimx64.efi almalinux/shimx64.efi sles/shim.efi opensuse/shim.efi debian/grubx64.efi Microsoft/Boot/bootmgfw.efi BOOT/BOOTX64.EFI BOOT/BOOTAA64.EFI; do
    if search --no-floppy --file --set=disk /EFI/$file; then
      chainloader ($disk)/EFI/$file
      boot
    fi
  done
else
  set root=hd0
  chainloader +1
  boot
fi
exit
"#,
    );
}

#[test]
fn texts_of_people_are_commands_in_no_language() {
    let evil = "a\n'; reboot; '\n\\' $x `y`\nLABEL z";
    let heading = Heading {
        machine: Some("m1".to_owned()),
        rule: evil.to_owned(),
        ..heading(None)
    };
    let hold = Task::Hold {
        lines: vec![evil.to_owned()],
        wait_secs: HOLD_SECS,
    };
    let kernel = Task::Kernel {
        kernel: file("it's/vmlinuz"),
        initrds: Vec::new(),
        args: vec![evil.to_owned(); 2],
    };
    for task in [hold, kernel] {
        let grub = render(Language::Grub, &heading, &task, &nodes());
        // Outside of single quotes there is nothing of it.
        let outside: String = grub
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| {
                line.replace(r"'\''", "")
                    .split('\'')
                    .step_by(2)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        for word in ["reboot", "$x", "`y`", "LABEL"] {
            assert!(!outside.contains(word), "{word}: {grub}");
        }
        let pxelinux = render(Language::Pxelinux, &heading, &task, &nodes());
        let labels = pxelinux.lines().filter(|line| line.starts_with("LABEL"));
        assert!(labels.clone().all(|label| label != "LABEL z"), "{pxelinux}");
    }
}

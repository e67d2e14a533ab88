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
        revision: Revision(512),
        confirmed: true,
    }
}

fn file(path: &str) -> File {
    File {
        path: path.to_owned(),
        sha256: Sha256([0xab; 32]),
    }
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
chain --replace --autofree --timeout 4000 http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
chain --replace --autofree --timeout 4000 http://10.77.0.2:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
echo muster: no node answers
ifconf -c dhcp ||
chain --replace --autofree --timeout 4000 ${filename} ||
goto wait
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
        &Task::Local,
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

//! Frozen samples of the stored form, one entry for each command. Released versions wrote and read
//! them: they never change.

#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use muster_storage::command::{Bind, Client, Founding, PutMode, Refounding, Traits};
use muster_storage::model::{
    Alert, Artifact, ArtifactSettings, Attempt, Bootenv, Class, Condition, InstallPhase, JoinToken,
    Loader, Loaders, LocalBoot, Machine, Member, Object, ObjectKind, Octets, Param, Platform,
    Profile, RenderedFile, Reservation, Sealed, SealedKey, Seen, Settings, Sha256, Status, Step,
    Subnet, Template, TextOctets, Token, Trouble, Verdict,
};
use muster_storage::{
    Actor, Command, Entry, Mac, NodeId, Proposal, Remember, RequestId, Revision, State, Timestamp,
    schema,
};
use serde_json::json;
use uuid::Uuid;

const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x50]);

const MACHINE: Uuid = Uuid::from_u128(0x11);

/// Revision of the second order to install the machine: its place among the samples.
fn order() -> Revision {
    Revision::new(29, 0)
}

fn order_install(attempts: Option<u32>) -> (&'static str, Command) {
    let command = Command::OrderInstall {
        machine: MACHINE,
        bootenv: "lab".into(),
        attempts,
    };
    ("order_install", command)
}

/// One of each.
fn steps() -> Vec<Step> {
    let address = [10, 77, 0, 50].into();
    let path = || "lab/vmlinuz".to_owned();
    vec![
        Step::Offered { address },
        Step::Bound { address },
        Step::Loader {
            name: "snponly.efi".into(),
        },
        Step::Script {
            boots: "hold".into(),
            revision: Revision(7),
            attempt: None,
        },
        Step::Kernel { path: path() },
        Step::Initrd { path: path() },
        Step::File { path: path() },
        Step::Reported,
        Step::Install {
            phase: InstallPhase::Cancelled,
            why: "admin cancelled it".into(),
        },
        Step::Stalled,
        Step::Script {
            boots: "lab".into(),
            revision: Revision(7),
            attempt: Some(1),
        },
    ]
}

fn member(name: &str, last: u8) -> Member {
    Member {
        id: NodeId(1),
        name: name.into(),
        address: [10, 77, 0, last].into(),
        peer_port: 8093,
        api_port: 8092,
        boot_port: 8091,
        version: "0.1.0".into(),
        min_schema: 1,
        max_schema: 1,
        key_hash: Sha256([last; 32]),
        identifiers: vec![[10, 77, 0, last].into()],
    }
}

fn client() -> Client {
    Client {
        mac: Some(MAC),
        client_id: Some(Octets(vec![1, 0x52, 0x54, 0, 0, 0, 0x50])),
        boots: true,
        link: vec![[10, 77, 0, 11].into()],
        requested: None,
        lease_secs: Some(600),
        hostname: Some("m1".into()),
        relay: Some(Octets(vec![1, 2, 0xaa, 0xbb])),
        traits: Traits {
            vendor_class: Some("PXEClient:Arch:00007:UNDI:003000".into()),
            user_classes: vec!["iPXE".into()],
            enterprises: vec![343],
            architectures: vec![7],
            uuid: Some(Uuid::from_u128(0x97)),
            giaddr: Some([10, 77, 0, 254].into()),
        },
    }
}

fn sealed_key(id: u32) -> SealedKey {
    SealedKey {
        id,
        key: Octets(vec![8, 9]),
    }
}

fn sealed() -> Sealed {
    Sealed {
        key: 1,
        octets: Octets(vec![1, 2, 3]),
    }
}

fn put(object: Object) -> Command {
    Command::Put {
        object,
        mode: PutMode::Apply,
    }
}

/// The secret of the profile, sealed by the next key.
fn reseal() -> Command {
    let sealed = Sealed { key: 2, ..sealed() };
    Command::Put {
        object: profile(sealed),
        mode: PutMode::Reseal,
    }
}

fn profile(password: Sealed) -> Object {
    Object::Profile(Profile {
        name: "default".into(),
        params: BTreeMap::from([("color".into(), json!("red"))]),
        loaders: loaders(&[(Platform::Bios, "pxelinux.0")]),
        local_boot: Some(LocalBoot::Refuse),
        sealed: BTreeMap::from([("password".into(), password)]),
    })
}

fn loaders(of: &[(Platform, &str)]) -> Loaders {
    let loader = |text: &str| Loader::try_from(text.to_owned()).expect("a literal");
    let of: BTreeMap<Platform, Loader> = of.iter().map(|(it, text)| (*it, loader(text))).collect();
    Loaders::try_from(of).expect("a literal")
}

fn objects() -> Vec<Object> {
    vec![
        Object::Settings(Settings::default()),
        Object::Param(Param {
            name: "color".into(),
            schema: Some(json!({"type": "string"})),
            default: Some(json!("green")),
            default_sealed: None,
            secure: false,
        }),
        Object::Param(Param {
            name: "password".into(),
            schema: None,
            default: None,
            default_sealed: Some(sealed()),
            secure: true,
        }),
        profile(sealed()),
        Object::Template(Template {
            name: "hello.cfg".into(),
            contents: "hello {{ machine.name }}\n".into(),
        }),
        Object::Artifact(Artifact {
            path: "lab/vmlinuz".into(),
            sha256: Sha256([7; 32]),
            size: 12_345,
        }),
        Object::Bootenv(Bootenv {
            name: "lab".into(),
            kernel: Some("lab/vmlinuz".into()),
            initrds: vec![],
            kernel_args: "console=ttyS0".into(),
            files: vec![RenderedFile {
                path: "hello.cfg".into(),
                template: "hello.cfg".into(),
            }],
            installs: true,
        }),
        Object::Machine(Machine {
            uuid: MACHINE,
            name: "m1".into(),
            macs: vec![MAC],
            bootenv: "lab".into(),
            profiles: vec!["default".into()],
            params: BTreeMap::from([("rack".into(), json!({"row": 3, "unit": [1, 2]}))]),
            sealed: BTreeMap::new(),
            options: BTreeMap::from([("12".into(), "m1.lab".into())]),
            loaders: loaders(&[(Platform::UefiX64, "boot/grubx64.efi")]),
            local_boot: Some(LocalBoot::Sanboot),
            labels: BTreeMap::new(),
        }),
        Object::Subnet(Box::new(Subnet {
            name: "lab".into(),
            cidr: "10.77.0.0/24".parse().expect("a literal"),
            pools: vec!["10.77.0.100-10.77.0.199".parse().expect("a literal")],
            routers: vec![[10, 77, 0, 1].into()],
            dns_servers: vec![],
            domain_name: Some("lab.example".into()),
            lease_secs: Some(3600),
            options: BTreeMap::from([("42".into(), "10.77.0.1".into())]),
            next_server: None,
            mode: Default::default(),
            matching: Default::default(),
            shared_network: Some("hall".into()),
            rapid_commit: false,
            foreign_servers: vec![[10, 77, 0, 9].into()],
            conflict_detection: Default::default(),
            classes: vec![Class {
                name: "uefi".into(),
                condition: Condition {
                    vendor_classes: vec!["PXEClient*".into()],
                    architectures: vec![7, 9],
                    circuit_ids: vec![TextOctets(b"Gi1/0/1".to_vec()), TextOctets(vec![0, 1])],
                    known: Some(true),
                    ..Condition::default()
                },
                pools: vec!["10.77.0.200-10.77.0.209".parse().expect("a literal")],
                lease_secs: Some(600),
                options: BTreeMap::from([("67".into(), "snponly.efi".into())]),
                next_server: Some([10, 77, 0, 9].into()),
            }],
            loaders: loaders(&[
                (Platform::HttpX64, "http://10.77.0.9/grubx64.efi"),
                (Platform::IpxeBios, "undionly.kpxe"),
            ]),
            router_advertisement: true,
        })),
        Object::Reservation(Reservation {
            address: [10, 77, 0, 50].into(),
            mac: Some(MAC),
            client_id: None,
            machine: None,
            uuid: None,
            circuit_id: None,
            remote_id: None,
        }),
        Object::Reservation(Reservation {
            address: [10, 77, 0, 51].into(),
            mac: None,
            client_id: None,
            machine: None,
            uuid: None,
            circuit_id: Some(TextOctets(b"Gi1/0/1".to_vec())),
            remote_id: Some(TextOctets(vec![0, 0xff])),
        }),
    ]
}

/// Name and command of each sample, in an order in which each is accepted.
fn samples() -> Vec<(&'static str, Command)> {
    let address = [10, 77, 0, 50].into();
    vec![
        (
            "found",
            Command::Found(Box::new(Founding {
                cluster_id: Uuid::from_u128(0xc1),
                ca_pem: "CA".into(),
                ca_key_sealed: Octets(vec![1, 2, 3]),
                keyring: vec![sealed_key(1)],
                admin_password_hash: "$argon2id$sample".into(),
                member: member("n1", 11),
            })),
        ),
        (
            "expect",
            Command::Expect {
                kind: ObjectKind::Machine,
                key: "none".into(),
                revision: Revision(0),
            },
        ),
        (
            "many",
            Command::Many(objects().into_iter().map(put).collect()),
        ),
        (
            "put",
            put(Object::Template(Template {
                name: "other".into(),
                contents: String::new(),
            })),
        ),
        (
            "delete",
            Command::Delete {
                kind: ObjectKind::Template,
                key: "other".into(),
            },
        ),
        (
            "bind",
            Command::Bind(Box::new(Bind {
                client: client(),
                address,
                node: NodeId(1),
            })),
        ),
        (
            "release",
            Command::Release {
                client: Box::new(client()),
                address,
                sent: None,
            },
        ),
        (
            "reclaim",
            Command::Reclaim {
                applied_by_all: Revision(u64::MAX),
            },
        ),
        (
            "bind",
            Command::Bind(Box::new(Bind {
                client: client(),
                address,
                node: NodeId(1),
            })),
        ),
        (
            "decline",
            Command::Decline {
                client: Box::new(client()),
                address,
            },
        ),
        (
            "quarantine",
            Command::Quarantine {
                client: Box::new(client()),
                address: [10, 77, 0, 101].into(),
                node: NodeId(1),
            },
        ),
        ("end_lease", Command::EndLease { address }),
        (
            "correct_time",
            Command::CorrectTime {
                to: Timestamp(1_900_000_000_000),
            },
        ),
        (
            "add_join_token",
            Command::AddJoinToken(JoinToken {
                hash: Sha256([9; 32]),
                expires_at: Timestamp(2_000_000_000_000),
            }),
        ),
        (
            "add_member",
            Command::AddMember {
                member: Box::new(member("n2", 12)),
                token: Some(Sha256([9; 32])),
            },
        ),
        (
            "update_member",
            Command::UpdateMember(Box::new(member("n1", 13))),
        ),
        ("remove_member", Command::RemoveMember { node: NodeId(1) }),
        ("revoke_join_tokens", Command::RevokeJoinTokens),
        (
            "add_token",
            Command::AddToken(Token {
                hash: Sha256([8; 32]),
                user: "admin".into(),
                expires_at: Timestamp(2_000_000_000_000),
            }),
        ),
        (
            "revoke_tokens",
            Command::RevokeTokens {
                user: "admin".into(),
            },
        ),
        (
            "alert",
            Command::Alert(Box::new(Alert {
                node: NodeId(1),
                trouble: Trouble::ForeignServer {
                    subnet: "lab".into(),
                    server: [10, 77, 0, 8].into(),
                    client: Some(MAC),
                },
            })),
        ),
        (
            "alert",
            Command::Alert(Box::new(Alert {
                node: NodeId(1),
                trouble: Trouble::AddressInUse {
                    subnet: "lab".into(),
                    address: [10, 77, 0, 9].into(),
                    by: Some(MAC),
                },
            })),
        ),
        (
            "alert",
            Command::Alert(Box::new(Alert {
                node: NodeId(1),
                trouble: Trouble::Minority {
                    since: Timestamp(1_900_000_000_000),
                    until: Timestamp(1_900_000_060_000),
                },
            })),
        ),
        (
            "report",
            Command::Report {
                machine: MACHINE,
                body: "up".into(),
                verdict: None,
                node: None,
            },
        ),
        (
            "lock_machine",
            Command::LockMachine {
                machine: MACHINE,
                reason: "holds the database".into(),
            },
        ),
        (
            "unlock_machine",
            Command::UnlockMachine { machine: MACHINE },
        ),
        order_install(Some(2)),
        (
            "cancel_install",
            Command::CancelInstall { machine: MACHINE },
        ),
        order_install(None),
        (
            "open_attempt",
            Command::OpenAttempt {
                machine: MACHINE,
                read: Attempt {
                    order: order(),
                    number: 0,
                },
                started: false,
                node: NodeId(1),
            },
        ),
        (
            "saw",
            Command::Saw {
                node: NodeId(1),
                seen: steps()
                    .into_iter()
                    .map(|step| Seen {
                        machine: MACHINE,
                        at: Timestamp(1_900_000_000_500),
                        step,
                    })
                    .collect(),
            },
        ),
        (
            "boot_stalled",
            Command::BootStalled {
                machine: MACHINE,
                node: NodeId(1),
            },
        ),
        (
            "report",
            Command::Report {
                machine: MACHINE,
                body: "installed".into(),
                verdict: Some(Verdict {
                    attempt: Attempt {
                        order: order(),
                        number: 1,
                    },
                    status: Status::Done,
                }),
                node: Some(NodeId(1)),
            },
        ),
        (
            "lock_machine",
            Command::LockMachine {
                machine: MACHINE,
                reason: String::new(),
            },
        ),
        (
            "alert",
            Command::Alert(Box::new(Alert {
                node: NodeId(1),
                trouble: Trouble::ArtifactDamaged {
                    sha256: Sha256([7; 32]),
                    problem: "it cannot be read".into(),
                },
            })),
        ),
        (
            "put",
            put(Object::Settings(Settings {
                artifacts: ArtifactSettings {
                    quota_bytes: Some(1 << 40),
                    grace_secs: 60,
                    ..ArtifactSettings::default()
                },
                ..Settings::default()
            })),
        ),
        ("expire", Command::Expire),
        ("add_key", Command::AddKey(sealed_key(2))),
        ("put", reseal()),
        ("drop_keys", Command::DropKeys { below: 1 }),
        ("raise_schema", Command::RaiseSchema { to: 1 }),
        (
            "refound",
            Command::Refound(Box::new(Refounding {
                cluster_id: Uuid::from_u128(0xc2),
                ca_key_sealed: Octets(vec![4, 5, 6]),
                keyring: vec![sealed_key(1)],
                member: member("n3", 14),
            })),
        ),
    ]
}

/// Fails to compile when a command is added, as a reminder to add its sample.
fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Found(_) => "found",
        Command::Refound(_) => "refound",
        Command::Put { .. } => "put",
        Command::Delete { .. } => "delete",
        Command::Expect { .. } => "expect",
        Command::Many(_) => "many",
        Command::Bind(_) => "bind",
        Command::Release { .. } => "release",
        Command::Decline { .. } => "decline",
        Command::Expire => "expire",
        Command::Reclaim { .. } => "reclaim",
        Command::CorrectTime { .. } => "correct_time",
        Command::Quarantine { .. } => "quarantine",
        Command::EndLease { .. } => "end_lease",
        Command::AddMember { .. } => "add_member",
        Command::UpdateMember(_) => "update_member",
        Command::RemoveMember { .. } => "remove_member",
        Command::RaiseSchema { .. } => "raise_schema",
        Command::AddJoinToken(_) => "add_join_token",
        Command::RevokeJoinTokens => "revoke_join_tokens",
        Command::AddToken(_) => "add_token",
        Command::RevokeTokens { .. } => "revoke_tokens",
        Command::AddKey(_) => "add_key",
        Command::DropKeys { .. } => "drop_keys",
        Command::Alert(_) => "alert",
        Command::Report { .. } => "report",
        Command::OrderInstall { .. } => "order_install",
        Command::OpenAttempt { .. } => "open_attempt",
        Command::CancelInstall { .. } => "cancel_install",
        Command::LockMachine { .. } => "lock_machine",
        Command::UnlockMachine { .. } => "unlock_machine",
        Command::Saw { .. } => "saw",
        // Of schema 2, and so are some shapes of the others: they have samples of their own.
        Command::LabelMachine { .. } => "label_machine",
        Command::BootStalled { .. } => "boot_stalled",
    }
}

const COMMANDS: usize = 33;

fn entries() -> Vec<(&'static str, Entry)> {
    samples()
        .into_iter()
        .zip(1u64..)
        .map(|((name, command), number)| {
            assert_eq!(name, name_of(&command));
            let proposal = Proposal {
                request: RequestId(Uuid::from_u128(u128::from(number))),
                actor: Actor("admin".into()),
                if_match: None,
                remember: remember(name),
                command,
            };
            let entry = Entry {
                at: Timestamp(1_800_000_000_000 + number * 1000),
                proposals: vec![proposal],
            };
            (name, entry)
        })
        .collect()
}

/// One sample of each way to be remembered.
fn remember(name: &str) -> Option<Remember> {
    match name {
        "add_join_token" => Some(Remember::Retry { since: Revision(0) }),
        "delete" => Some(Remember::Key {
            asked: Sha256([9; 32]),
        }),
        _ => None,
    }
}

fn frozen(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    std::fs::read_to_string(&path).expect("read the sample")
}

#[test]
fn every_command_has_a_frozen_entry() {
    let mut now = String::new();
    for (name, entry) in entries() {
        let bytes = schema::encode_entry(&entry).expect("encode");
        writeln!(now, "{name} {}", hex::encode(bytes)).expect("write to a string");
    }
    let names: BTreeSet<&str> = samples().iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), COMMANDS, "a command has no sample");

    let frozen = frozen("schema-1-entries.txt");
    assert_eq!(frozen, now, "the stored form of entries changed");
    for (line, (_, entry)) in frozen.lines().zip(entries()) {
        let bytes = hex::decode(line.split(' ').nth(1).expect("two words")).expect("hex");
        assert_eq!(schema::decode_entry(&bytes).expect("decode"), entry);
    }
}

#[test]
fn what_schema_2_has_more_has_frozen_entries() {
    let machine = json!({
        "uuid": MACHINE, "name": "m1", "macs": ["52:54:00:00:00:50"], "labels": {"rack": "r12"},
    });
    let put = Command::Put {
        object: Object::Machine(serde_json::from_value(machine).expect("a machine")),
        mode: PutMode::Apply,
    };
    let label = Command::LabelMachine {
        machine: MACHINE,
        set: BTreeMap::from([("u".to_owned(), "7".to_owned())]),
        remove: BTreeSet::from(["rack".to_owned()]),
    };
    let release = Command::Release {
        client: Box::new(client()),
        address: [10, 77, 0, 100].into(),
        sent: Some(Timestamp(1_800_000_000_000)),
    };
    let samples = [put, label, release].map(|command| {
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("test".into()),
            if_match: None,
            remember: None,
            command,
        };
        let entry = Entry {
            at: Timestamp(1_800_000_000_000),
            proposals: vec![proposal],
        };
        (
            hex::encode(schema::encode_entry(&entry).expect("encode")),
            entry,
        )
    });
    let now: Vec<&str> = samples.iter().map(|(bytes, _)| &**bytes).collect();
    let frozen = frozen("schema-2-entries.txt");
    let frozen: Vec<&str> = frozen.lines().collect();
    assert_eq!(frozen, now, "the stored form of entries changed");
    for (line, (_, entry)) in frozen.iter().zip(&samples) {
        let bytes = hex::decode(line).expect("hex");
        assert_eq!(schema::decode_entry(&bytes).expect("decode"), *entry);
    }
}

#[test]
fn the_samples_apply_to_frozen_rows() {
    let mut state = State::default();
    let mut disk: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for ((name, entry), index) in entries().into_iter().zip(1u64..) {
        for (outcome, _) in state.apply(Revision::new(index, 0), &entry) {
            outcome
                .result
                .unwrap_or_else(|why| panic!("{name} was refused: {why}"));
        }
        for write in state.take_rows().expect("rows") {
            match write.value {
                Some(value) => disk.insert(write.key, value),
                None => disk.remove(&write.key),
            };
        }
    }
    let mut now = String::new();
    for (key, value) in &disk {
        writeln!(now, "{} {}", hex::encode(key), hex::encode(value)).expect("write to a string");
    }
    writeln!(now, "digest {}", state.digest()).expect("write to a string");
    assert_eq!(frozen("schema-1-rows.txt"), now, "the stored rows changed");

    let whole: BTreeMap<_, _> = state
        .rows()
        .expect("rows")
        .into_iter()
        .filter_map(|write| Some((write.key, write.value?)))
        .collect();
    assert_eq!(whole, disk, "what is on disk is what is in memory");
    let loaded = State::load(disk).expect("load");
    assert_eq!(loaded.digest(), state.digest());
    assert_eq!(loaded.rows().expect("rows"), state.rows().expect("rows"));
}

#[test]
fn newer_and_damaged_bytes_are_refused() {
    let (_, entry) = entries().remove(0);
    let good = schema::encode_entry(&entry).expect("encode");
    let newer = [&[0, 99], &good[2..]].concat();
    let error = schema::decode_entry(&newer).expect_err("newer");
    assert!(
        error.to_string().contains("start a newer muster"),
        "{error}"
    );
    for cut in [0, 1, 2, 3, good.len() / 2, good.len() - 1] {
        schema::decode_entry(&good[..cut]).expect_err("cut short");
    }
}

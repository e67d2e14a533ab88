//! What the lab's machines boot: the objects that the demo creates one by one and tests all at once.

use std::path::Path;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::payload::{Installer, Payload};

/// Where the kernel is kept.
pub const KERNEL: &str = "lab/vmlinuz";
/// Where the initrd is kept.
pub const INITRD: &str = "lab/initrd.img";

/// The lab's network with a pool of a hundred.
pub const SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/24
pools: [10.77.0.100-10.77.0.199]
routers: [10.77.0.1]
lease_secs: 3600
";

/// The lab's network, with a pool of tens of thousands.
pub const WIDE_SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.4.0-10.77.255.200]
routers: [10.77.0.1]
lease_secs: 3600
";

/// The file that the payload shows on its serial port, after `MUSTER-PAYLOAD`.
pub const TEMPLATE: &str = r#"kind: template
name: hello.cfg
contents: "hello {{ machine.name }} from {{ node.name }} param {{ params.color }}\n"
"#;

/// The payload's kernel and initrd, told where to call back and whom else to ask.
pub const BOOTENV: &str = r#"kind: bootenv
name: lab
kernel: lab/vmlinuz
initrds: [lab/initrd.img]
kernel_args: 'console=ttyS0 lab.report={{ machine.url }}/report lab.urls={{ machine.urls | join(sep=",") }}'
files: [{path: hello.cfg, template: hello.cfg}]
"#;

/// A machine that boots [`BOOTENV`].
pub fn machine(name: &str, mac: &str, color: &str) -> String {
    format!(
        "kind: machine\nname: {name}\nmacs: [\"{mac}\"]\nbootenv: lab\nparams: {{color: {color}}}\n"
    )
}

/// Uploads the payload and creates all of the above, with these machines as (name, MAC, color).
pub fn install(cluster: &Cluster, machines: &[(&str, &str, &str)]) -> Result<()> {
    let payload = Payload::assemble()?;
    upload(cluster, &payload.kernel(), KERNEL)?;
    upload(cluster, &payload.initrd(), INITRD)?;
    let mut documents = vec![SUBNET.to_owned(), TEMPLATE.to_owned(), BOOTENV.to_owned()];
    documents.extend(
        machines
            .iter()
            .map(|(name, mac, color)| machine(name, mac, color)),
    );
    cluster.apply(&documents.join("---\n"))
}

fn upload(cluster: &Cluster, file: &Path, path: &str) -> Result<()> {
    let file = file.display().to_string();
    let call = ["artifacts", "upload", &file, "--path", path];
    cluster.cli(&call)?.ok().map(drop)
}

/// Uploads the installer and an image, and creates the bootenv `install`, which writes the image and
/// these rendered files to `/dev/vda`: (path, contents).
pub fn installer(cluster: &Cluster, image: &Path, files: &[(&str, &str)]) -> Result<()> {
    let installer = Installer::assemble()?;
    upload(cluster, &installer.kernel(), "installer/vmlinuz")?;
    upload(cluster, &installer.initrd(), "installer/initrd.img")?;
    upload(cluster, image, "images/disk.img.gz")?;
    let mut documents = vec![SUBNET.to_owned()];
    let (mut paths, mut entries) = (Vec::new(), Vec::new());
    for (path, contents) in files {
        let template = path.replace('/', "-");
        // A JSON string is a YAML string.
        let contents = serde_json::to_string(contents)?;
        documents.push(format!(
            "kind: template\nname: {template}\ncontents: {contents}\n"
        ));
        entries.push(format!("{{path: {path}, template: {template}}}"));
        paths.push(*path);
    }
    documents.push(format!(
        "kind: bootenv\nname: install\nkernel: installer/vmlinuz\ninitrds: [installer/initrd.img]\n\
         kernel_args: 'console=ttyS0 quiet muster.image=images/disk.img.gz \
         muster.urls={{{{ machine.urls | join(sep=\",\") }}}} muster.token={{{{ machine.token }}}} \
         muster.files={}'\nfiles: [{}]\ninstalls: true\n",
        paths.join(","),
        entries.join(", ")
    ));
    cluster.apply(&documents.join("---\n"))
}

//! Compiles the two protocols that the benchmark speaks, its clients only.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (file, dir) in [
        ("proto/etcd.proto", "proto"),
        ("../raft/proto/peer.proto", "../raft/proto"),
    ] {
        println!("cargo::rerun-if-changed={file}");
        tonic_prost_build::configure()
            .build_server(false)
            .bytes(".")
            .emit_rerun_if_changed(false)
            .compile_fds(protox::compile([file], [dir])?)?;
    }
    Ok(())
}

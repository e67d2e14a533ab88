//! Compiles the peer protocol with a protobuf compiler written in Rust, so that none need be
//! installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/peer.proto");
    let files = protox::compile(["proto/peer.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".muster.peer.v1")
        .emit_rerun_if_changed(false)
        .compile_fds(files)?;
    Ok(())
}

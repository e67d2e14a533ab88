//! The `muster` program.

use std::process::ExitCode;

use clap::Parser as _;
use muster_node::cli;
use muster_node::config::{Cli, Command};
use muster_node::serve;

/// A write is many small allocations, freed on other threads: with the C library's, a leader under
/// load spends a fifth of its time on them (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One provider for TLS in the whole program; an error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Cli::parse();
    let code = match arguments.command {
        Command::Serve(options) => serve::main(&arguments.connection.data_dir, &options),
        command => cli::main(&arguments.connection, command),
    };
    ExitCode::from(code)
}

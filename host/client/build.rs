//! Compiles the node's client protocol, the same file that the node is built from.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../proto/client.proto");
    let descriptors = protox::compile(["client.proto"], ["../proto"])?;
    tonic_prost_build::configure().bytes(".").build_server(false).compile_fds(descriptors)?;
    Ok(())
}

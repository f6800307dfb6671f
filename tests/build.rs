//! Compiles the protocols that only `bench` speaks. That of the nodes comes with their client.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let protos = || tonic_prost_build::configure().bytes(".");
    let etcd = protox::compile(["etcd.proto"], ["proto"])?;
    protos().build_server(false).compile_fds(etcd)?;
    let echo = protox::compile(["echo.proto"], ["proto"])?;
    protos().compile_fds(echo)?;
    Ok(())
}

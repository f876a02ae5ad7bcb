//! Makes Rust of `proto/`: messages, and stubs of clients and servers. The compiler of protobuf is a
//! crate, so no `protoc` has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 4] = [
    "proto/flow/flow.proto",
    "proto/observer/observer.proto",
    "proto/peer/peer.proto",
    "proto/relay/relay.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("hubble.bin");
    std::fs::write(descriptors, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // A fraction of all responses are flows, and a flow is large; boxing one costs an allocation
        // for each.
        .type_attribute(
            ".observer.GetFlowsResponse.response_types",
            "#[allow(clippy::large_enum_variant, reason = \"nearly every response is a flow\")]",
        )
        .type_attribute(
            ".observer.ExportEvent.response_types",
            "#[allow(clippy::large_enum_variant, reason = \"nearly every event is a flow\")]",
        )
        .compile_fds(files)?;
    Ok(())
}

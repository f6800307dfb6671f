//! `cargo xtask protos`: generates the wire types from the protos, without protoc.
//!
//! The generated code is kept with the sources, so that a build of the product needs neither the
//! generator nor its dependencies. A test fails if a proto has changed and this was not run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use prost::Message as _;
use tonic_prost_build::Builder;

/// One run of the generator.
struct Generation {
    /// The folder of the protos, relative to the checkout's root.
    protos: &'static str,
    files: &'static [&'static str],
    /// The folder for the code, also relative to the root.
    into: &'static str,
    configure: fn(Builder) -> Builder,
    /// The file for the descriptors, if a reflection service shows them.
    descriptors: Option<&'static str>,
}

const GENERATIONS: [Generation; 4] = [
    Generation {
        protos: "host/proto",
        files: &["client.proto", "peer.proto"],
        into: "host/src/rpc/generated",
        // A node uses the types of the client library when it speaks to clients.
        configure: |builder| {
            builder
                .codec_path("crate::rpc::codec::BoundedCodec")
                .extern_path(".lockstep.v1", "::lockstep_client::v1")
        },
        descriptors: Some("descriptors.bin"),
    },
    Generation {
        protos: "host/proto",
        files: &["client.proto"],
        into: "host/client/src/generated",
        configure: |builder| builder.build_server(false),
        descriptors: None,
    },
    Generation {
        protos: "tests/proto",
        files: &["etcd.proto"],
        into: "tests/src/bench/generated",
        configure: |builder| builder.build_server(false),
        descriptors: None,
    },
    Generation {
        protos: "tests/proto",
        files: &["echo.proto"],
        into: "tests/src/bench/generated",
        configure: |builder| builder,
        descriptors: None,
    },
];

fn main() -> Result<()> {
    for (path, content) in generate(&root())? {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("{}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All generated files, with their contents.
fn generate(root: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut generated = Vec::new();
    for generation in &GENERATIONS {
        let Generation { protos, files, into, configure, descriptors } = generation;
        let set = protox::compile(*files, [root.join(protos)])?;
        if let Some(name) = descriptors {
            generated.push((root.join(into).join(name), set.encode_to_vec()));
        }
        let out = tempfile::tempdir()?;
        let builder = tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false);
        configure(builder).out_dir(out.path()).compile_fds(set)?;
        for entry in std::fs::read_dir(out.path())? {
            let entry = entry?;
            let path = root.join(into).join(entry.file_name());
            generated.push((path, std::fs::read(entry.path())?));
        }
    }
    generated.sort();
    Ok(generated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_the_protos_say() {
        for (path, content) in generate(&root()).expect("the protos are valid") {
            let kept = std::fs::read(&path).unwrap_or_default();
            assert!(kept == content, "{} is out of date: run `cargo xtask protos`", path.display());
        }
    }
}

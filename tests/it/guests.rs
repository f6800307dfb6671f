//! Components that are refused, guests that misbehave, and guests that must be deterministic.
//!
//! Components that do not even link are written as text, in `tests/guests/*.wat`. At run time the
//! guest `tests/guests/hostile` misbehaves as its configuration, commands and queries tell it to.

mod contract;
mod copies;
mod faults;
mod host_calls;
mod limits;
pub(crate) mod refusals;

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::GuestFault;
use lockstep_host::guest::component::{ComponentGuest, ComponentModule};
use lockstep_host::guest::{Context, Guest as _, GuestLog, GuestModule as _, SnapshotHeader};

/// The component of a guest that `cargo xtask guests` built.
fn built(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/guests")
        .join(name)
        .with_extension("wasm");
    std::fs::read(&file).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo xtask guests` first", file.display())
    })
}

fn load(name: &str) -> ComponentModule {
    ComponentModule::load(&built(name)).unwrap_or_else(|refusal| panic!("{name}: {refusal}"))
}

/// The guest that misbehaves, compiled once.
fn hostile() -> &'static ComponentModule {
    static MODULE: OnceLock<ComponentModule> = OnceLock::new();
    MODULE.get_or_init(|| load("hostile"))
}

/// A bootstrap record with small limits, so that endless work ends soon: 64 MiB, and fuel for a few
/// milliseconds.
fn bootstrap(module: &ComponentModule, config: &str) -> Bootstrap {
    Bootstrap {
        module: module.id(),
        config: Bytes::copy_from_slice(config.as_bytes()),
        seed: [1; 16],
        profile: Profile {
            fuel_entry: 5_000_000,
            fuel_command: 1_000_000,
            memory_bytes: 64 << 20,
            ..Profile::default()
        },
        initial_voters: Vec::new(),
    }
}

/// A guest under the limits of `bootstrap`, if they allow one.
fn made(module: &ComponentModule, bootstrap: &Bootstrap) -> Result<ComponentGuest, GuestFault> {
    module.instantiate_component(bootstrap, &GuestLog::of_no_group())
}

/// A guest under small limits, neither initialised nor restored.
fn fresh(module: &ComponentModule) -> ComponentGuest {
    made(module, &bootstrap(module, "")).expect("the limits allow an empty guest")
}

/// A bootstrap record with the limits that a group has by default.
fn ample_bootstrap(module: &ComponentModule) -> Bootstrap {
    Bootstrap { profile: Profile::default(), ..bootstrap(module, "") }
}

/// A guest under the default limits, neither initialised nor restored.
fn unused(module: &ComponentModule) -> ComponentGuest {
    made(module, &ample_bootstrap(module)).expect("the limits allow an empty guest")
}

/// A guest under the default limits, initialised without a configuration.
fn ample(module: &ComponentModule) -> ComponentGuest {
    let mut guest = unused(module);
    guest.init(at(1), b"").expect("an empty configuration is valid");
    guest
}

/// A guest under small limits, initialised without a configuration.
fn started(module: &ComponentModule) -> ComponentGuest {
    let mut guest = fresh(module);
    guest.init(at(1), b"").expect("an empty configuration is valid");
    guest
}

fn at(index: u64) -> Context {
    Context { index, time_ms: 1_700_000_000_000 + index, seed: (index, !index) }
}

fn commands(texts: &[&str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect()
}

fn header(module: &ComponentModule, index: u64) -> SnapshotHeader {
    let info = module.info();
    SnapshotHeader {
        writer_name: info.name.clone(),
        writer_version: info.version.clone(),
        format: info.snapshot_format,
        index,
        time_ms: 1_700_000_000_000 + index,
    }
}

/// A disk with this many bytes of free space.
struct Disk(usize);

impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn snapshot(guest: &mut ComponentGuest) -> Vec<u8> {
    let mut bytes = Vec::new();
    guest.snapshot(&mut bytes).expect("no fault").expect("a vector takes everything");
    bytes
}

//! Every message with which a component is refused.

use std::path::Path;

use lockstep_core::limits;
use lockstep_host::guest::check::{ModuleRefusal, Report};
use lockstep_host::guest::component::ComponentModule;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The text of a component in `tests/guests`.
pub(crate) fn text(name: &str) -> String {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name).with_extension("wat");
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn check(bytes: &[u8]) -> Result<Report, ModuleRefusal> {
    ComponentModule::load(bytes).map(|module| module.report().clone())
}

fn refuse(bytes: &[u8], expect: &str) {
    let sentence = match check(bytes) {
        Ok(report) => panic!("accepted, not refused with {expect:?}: {report}"),
        Err(refusal) => refusal.to_string(),
    };
    assert!(sentence.contains(expect), "{sentence}\nlacks {expect:?}");
}

fn refuse_text(name: &str, expect: &str) {
    let bytes = wat::parse_str(text(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    refuse(&bytes, expect);
}

/// A component of the right shape, with this memory and this body of `describe`.
fn shell(memory: &str, describe: &str) -> Vec<u8> {
    component(text("shell").replace("$MEMORY", memory).replace("$DESCRIBE", describe))
}

/// Encodes the text of a core module as a component of the world `fsm`.
pub(crate) fn component(text: String) -> Vec<u8> {
    let mut module = wat::parse_str(text).expect("the text is a module");
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let (package, _) = resolve.push_dir(wit).expect("wit/fsm.wit is valid");
    let world = resolve.select_world(&[package], Some("fsm")).expect("it has the world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("the module takes a section");
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.validate(true).encode())
        .expect("the module has the world's shape")
}

/// The message with which a [`shell`] is refused.
pub(crate) fn shell_refused(memory: &str, describe: &str) -> String {
    check(&shell(memory, describe)).expect_err("it does not describe itself").to_string()
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    refuse(b"", "the file is empty");
    refuse(b"PK\x03\x04", "does not begin as a .wasm file does");
    refuse(text("wasi").as_bytes(), "WebAssembly in text form");
    refuse(&vec![0; limits::MODULE_BYTES_MAX + 1], "the limit is 67108864");
    refuse_text("core-module", "core module, not a component: build it with `lockstep build`");

    let whole = super::built("counter");
    refuse(&whole[..whole.len() / 2], "check that the file is whole");
}

#[test]
fn foreign_names_are_refused_by_name() {
    refuse_text("wasi", "imports WASI (wasi:cli/environment@0.2.3, wasi:clocks/wall-clock@0.2.3");
    refuse_text("wasi", "and 1 more)");
    refuse_text("foreign-import", "imports acme:store/blobs@1.2.0, which no host provides");
    refuse_text(
        "missing-export",
        "(it exports run): in Rust, is `lockstep_guest::export!` missing?",
    );
    refuse_text("wrong-version", "has lockstep:fsm/state-machine@0.3.0, this host supports");
}

#[test]
fn wrong_types_are_refused_by_function() {
    refuse_text("no-functions", "does not match it");
    refuse_text("no-functions", "`describe`");
    refuse_text("wrong-types", "does not match it");
    refuse_text("wrong-import-type", "does not match it: component imports instance");
}

#[test]
fn what_differs_between_machines_is_not_valid() {
    refuse_text("relaxed-simd", "uses relaxed SIMD (the instruction `f32x4.relaxed_madd`");
    refuse_text("relaxed-simd", "core module 0, function 0, byte 0x");
    refuse_text("relaxed-simd", "rustc: `-C target-feature=-relaxed-simd`");
    refuse_text("memory64", "uses 64-bit memory");
}

#[test]
fn a_module_that_cannot_describe_itself_is_refused() {
    refuse(&shell("1", "unreachable"), "trap in describe: the guest aborted");
    refuse(&shell("1", "loop br 0 end unreachable"), "out of fuel in describe");
    refuse(&shell("1", "call $describe i32.const 1 i32.add"), "stack overflow in describe");
    refuse(&shell("1", "i32.const -4"), "trap in describe");
    refuse(&shell("20000", "unreachable"), "out of memory in instantiate");
    refuse(&shell("1", "i32.const 0"), "the answer of `describe` is invalid: its name must have");
}

/// A component may export more than the world asks for.
#[test]
fn the_examples_are_accepted_and_reported() {
    for name in ["counter", "kv", "bank", "hostile"] {
        let report =
            check(&super::built(name)).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(report.info.name, name);
        assert_eq!(report.names.world_version, "0.2.0");
        let text = report.to_string();
        assert!(text.contains(&report.id.to_string()), "{text}");
    }
}

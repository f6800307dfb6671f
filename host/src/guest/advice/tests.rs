//! Each class of what is refused, and what is said of it.

use super::core_module::BuiltFor;
use super::wasi::Origin;
use super::*;
use crate::guest::engine;

/// A component of one core module, and a second one that is in order.
fn component(module: &str) -> Vec<u8> {
    let text = format!("(component (core module) (core module {module}))");
    wat::parse_str(text).unwrap_or_else(|error| panic!("{module}: {error}"))
}

/// The engine accepts or refuses a component as the validator here does; what is said of it
/// contains all parts.
fn check(component: &[u8], parts: &[&str]) {
    let engine = engine::shared().expect("the engine starts");
    let refused = wasmtime::component::Component::new(engine, component).is_err();
    let said = match advise(component) {
        Advice::Missing(missing) => missing.to_string(),
        Advice::Broken { message, place } => format!("{message} ({place})"),
        Advice::Unknown => String::new(),
    };
    assert_eq!(refused, !said.is_empty(), "the engine judges otherwise: {said}");
    assert_eq!(refused, !parts.is_empty(), "{said}");
    for part in parts {
        assert!(said.contains(part), "{said}\nlacks {part:?}");
    }
}

fn check_module(module: &str, parts: &[&str]) {
    check(&component(module), parts);
}

#[test]
fn instructions_are_named_with_their_place() {
    check_module(
        "(func $first) (func $mad (param v128) (result v128)
            local.get 0 local.get 0 local.get 0 f32x4.relaxed_madd)",
        &[
            "uses relaxed SIMD (the instruction `f32x4.relaxed_madd`; core module 1, function 1 \
             `mad`, byte 0x",
            "differ between processors",
            "rustc: `-C target-feature=-relaxed-simd`; clang: `-mno-relaxed-simd`",
        ],
    );
    check_module(
        "(memory 1) (func (drop (i32.atomic.rmw8.add_u (i32.const 0) (i32.const 1))))",
        &["uses threads (the instruction `i32.atomic.rmw8.add_u`", "function 0, byte", "-pthread"],
    );
    check_module(
        "(import \"a\" \"b\" (func)) (func $f) (func $g (return_call $f))",
        &["tail calls (the instruction `return_call`", "function 2 `g`", "-mno-tail-call"],
    );
    check_module(
        "(func (result i64 i64) i64.const 1 i64.const 2 i64.const 3 i64.const 4 i64.add128)",
        &["wide arithmetic (the instruction `i64.add128`", "-wide-arithmetic"],
    );
    check_module(
        "(type $s (struct (field i32))) (func (drop (struct.new_default $s)))",
        &["garbage collection", "core module 1, byte", "-C target-feature=-gc"],
    );
    check_module("(func (drop (ref.i31 (i32.const 1))))", &["garbage collection", "`ref.i31`"]);
    check_module(
        "(memory 1) (func (memory.discard (i32.const 0) (i32.const 0)))",
        &["a proposal that is not settled (the instruction `memory.discard`"],
    );
}

#[test]
fn other_parts_are_named_with_their_place() {
    check_module(
        "(memory 1 2 shared)",
        &["uses threads (", "core module 1, byte", "no `-sSHARED_MEMORY`"],
    );
    check_module("(memory i64 1)", &["64-bit memory", "`--target=wasm32`", "no `-sMEMORY64`"]);
    check_module("(table i64 1 funcref)", &["64-bit memory or tables ("]);
    check_module("(memory 1 (pagesize 1))", &["memory pages of another size", "--page-size"]);
    check_module("(tag)", &["exceptions (", "`-fno-exceptions`"]);
    check_module("(func (throw_ref (ref.null exn)))", &["exceptions (", "`-C panic=abort`"]);
    check_module("(func try catch_all end)", &["exceptions (the instruction `try`"]);
    check_module("(func (param externref))", &["garbage collection ("]);
    check_module(
        "(type $f (func)) (type $c (cont $f)) (func (param (ref $c)))",
        &["stack switching (", "core module 1"],
    );
}

/// Two features at one place: the first that is missing is named.
#[test]
fn a_shared_64_bit_memory_is_explained() {
    check_module("(memory i64 1 2 shared)", &["uses threads ("]);
}

#[test]
fn parts_of_components_are_named() {
    let parse = |text: &str| wat::parse_str(text).expect("it is well formed");
    check(
        &parse("(component (type (future u8)))"),
        &["async functions", "(", "byte", "--backend-qjs-disable-async"],
    );
    check(
        &parse("(component (type (list u8 4)))"),
        &["a part of the component model that is not settled"],
    );
}

#[test]
fn what_is_on_is_not_refused() {
    check_module("(memory 1) (memory 1)", &[]);
    check_module("(func (result i32 i32) i32.const 1 i32.const 2)", &[]);
    check_module("(func (param v128) (result v128) (i32x4.add (local.get 0) (local.get 0)))", &[]);
    check_module("(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1)))", &[]);
    check_module("(func (param f32) (result i32) (i32.trunc_sat_f32_s (local.get 0)))", &[]);
    check_module("(table 1 funcref) (func (drop (table.get (i32.const 0))))", &[]);
    check_module("(global i32 (i32.add (i32.const 1) (i32.const 2)))", &[]);
    check_module("(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))", &[]);
}

/// What breaks the rules of WebAssembly is told with its place.
#[test]
fn what_is_not_valid_anywhere_is_told() {
    check_module(
        "(func $f (drop (i32.add (i64.const 1) (i32.const 1))))",
        &["type mismatch", "core module 1, function 0 `f`, byte 0x"],
    );
    let whole = component("(func)");
    check(&whole[..whole.len() - 3], &["unexpected end", "byte 0x"]);
}

/// A section in which a toolchain names itself.
fn built_by(language: &str) -> String {
    format!("(@producers (processed-by \"{language}\" \"1.0\"))")
}

#[test]
fn only_the_toolchain_that_built_it_is_advised() {
    let module = format!("(memory i64 1) {}", built_by("rustc"));
    let bytes = component(&module);
    let said = match advise(&bytes) {
        Advice::Missing(missing) => missing.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(
        said.ends_with(
            "Build without it: rustc: `--target wasm32-unknown-unknown` instead of wasm64"
        ),
        "{said}"
    );
}

#[test]
fn wasi_is_explained_by_its_caller_and_its_toolchain() {
    let wasi =
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $r (param i32 i32) (result i32)))
        (func $caller (call $f))
        (func $f (call $wasi_binding))
        (func $wasi_binding (drop (call $r (i32.const 0) (i32.const 8))))";
    let said = |built_by: &str| Origin::of(&component(&format!("{wasi} {built_by}"))).to_string();
    let all = said("");
    for part in [
        "`f` calls wasi_snapshot_preview1.random_get. Build without it: rustc: std for",
        "build for wasm32-unknown-unknown",
        "--stub-wasi",
        "--backend-qjs-stub-wasi",
        "-target=wasm-unknown",
        ".NET",
    ] {
        assert!(all.contains(part), "{all}\nlacks {part:?}");
    }
    let python = said(&built_by("componentize-py"));
    assert!(python.contains("--stub-wasi") && !python.contains("rustc"), "{python}");
}

#[test]
fn core_modules_are_told_by_their_imports() {
    let check = |text: &str, part: &str| {
        let module = wat::parse_str(format!("(module {text})")).expect("it is well formed");
        let said = BuiltFor::of(&module).to_string();
        assert!(said.contains(part), "{said}\nlacks {part:?}");
    };
    check("", "wasm-tools component new");
    check("(import \"wasi_snapshot_preview1\" \"fd_write\" (func))", "imports WASI (preview 1)");
    check(
        "(import \"__wbindgen_placeholder__\" \"__wbindgen_throw\" (func))",
        "built by wasm-bindgen",
    );
    check("(import \"env\" \"__wbindgen_describe\" (func))", "wasm-bindgen");
    check("(import \"gojs\" \"runtime.wasmExit\" (func))", "`GOOS=js`");
    let four = ["a", "b", "c", "d"].map(|name| format!("(import \"env\" \"{name}\" (func))"));
    check(&four.concat(), "from `env` (a, b, c and 1 more), which no node provides");
}

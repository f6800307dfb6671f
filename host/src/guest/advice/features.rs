//! The features of WebAssembly that are off, why, and what brings them into a component.

use wasmparser::WasmFeatures;

use super::built_with::BuiltWith::{Clang, Emscripten, Go, Js, Managed, Python, Rust, TinyGo, Zig};
use super::built_with::{Way, way};

/// The features that the engine has, see `engine::proposals`.
pub(super) const OURS: WasmFeatures = WasmFeatures::WASM3
    .union(WasmFeatures::COMPONENT_MODEL)
    .difference(WasmFeatures::THREADS)
    .difference(WasmFeatures::RELAXED_SIMD)
    .difference(WasmFeatures::MEMORY64)
    .difference(WasmFeatures::TAIL_CALL)
    .difference(WasmFeatures::EXCEPTIONS)
    .difference(WasmFeatures::GC)
    .difference(WasmFeatures::GC_TYPES);

/// A feature, or several that no toolchain tells apart.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) features: WasmFeatures,
    pub(super) why: &'static str,
    pub(super) ways: &'static [Way],
}

/// All of them. A feature stands before those that it needs, so the first that is missing is the
/// one to name.
pub(super) const CLASSES: [Class; 12] = [
    Class {
        name: "threads",
        features: WasmFeatures::THREADS.union(WasmFeatures::SHARED_EVERYTHING_THREADS),
        why: "threads that share memory race, and end differently on every replica",
        ways: &[
            way(
                Rust,
                "`-C target-feature=-atomics`, no `-C target-cpu=bleeding-edge`, a target that is \
                 not wasm32-wasip1-threads",
            ),
            way(Clang, "`-mno-atomics`, no `-pthread`, no `-Wl,--shared-memory`"),
            way(Emscripten, "no `-pthread`, no `-sSHARED_MEMORY`, no `-sWASM_WORKERS`"),
            way(Zig, "`-fsingle-threaded -mcpu=generic`, no `--shared-memory`"),
            way(TinyGo, "`-scheduler=none`, and no `+atomics` in the target's features"),
        ],
    },
    Class {
        name: "relaxed SIMD",
        features: WasmFeatures::RELAXED_SIMD,
        why: "its results differ between processors (plain SIMD is allowed)",
        ways: &[
            way(Rust, "`-C target-feature=-relaxed-simd`"),
            way(Clang, "`-mno-relaxed-simd`"),
            way(Emscripten, "no `-mrelaxed-simd`"),
            way(Zig, "`-mcpu=generic+simd128`, without `relaxed_simd`"),
        ],
    },
    Class {
        name: "stack switching",
        features: WasmFeatures::STACK_SWITCHING,
        why: "it is not a standard yet, and stacks would be state that no snapshot has",
        ways: &[
            way(Clang, "no post-processing with `wasm-opt --enable-stack-switching`"),
            way(Managed, "turn off coroutines or fibers that are made with it"),
        ],
    },
    Class {
        name: "garbage collection",
        features: WasmFeatures::GC
            .union(WasmFeatures::GC_TYPES)
            .union(WasmFeatures::CUSTOM_DESCRIPTORS),
        why: "when a collector runs, and what it finds, is hidden state",
        ways: &[
            way(Rust, "`-C target-feature=-gc`, and no externref of wasm-bindgen"),
            way(Clang, "`-mno-reference-types`, and no `__externref_t`"),
            way(Emscripten, "no `-mreference-types`, no `-mgc`"),
            way(
                Managed,
                "Kotlin, Dart, Java and OCaml need it: use a language that manages its \
                memory itself",
            ),
        ],
    },
    Class {
        name: "64-bit memory or tables",
        features: WasmFeatures::MEMORY64,
        why: "a group limits memory to less than 4 GiB, and 64-bit addresses cost checks",
        ways: &[
            way(Rust, "`--target wasm32-unknown-unknown` instead of wasm64"),
            way(Clang, "`--target=wasm32`"),
            way(Emscripten, "no `-sMEMORY64`"),
            way(Zig, "`-target wasm32-freestanding`"),
        ],
    },
    Class {
        name: "tail calls",
        features: WasmFeatures::TAIL_CALL,
        why: "they are not among the features whose cost in fuel is settled",
        ways: &[
            way(Rust, "`-C target-feature=-tail-call`"),
            way(Clang, "`-mno-tail-call`"),
            way(Emscripten, "`-mno-tail-call`"),
            way(Zig, "`-mcpu=generic`, without `tail_call`"),
            way(TinyGo, "no `+tail-call` in the target's features"),
        ],
    },
    Class {
        name: "wide arithmetic",
        features: WasmFeatures::WIDE_ARITHMETIC,
        why: "it is not a standard yet",
        ways: &[
            way(Rust, "`-C target-feature=-wide-arithmetic`"),
            way(Clang, "`-mno-wide-arithmetic`"),
            way(Zig, "`-mcpu=generic`, without `wide_arithmetic`"),
        ],
    },
    Class {
        name: "exceptions",
        features: WasmFeatures::EXCEPTIONS.union(WasmFeatures::LEGACY_EXCEPTIONS),
        why: "the engine needs its garbage collector for them, which is off",
        ways: &[
            way(Rust, "`-C panic=abort`, no `+exception-handling` in `-C target-feature`"),
            way(Clang, "`-fno-exceptions`, no `-fwasm-exceptions`, no `-mllvm -wasm-enable-sjlj`"),
            way(Emscripten, "no `-fwasm-exceptions`, no `-sSUPPORT_LONGJMP=wasm`"),
            way(Zig, "`-fno-exceptions`, without `exception_handling` in `-mcpu`"),
            way(TinyGo, "no `+exception-handling` in the target's features"),
        ],
    },
    Class {
        name: "memory pages of another size than 64 KiB",
        features: WasmFeatures::CUSTOM_PAGE_SIZES,
        why: "it is not a standard yet, and memory is limited by pages",
        ways: &[
            way(Rust, "no `-C link-arg=--page-size=…`"),
            way(Clang, "no `-Wl,--page-size=…`"),
            way(Zig, "no `--page-size`"),
        ],
    },
    Class {
        name: "async functions or threads of components",
        features: WasmFeatures::CM_ASYNC
            .union(WasmFeatures::CM_ASYNC_STACKFUL)
            .union(WasmFeatures::CM_MORE_ASYNC_BUILTINS)
            .union(WasmFeatures::CM_THREADING)
            .union(WasmFeatures::CM_ERROR_CONTEXT),
        why: "an event loop decides the order of events, and it is not replicated",
        ways: &[
            way(Rust, "wit-bindgen without its feature `async`"),
            way(Js, "`jco componentize --backend qjs --backend-qjs-disable-async`"),
            way(Python, "functions that are not `async`, in a world without async functions"),
            way(Go, "a world without async functions"),
        ],
    },
    Class {
        name: "a part of the component model that is not settled",
        features: WasmFeatures::CM_VALUES
            .union(WasmFeatures::CM_NESTED_NAMES)
            .union(WasmFeatures::CM_GC)
            .union(WasmFeatures::CM_MAP)
            .union(WasmFeatures::CM64)
            .union(WasmFeatures::CM_FIXED_LENGTH_LISTS)
            .union(WasmFeatures::CM_IMPLEMENTS)
            .union(WasmFeatures::CM_CANON_NAMES),
        why: "it may still change",
        ways: &[way(Rust, "encode the component with the wit-component of this version")],
    },
    Class {
        name: "a proposal that is not settled",
        features: WasmFeatures::MEMORY_CONTROL.union(WasmFeatures::COMPACT_IMPORTS),
        why: "it may still change",
        ways: &[
            way(Rust, "no `-C target-cpu=bleeding-edge`"),
            way(Clang, "no `-mcpu=bleeding-edge`"),
        ],
    },
];

//! What a core module was built for, if it is given where a component is expected.

use std::fmt;

use wasmparser::{Parser, Payload};

use super::wasi::{Origin, is_wasi};
use crate::guest::text::some;

/// Most names that are listed.
const NAMES_MAX: usize = 3;

/// What its imports show that a core module was built for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BuiltFor {
    /// Nothing that is in the way: it needs only to be made a component.
    Component,
    /// WASI's first version.
    Wasi(Origin),
    /// JavaScript, by wasm-bindgen.
    WasmBindgen,
    /// JavaScript, by the Go compiler.
    GoJs,
    /// A host that gives it functions of these names, such as Emscripten's JavaScript; or a
    /// library that was not linked.
    Env(Vec<String>),
}

impl BuiltFor {
    /// Reads a core module; what cannot be read shows nothing.
    pub(crate) fn of(module: &[u8]) -> Self {
        let (mut wasi, mut go, mut bindgen) = (false, false, false);
        let mut env = Vec::new();
        for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
            let Payload::ImportSection(imports) = payload else { continue };
            for import in imports.into_imports().map_while(Result::ok) {
                wasi |= is_wasi(import.module);
                go |= matches!(import.module, "gojs" | "go");
                bindgen |= import.module.starts_with("__wbindgen_")
                    || import.name.starts_with("__wbindgen_")
                    || matches!(import.module, "wbg");
                if import.module == "env" {
                    env.push(import.name.to_owned());
                }
            }
        }
        match () {
            () if bindgen => Self::WasmBindgen,
            () if go => Self::GoJs,
            () if !env.is_empty() => Self::Env(env),
            () if wasi => Self::Wasi(Origin::of(module)),
            () => Self::Component,
        }
    }
}

impl fmt::Display for BuiltFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component => write!(
                f,
                "build it with `lockstep build` in the project's folder, or componentise it with \
                 `wasm-tools component new MODULE.wasm -o FSM.wasm`"
            ),
            Self::Wasi(origin) => write!(
                f,
                "it imports WASI (preview 1): clocks, files and randomness, which differ \
                 between replicas. {origin}. Then make it a component, with `lockstep build`"
            ),
            Self::WasmBindgen => write!(
                f,
                "built by wasm-bindgen for JavaScript, which no node has. Build with \
                 `cargo build --target wasm32-unknown-unknown`, without wasm-bindgen, js-sys and \
                 features of libraries that bring them (`js`, `wasmbind`, `wasm-bindgen`), or with \
                 `lockstep build`"
            ),
            Self::GoJs => write!(
                f,
                "built by Go for JavaScript (`GOOS=js`), which no node has. Use TinyGo's \
                 `-target=wasm-unknown`, with bindings of wit/fsm.wit"
            ),
            Self::Env(names) => {
                let listed = some(names, NAMES_MAX);
                write!(
                    f,
                    "it imports from `env` ({listed}), which no node provides: functions that no \
                     library defines (`extern \"C\"` in Rust; in C, link without \
                     `-Wl,--allow-undefined`), memory (`--import-memory`), or Emscripten's \
                     JavaScript (build with clang instead, as `lockstep build` does)"
                )
            }
        }
    }
}

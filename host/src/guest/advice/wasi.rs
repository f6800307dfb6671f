//! Why a component imports WASI, and how to build it without.

use std::collections::BTreeMap;
use std::fmt;

use wasmparser::{Operator, Parser, Payload, TypeRef};

use super::built_with::BuiltWith::{self, Clang, DotNet, Go, Js, Python, Rust, TinyGo, Zig};
use super::built_with::{Way, way, write_ways};
use super::{Modules, name_of};

/// Most calls that are shown.
const CALLS_MAX: usize = 2;
/// Most functions between one of WASI and the one that is told: bindings call it for others.
const BINDINGS_MAX: usize = 6;

/// How to build without WASI, by toolchain.
const WAYS: [Way; 8] = [
    way(
        Rust,
        "std for wasm32-wasip1 and -wasip2 brings it; build for wasm32-unknown-unknown, where \
         libraries that need files, time or randomness fail to build or to run",
    ),
    way(
        Clang,
        "wasi-libc brings it for stdio, `time`, `getenv` and `exit`; leave those out, or link with \
         `-nostdlib`",
    ),
    way(Zig, "`-target wasm32-freestanding`"),
    way(Python, "`componentize-py … componentize --stub-wasi`"),
    way(
        Js,
        "`jco componentize --backend qjs --backend-qjs-stub-wasi --backend-qjs-disable-async`, or \
         componentize-js with all of `disableFeatures`",
    ),
    way(TinyGo, "`-target=wasm-unknown`"),
    way(
        Go,
        "its runtime always needs clocks and randomness; TinyGo's `-target=wasm-unknown` does not",
    ),
    way(DotNet, "its runtime always needs it: compose in a component that stubs it (WASI-Virt)"),
];

/// What a file shows of why it imports WASI.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    built_with: Vec<BuiltWith>,
    calls: Vec<Call>,
}

/// A function that calls one of WASI.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Call {
    callee: String,
    caller: String,
}

/// What is known of one core module.
#[derive(Default)]
struct Module {
    number: u32,
    /// The imported functions, by index; `None` if one is not WASI's.
    imports: Vec<Option<String>>,
    /// The next function with a body.
    next: u32,
    /// The first function that calls another one, by the latter's index.
    callers: BTreeMap<u32, u32>,
}

/// Whether a core module's or a component's import is WASI's.
pub(crate) fn is_wasi(name: &str) -> bool {
    name.starts_with("wasi:") || name.starts_with("wasi_")
}

impl Origin {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { built_with: BuiltWith::of(bytes), calls: calls(bytes) }
    }
}

/// The first calls in the first core module that has some; those after it are adapters.
fn calls(bytes: &[u8]) -> Vec<Call> {
    let (mut modules, mut module) = (Modules::default(), Module::default());
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        let before = modules.current();
        modules.follow(&payload);
        match (before, modules.current()) {
            (None, Some(number)) => module = Module { number, ..Module::default() },
            // What cannot be read tells nothing.
            (Some(_), Some(_)) => drop(module.read(&payload)),
            (Some(_), None) => {
                let told = module.told(bytes);
                if !told.is_empty() {
                    return told;
                }
            }
            (None, None) => {}
        }
    }
    Vec::new()
}

impl Module {
    fn read(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    let import = import?;
                    if matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                        let name = format!("{}.{}", import.module, import.name);
                        self.imports.push(is_wasi(import.module).then_some(name));
                        self.next += 1;
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                let caller = self.next;
                self.next += 1;
                let mut operators = body.get_operators_reader()?;
                while !operators.eof() {
                    if let Operator::Call { function_index: callee } = operators.read()? {
                        self.callers.entry(callee).or_insert(caller);
                    }
                }
            }
            _other => {}
        }
        Ok(())
    }

    fn told(&self, bytes: &[u8]) -> Vec<Call> {
        let tell = |(callee, name): (u32, &Option<String>)| {
            let callee_name = name.clone()?;
            let caller = self.caller(bytes, callee)?;
            Some(Call { callee: callee_name, caller })
        };
        (0..).zip(&self.imports).filter_map(tell).take(CALLS_MAX).collect()
    }

    /// Who calls an import, first of all; bindings do not count.
    fn caller(&self, bytes: &[u8], callee: u32) -> Option<String> {
        let mut caller = *self.callers.get(&callee)?;
        let mut name = name_of(bytes, Some(self.number), caller);
        for _ in 0..BINDINGS_MAX {
            let is_binding = name.as_ref().is_some_and(|it| it.contains("wasi"));
            let Some(next) = self.callers.get(&caller).filter(|_| is_binding) else { break };
            caller = *next;
            name = name_of(bytes, Some(self.number), caller);
        }
        Some(name.map_or(format!("function {caller}"), |name| format!("`{name}`")))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { built_with, calls } = self;
        for (number, Call { callee, caller }) in calls.iter().enumerate() {
            let before = if number == 0 { "" } else { ", " };
            write!(f, "{before}{caller} calls {callee}")?;
        }
        if !calls.is_empty() {
            write!(f, ". ")?;
        }
        // Rust's targets with WASI bring a libc along, which clang made.
        let rust = built_with.contains(&Rust);
        let shown: Vec<_> =
            built_with.iter().copied().filter(|it| !(rust && *it == Clang)).collect();
        write_ways(f, &WAYS, &shown)?;
        write!(f, ". Time and randomness come in `context`")
    }
}

//! Which toolchain built a component, by the sections in which toolchains name themselves, and how
//! each builds without what is refused.

use std::fmt;

use wasmparser::{KnownCustom, Parser, Payload};

/// A toolchain that makes WebAssembly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BuiltWith {
    Rust,
    Clang,
    Emscripten,
    Zig,
    TinyGo,
    Go,
    Python,
    Js,
    DotNet,
    /// Languages that let the engine manage their memory.
    Managed,
}

/// How to build without something.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Way {
    toolchain: BuiltWith,
    flags: &'static str,
}

pub(super) const fn way(toolchain: BuiltWith, flags: &'static str) -> Way {
    Way { toolchain, flags }
}

/// Writes the ways of these toolchains, or all if none of them has one.
pub(super) fn write_ways(
    f: &mut fmt::Formatter<'_>,
    ways: &[Way],
    built_with: &[BuiltWith],
) -> fmt::Result {
    let known: Vec<_> = ways.iter().filter(|way| built_with.contains(&way.toolchain)).collect();
    let shown = if known.is_empty() { ways.iter().collect() } else { known };
    f.write_str("Build without it: ")?;
    for (number, Way { toolchain, flags }) in shown.into_iter().enumerate() {
        let before = if number == 0 { "" } else { "; " };
        write!(f, "{before}{}: {flags}", toolchain.name())?;
    }
    Ok(())
}

impl BuiltWith {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rust => "rustc",
            Self::Clang => "clang",
            Self::Emscripten => "Emscripten",
            Self::Zig => "Zig",
            Self::TinyGo => "TinyGo",
            Self::Go => "Go",
            Self::Python => "componentize-py",
            Self::Js => "jco",
            Self::DotNet => ".NET",
            Self::Managed => "other languages",
        }
    }

    /// By a name and a version in a section `producers`; others are what all toolchains use.
    fn named(name: &str, version: &str) -> Option<Self> {
        let has = |word: &str| name.to_ascii_lowercase().contains(word);
        Some(match name {
            "rustc" | "Rust" => Self::Rust,
            "Go" => Self::Go,
            "TinyGo" => Self::TinyGo,
            _ if has("clang") && version.contains("emscripten") => Self::Emscripten,
            // Distributions put their name before.
            _ if has("clang") => Self::Clang,
            "zig" => Self::Zig,
            _ if has("componentize-py") => Self::Python,
            _ if has("componentizejs") || has("componentize-js") || has("jco") => Self::Js,
            _ if has("quickjs") || has("starlingmonkey") => Self::Js,
            _ if has("emscripten") => Self::Emscripten,
            _ if has("ilc") || has("nativeaot") => Self::DotNet,
            _ => return None,
        })
    }

    /// The toolchains that a file names; none if it names none that is known. Of these, one that
    /// brings an interpreter or another compiler's output along stands for all.
    pub(crate) fn of(bytes: &[u8]) -> Vec<Self> {
        let mut found = Vec::new();
        for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
            let Payload::CustomSection(section) = payload else { continue };
            let KnownCustom::Producers(fields) = section.as_known() else { continue };
            for field in fields.into_iter().map_while(Result::ok) {
                for value in field.values.into_iter().map_while(Result::ok) {
                    found.extend(Self::named(value.name, value.version));
                }
            }
        }
        let hosts =
            [Self::Python, Self::Js, Self::DotNet, Self::TinyGo, Self::Emscripten, Self::Zig];
        match hosts.into_iter().find(|it| found.contains(it)) {
            Some(host) => vec![host],
            // A crate may bring C along, so both are told.
            None => {
                let all = [Self::Rust, Self::Clang, Self::Go];
                all.into_iter().filter(|it| found.contains(it)).collect()
            }
        }
    }
}

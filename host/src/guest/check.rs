//! Checks whether a file is a state machine that this host can run, and if not, says what to do.
//!
//! - Every refusal tells the plugin's author what was found, why it is refused, and the way out.
//! - `lockstep check`, `serve` and `dev` run the same checks.
//! - A component may export more than the world asks for, but may not import more.
//!
//! The order: size, kind of file, validity and compilation, imports, exports, types, `describe`.

use std::fmt;
use std::time::Duration;

use lockstep_core::fault::GuestFault;
use lockstep_core::ids::ModuleId;
use lockstep_core::limits;

use super::GuestInfo;
use super::advice::core_module::BuiltFor;
use super::advice::wasi::{Origin, is_wasi};
use super::advice::{self, Advice, Missing};
use super::engine::EngineError;
use super::text::some;

/// The WIT package of a state machine's world.
pub const WORLD_PACKAGE: &str = "lockstep:fsm";
/// The version of that package that this host supports.
pub const WORLD_VERSION: &str = "0.2.0";

/// The interfaces of the package that a state machine may import, the one it must export, and those
/// that it may offer beyond that.
const IMPORTS: [&str; 5] = ["host", "snapshot-io", "types", EVENTS, TIMER];
pub(crate) const EVENTS: &str = "events";
pub(crate) const TIMER: &str = "timer";
pub(crate) const EXPORT: &str = "state-machine";
pub(crate) const WAKE: &str = "wake";
pub(crate) const DIGEST: &str = "digest";
pub(crate) const SELF_TEST: &str = "self-test";
pub(crate) const OFFERS: [&str; 3] = [WAKE, DIGEST, SELF_TEST];

/// The most names that a refusal lists; it gives only the number of the others.
const NAMES_MAX: usize = 4;

/// Longest `info.name` and `info.version`, bytes: both appear in logs, tables and snapshot headers.
pub(crate) const INFO_TEXT_BYTES_MAX: usize = 64;

/// Why a file cannot be hosted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModuleRefusal {
    #[error(
        "the module has {bytes} bytes, the limit is {}: strip its debug information \
         (`wasm-tools strip`), or build it for size",
        limits::MODULE_BYTES_MAX
    )]
    TooLarge { bytes: u64 },
    #[error("this is not WebAssembly: {found}; give the path of the .wasm that the build produced")]
    NotWasm { found: &'static str },
    #[error(
        "this is WebAssembly in text form; translate it first: \
         `wasm-tools parse FSM.wat -o FSM.wasm`"
    )]
    TextForm,
    #[error("this is a core module, not a component: {0}")]
    CoreModule(BuiltFor),
    #[error("{0}")]
    Feature(Box<Missing>),
    #[error(
        "the component is not valid: {reason}; check that the file is whole, and build it again \
         with a newer toolchain if it is"
    )]
    Invalid { reason: String },
    #[error("the compiler panicked on this component: please report it, with the component")]
    CompilerPanicked,
    #[error(
        "the component imports WASI ({}): clocks, files and randomness, which differ between \
         replicas. {origin}",
        some(.imports, NAMES_MAX)
    )]
    Wasi { imports: Vec<String>, origin: Box<Origin> },
    #[error(
        "the component imports {}, which no host provides: a state machine may import only host, \
         events, timer and snapshot-io of {WORLD_PACKAGE}; remove the import, or compose in the \
         component that provides it", some(.imports, NAMES_MAX)
    )]
    ForeignImports { imports: Vec<String> },
    #[error(
        "the component does not export {WORLD_PACKAGE}/{EXPORT}@{WORLD_VERSION} (it exports {}): \
         in Rust, is `lockstep_guest::export!` missing? Elsewhere, build with `lockstep build`, or \
         for the world `fsm` of wit/fsm.wit", some(.exports, NAMES_MAX)
    )]
    MissingExport { exports: Vec<String> },
    #[error(
        "the component was built for another version of the world: it has {found}, this host \
         supports {WORLD_PACKAGE}@{WORLD_VERSION}; rebuild it with the SDK, or the wit/fsm.wit, of \
         this version of lockstep"
    )]
    WrongWorldVersion { found: String },
    #[error(
        "the component names {WORLD_PACKAGE}@{WORLD_VERSION} but does not match it: {reason}; \
         rebuild it with the wit/fsm.wit of this version of lockstep, unchanged"
    )]
    TypeMismatch { reason: String },
    #[error(
        "the component failed before it could describe itself: {0}; `describe` must answer at \
         once, on an instance that was neither initialised nor restored"
    )]
    Describe(GuestFault),
    #[error("the answer of `describe` is invalid: {reason}")]
    BadInfo { reason: String },
    #[error("{0}")]
    Engine(#[from] EngineError),
}

/// What the checks found out about a module that can be hosted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub id: ModuleId,
    pub info: GuestInfo,
    pub bytes: usize,
    pub names: Names,
    /// How long it took to compile; `None` if it had been compiled before.
    pub compiled_in: Option<Duration>,
    /// Whether queries and snapshots run on a copy of the guest; `Err` says why they cannot.
    pub copied: Result<(), &'static str>,
}

impl Report {
    /// Whether the component exports an interface of the package.
    pub fn exports(&self, interface: &str) -> bool {
        self.names.exports.iter().any(|it| is_ours(it, &[interface]))
    }

    /// What may be a mistake, although a node accepts it.
    pub fn hints(&self) -> Vec<&'static str> {
        let sets_timer = self.names.imports.iter().any(|it| is_ours(it, &[TIMER]));
        match (sets_timer, self.exports(WAKE)) {
            (true, false) => vec![
                "it imports `timer` and does not export `wake`: setting the timer would trap; \
                 export it (in Rust: `export!(Type: wake)`; elsewhere: `world = [\"wake\"]` in \
                 lockstep.toml)",
            ],
            (false, true) => vec![
                "it exports `wake` and does not import `timer`: nothing sets the timer, so `wake` \
                 is never called",
            ],
            (true, true) | (false, false) => Vec::new(),
        }
    }
}

/// The names a component imports and exports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The version of the world that the component was built for.
    pub world_version: String,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Refuses a file that its size or its first bytes rule out, without compiling it.
pub(crate) fn check_kind(bytes: &[u8]) -> Result<(), ModuleRefusal> {
    const MAGIC: &[u8] = b"\0asm";
    if bytes.len() > limits::MODULE_BYTES_MAX {
        return Err(ModuleRefusal::TooLarge { bytes: bytes.len() as u64 });
    }
    if !bytes.starts_with(MAGIC) {
        let text = bytes.trim_ascii_start();
        return Err(if bytes.is_empty() {
            ModuleRefusal::NotWasm { found: "the file is empty" }
        } else if [&b"(component"[..], b"(module", b";;"].iter().any(|it| text.starts_with(it)) {
            ModuleRefusal::TextForm
        } else if bytes.starts_with(b"\x7fELF") {
            ModuleRefusal::NotWasm { found: "it is machine code (ELF)" }
        } else {
            ModuleRefusal::NotWasm { found: "it does not begin as a .wasm file does" }
        });
    }
    match bytes.get(4..8) {
        Some([1, 0, 0, 0]) => Err(ModuleRefusal::CoreModule(BuiltFor::of(bytes))),
        Some(_) => Ok(()),
        None => Err(ModuleRefusal::NotWasm { found: "the file ends within its header" }),
    }
}

impl ModuleRefusal {
    /// The engine refused the component, for this reason.
    pub(crate) fn invalid(component: &[u8], reason: String) -> Self {
        match advice::advise(component) {
            Advice::Missing(missing) => Self::Feature(Box::new(missing)),
            Advice::Broken { message, place } => {
                Self::Invalid { reason: format!("{message} ({place})") }
            }
            Advice::Unknown => Self::Invalid { reason },
        }
    }
}

/// Refuses imports and exports that do not match the world.
pub(crate) fn check_names(
    component: &[u8],
    imports: Vec<String>,
    exports: Vec<String>,
) -> Result<Names, ModuleRefusal> {
    let foreign = |name: &&String| !is_ours(name, &IMPORTS);
    let (wasi, foreign): (Vec<_>, Vec<_>) =
        imports.iter().filter(foreign).cloned().partition(|name| is_wasi(name));
    if !wasi.is_empty() {
        let origin = Box::new(Origin::of(component));
        return Err(ModuleRefusal::Wasi { imports: wasi, origin });
    }
    if !foreign.is_empty() {
        return Err(ModuleRefusal::ForeignImports { imports: foreign });
    }
    let Some(machine) = exports.iter().find(|name| is_ours(name, &[EXPORT])) else {
        return Err(ModuleRefusal::MissingExport { exports });
    };
    let world_version = version(machine).to_owned();
    let wrong = |name: &&String| !is_spoken(version(name));
    if let Some(name) = std::iter::once(machine).chain(&imports).find(wrong) {
        return Err(ModuleRefusal::WrongWorldVersion { found: name.clone() });
    }
    Ok(Names { world_version, imports, exports })
}

/// Refuses a name or a version that is empty, too long or would break the layout of a table, and
/// formats that contradict each other.
pub(crate) fn check_info(info: &GuestInfo) -> Result<(), ModuleRefusal> {
    let refuse = |reason| Err(ModuleRefusal::BadInfo { reason });
    for (field, text) in [("name", &info.name), ("version", &info.version)] {
        if text.is_empty() || text.len() > INFO_TEXT_BYTES_MAX || text.chars().any(char::is_control)
        {
            return refuse(format!(
                "its {field} must have 1 to {INFO_TEXT_BYTES_MAX} bytes and no control characters"
            ));
        }
    }
    if info.oldest_readable_format > info.snapshot_format {
        return refuse(format!(
            "the oldest snapshot format it reads, {}, is newer than the one it writes, {}",
            info.oldest_readable_format, info.snapshot_format
        ));
    }
    Ok(())
}

/// The full name of an interface of the package, with the version that this host supports.
pub(crate) fn interface(name: &str) -> String {
    format!("{WORLD_PACKAGE}/{name}@{WORLD_VERSION}")
}

/// Whether a name is `lockstep:fsm/INTERFACE@…`, of any version, for one of these interfaces.
fn is_ours(name: &str, interfaces: &[&str]) -> bool {
    let unversioned = name.split_once('@').map_or(name, |(unversioned, _)| unversioned);
    unversioned
        .strip_prefix(WORLD_PACKAGE)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|interface| interfaces.contains(&interface))
}

/// The part of a name after its `@`; empty if it has none.
fn version(name: &str) -> &str {
    name.split_once('@').map_or("", |(_, version)| version)
}

/// Whether this host supports a version: below 1.0, versions with one minor number are compatible.
fn is_spoken(version: &str) -> bool {
    let track = |version: &str| version.rsplit_once('.').map(|(track, _)| track.to_owned());
    !version.contains(['-', '+']) && track(version) == track(WORLD_VERSION)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, info, bytes, names, compiled_in, copied } = self;
        writeln!(f, "{} {}", info.name, info.version)?;
        writeln!(f, "  sha256     {id}")?;
        match compiled_in {
            Some(took) => {
                writeln!(f, "  size       {bytes} bytes, compiled in {} ms", took.as_millis())?;
            }
            None => writeln!(f, "  size       {bytes} bytes, compiled before")?,
        }
        write!(f, "  snapshots  writes format {}", info.snapshot_format)?;
        if info.oldest_readable_format < info.snapshot_format {
            write!(f, ", reads from format {} on", info.oldest_readable_format)?;
        }
        writeln!(f)?;
        match copied {
            Ok(()) => writeln!(f, "  queries    run on a copy: they cannot harm the guest")?,
            Err(why) => {
                writeln!(f, "  queries    run on the live guest, because {why}:")?;
                writeln!(f, "             a query that traps costs a rebuild of the guest")?;
            }
        }
        writeln!(f, "  world      {WORLD_PACKAGE}@{}", names.world_version)?;
        writeln!(f, "  imports    {}", some(&names.imports, usize::MAX))?;
        write!(f, "  exports    {}", some(&names.exports, usize::MAX))?;
        self.hints().iter().try_for_each(|hint| write!(f, "\n  hint       {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expects `Ok` with the world's version, or a refusal that contains the text of `Err`.
    fn check_named(imports: &[&str], exports: &[&str], expect: Result<&str, &str>) {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        match (check_names(b"", own(imports), own(exports)), expect) {
            (Ok(names), Ok(version)) => assert_eq!(names.world_version, version),
            (Err(refusal), Err(beginning)) => {
                assert!(refusal.to_string().contains(beginning), "{refusal}");
            }
            (found, _) => panic!("{imports:?} and {exports:?} give {found:?}"),
        }
    }

    #[test]
    fn names_are_an_allow_list() {
        const MACHINE: &str = "lockstep:fsm/state-machine@0.2.0";
        const HOST: &str = "lockstep:fsm/host@0.2.0";
        check_named(&[], &[MACHINE], Ok("0.2.0"));
        check_named(&[HOST], &["init", "lockstep:fsm/state-machine@0.2.7"], Ok("0.2.7"));
        check_named(&[HOST, "a:b/c@1.0.0"], &[MACHINE], Err("imports a:b/c@1.0.0, which no host"));
        check_named(&["lockstep:fsm/clock@0.2.0"], &[MACHINE], Err("which no host provides"));
        check_named(&["lockstep:fsmx/host@0.2.0"], &[MACHINE], Err("which no host provides"));
        check_named(
            &["a:b/c", "wasi:io/poll@0.2.9"],
            &[MACHINE],
            Err("imports WASI (wasi:io/poll"),
        );
        check_named(&[], &[], Err("it exports nothing"));
        check_named(&[], &["run"], Err("it exports run"));
        let older = "lockstep:fsm/state-machine@0.1.0";
        check_named(&[], &[older], Err("it has lockstep:fsm/state-machine@0.1.0, this host"));
        check_named(&["lockstep:fsm/host@1.1.0"], &[MACHINE], Err("has lockstep:fsm/host@1.1.0"));
        check_named(&[], &["lockstep:fsm/state-machine"], Err("another version of the world"));
        check_named(&[], &["lockstep:fsm/state-machine@0.2.0-rc"], Err("another version"));
    }

    #[test]
    fn only_components_are_worth_compiling() {
        let check_bytes = |bytes: &[u8], expect: &str| {
            let refusal = check_kind(bytes).expect_err("it is no component").to_string();
            assert!(refusal.contains(expect), "{refusal}");
        };
        check_bytes(b"", "the file is empty");
        check_bytes(b"#!/bin/sh", "does not begin as a .wasm file does");
        check_bytes(b"\x7fELF\x02", "machine code");
        check_bytes(b"  (component)", "text form");
        check_bytes(b"\0asm", "ends within");
        check_bytes(b"\0asm\x01\0\0\0", "core module");
        check_bytes(&vec![0; limits::MODULE_BYTES_MAX + 1], "the limit is");
        assert_eq!(check_kind(b"\0asm\x0d\0\x01\0"), Ok(()));
    }

    #[test]
    fn what_describe_says_must_make_sense() {
        let info = GuestInfo {
            name: "kv".to_owned(),
            version: "1".to_owned(),
            snapshot_format: 2,
            oldest_readable_format: 1,
        };
        assert_eq!(check_info(&info), Ok(()));
        let reversed = GuestInfo { oldest_readable_format: 3, ..info.clone() };
        let nameless = GuestInfo { name: String::new(), ..info.clone() };
        let endless = GuestInfo { version: "9".repeat(65), ..info.clone() };
        let two_lines = GuestInfo { name: "a\nb".to_owned(), ..info };
        for wrong in [reversed, nameless, endless, two_lines] {
            check_info(&wrong).expect_err("it makes no sense");
        }
    }

    #[test]
    fn a_report_reads_well() {
        let report = Report {
            id: ModuleId([0xab; 32]),
            info: GuestInfo {
                name: "kv".to_owned(),
                version: "0.1.0".to_owned(),
                snapshot_format: 2,
                oldest_readable_format: 1,
            },
            bytes: 1234,
            names: Names {
                world_version: "0.1.0".to_owned(),
                imports: Vec::new(),
                exports: vec!["lockstep:fsm/state-machine@0.2.0".to_owned()],
            },
            compiled_in: Some(Duration::from_millis(56)),
            copied: Ok(()),
        };
        let id = "ab".repeat(32);
        let expect = format!(
            "kv 0.1.0\n  sha256     {id}\n  size       1234 bytes, compiled in 56 ms\n  \
             snapshots  writes format 2, reads from format 1 on\n  \
             queries    run on a copy: they cannot harm the guest\n  \
             world      lockstep:fsm@0.1.0\n  imports    nothing\n  \
             exports    lockstep:fsm/state-machine@0.2.0"
        );
        assert_eq!(report.to_string(), expect);
    }
    #[test]
    fn a_timer_and_a_wake_go_together() {
        let check = |imports: &[&str], exports: &[&str], expect: &str| {
            let own = |names: &[&str]| names.iter().map(|name| interface(name)).collect();
            let report = Report {
                id: ModuleId([0; 32]),
                info: GuestInfo {
                    name: "t".to_owned(),
                    version: "1".to_owned(),
                    snapshot_format: 1,
                    oldest_readable_format: 1,
                },
                bytes: 1,
                names: Names {
                    world_version: WORLD_VERSION.to_owned(),
                    imports: own(imports),
                    exports: own(exports),
                },
                compiled_in: None,
                copied: Ok(()),
            };
            let hints = report.hints().join("\n");
            assert!(hints.contains(expect) && hints.is_empty() == expect.is_empty(), "{hints}");
        };
        check(&["host"], &[EXPORT], "");
        check(&[TIMER], &[EXPORT, WAKE], "");
        check(&[TIMER], &[EXPORT], "imports `timer` and does not export `wake`");
        check(&[], &[EXPORT, WAKE], "exports `wake` and does not import `timer`");
    }
}

//! What is in a component: its sections, its sizes, and whether its functions have names.

use lockstep_core::entry::Profile;
use lockstep_core::limits;
use serde_json::{Value, json};
use wasmparser::{Encoding, KnownCustom, Name, Parser, Payload};

use crate::guest::check::{OFFERS, Report, WORLD_PACKAGE};
use crate::guest::engine;

/// The sizes of a component's parts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    pub file_bytes: u64,
    /// Bodies of functions.
    pub code_bytes: u64,
    /// Segments of data.
    pub data_bytes: u64,
    /// Sections that do not run, such as debug information; names of functions included.
    pub custom_bytes: u64,
    pub functions: u64,
    pub core_modules: u64,
    /// Functions that have a name. Without names a trap tells only numbers.
    pub named_functions: u64,
}

impl Sizes {
    /// Reads a component; what cannot be read counts nothing.
    pub fn of(component: &[u8]) -> Self {
        let mut sizes = Self { file_bytes: component.len() as u64, ..Self::default() };
        for payload in Parser::new(0).parse_all(component) {
            let Ok(payload) = payload else { break };
            sizes.add(&payload);
        }
        sizes
    }

    fn add(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } => self.core_modules += 1,
            Payload::CodeSectionStart { count, range, .. } => {
                self.functions += u64::from(*count);
                self.code_bytes += range.len() as u64;
            }
            Payload::DataSection(data) => self.data_bytes += data.range().len() as u64,
            Payload::CustomSection(custom) => {
                self.custom_bytes += custom.data().len() as u64;
                if let KnownCustom::Name(names) = custom.as_known() {
                    let functions = names.into_iter().filter_map(|name| match name {
                        Ok(Name::Function(names)) => Some(u64::from(names.count())),
                        _other => None,
                    });
                    self.named_functions += functions.sum::<u64>();
                }
            }
            _other => {}
        }
    }
}

/// Which of the optional interfaces a component exports, and which not.
pub fn optional_exports(report: &Report) -> [(&'static str, bool); 3] {
    OFFERS.map(|name| (name, report.exports(name)))
}

/// A limit that applies to a group that is bootstrapped with the defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub name: &'static str,
    pub value: u64,
    pub unit: &'static str,
}

/// The limits that an author meets. Those of the profile can be chosen when a group is
/// bootstrapped.
pub fn limits() -> Vec<Limit> {
    let profile = Profile::default();
    let limit = |name, value, unit| Limit { name, value, unit };
    vec![
        limit("file", limits::MODULE_BYTES_MAX as u64, "bytes"),
        limit("memory", profile.memory_bytes, "bytes"),
        limit("command", limits::COMMAND_BYTES_MAX as u64, "bytes"),
        limit("commands of an entry", limits::ENTRY_COMMANDS_MAX as u64, ""),
        limit("answer to a command", u64::from(profile.outcome_bytes), "bytes"),
        limit("answer to a query", limits::QUERY_ANSWER_BYTES_MAX as u64, "bytes"),
        limit("topic of an event", limits::EVENT_TOPIC_BYTES_MAX as u64, "bytes"),
        limit("payload of an event", limits::EVENT_PAYLOAD_BYTES_MAX as u64, "bytes"),
        limit("events kept", u64::from(profile.event_window_bytes), "bytes"),
        limit("configuration", limits::GUEST_CONFIG_BYTES_MAX as u64, "bytes"),
        limit("fuel of an entry", profile.fuel_entry, ""),
        limit("and for each command", profile.fuel_command, ""),
        limit("fuel of init", profile.fuel_entry.saturating_mul(engine::INIT_ENTRIES), ""),
        limit(
            "fuel of a snapshot",
            profile.fuel_entry.saturating_mul(engine::SNAPSHOT_ENTRIES),
            "",
        ),
        limit("fuel of a query", engine::QUERY_FUEL, ""),
    ]
}

/// What the checks of a component found, for programs.
pub fn report_to_json(report: &Report) -> Value {
    let Report { id, info, bytes, names, compiled_in, copied } = report;
    json!({
        "name": info.name,
        "version": info.version,
        "sha256": id.to_string(),
        "file_bytes": bytes,
        "compiled_in_ms": compiled_in.map(|took| took.as_millis() as u64),
        "snapshot_format": info.snapshot_format,
        "oldest_readable_format": info.oldest_readable_format,
        "world": format!("{WORLD_PACKAGE}@{}", names.world_version),
        "imports": names.imports,
        "exports": names.exports,
        "looks_run_on_copy": copied.is_ok(),
        "hints": report.hints(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_in_all_modules() {
        let text = r#"(component
            (core module (memory 1) (func $named) (func) (data (i32.const 0) "abcd"))
            (core module (func $other)))"#;
        let component = wat::parse_str(text).expect("it is well formed");
        let sizes = Sizes::of(&component);
        let counts = [sizes.core_modules, sizes.functions, sizes.named_functions];
        assert_eq!(counts, [2, 3, 2]);
        assert!(sizes.code_bytes > 0 && sizes.data_bytes >= 4 && sizes.custom_bytes > 0);
        assert_eq!(sizes.file_bytes, component.len() as u64);
        assert_eq!(Sizes::of(b"\0asm"), Sizes { file_bytes: 4, ..Sizes::default() });
    }
}

//! Limits of a new group's state machine: the keys of `[[groups]]` that its first entry records.
//!
//! Once a group is bootstrapped they change nothing: limits that decide outcomes come from the log.

use lockstep_core::entry::Profile;

use super::{ModuleSource, parse_size};

/// Limits of a state machine; `None` = the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestLimits {
    /// Linear memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Fuel of an entry, and the fuel that each command adds to it.
    pub entry_fuel: Option<u64>,
    pub command_fuel: Option<u64>,
}

/// Bounds of `memory`, bytes. With less, a single long command could take all that lies above the
/// bound from which commands are refused; 16 memories of 4 GiB cannot have more.
pub(crate) const MEMORY_BYTES: std::ops::RangeInclusive<u64> = (32 << 20)..=(64 << 30);
/// Bounds of `entry-fuel`: with less, nothing useful can be done; with more, an entry could take a
/// quarter of an hour, and a snapshot days.
pub(crate) const ENTRY_FUEL: std::ops::RangeInclusive<u64> = 10_000_000..=5_000_000_000_000;
/// Bounds of `command-fuel`; a full entry has 1,024 commands.
pub(crate) const COMMAND_FUEL: std::ops::RangeInclusive<u64> = 0..=5_000_000_000;

impl GuestLimits {
    pub(super) fn parse(
        group: &str,
        memory: Option<&str>,
        entry_fuel: Option<u64>,
        command_fuel: Option<u64>,
    ) -> Result<Self, String> {
        let parsed = memory.map(|size| parse_size("memory", size)).transpose();
        let memory_bytes = parsed.map_err(|why| format!("group {group:?}: {why}"))?;
        let within =
            |key: &str, value: Option<u64>, bounds: std::ops::RangeInclusive<u64>| match value
                .filter(|value| !bounds.contains(value))
            {
                None => Ok(()),
                Some(value) => Err(format!(
                    "group {group:?}: {key} is {value}; use {} to {}",
                    bounds.start(),
                    bounds.end()
                )),
            };
        within("memory", memory_bytes, MEMORY_BYTES)?;
        within("entry-fuel", entry_fuel, ENTRY_FUEL)?;
        within("command-fuel", command_fuel, COMMAND_FUEL)?;
        Ok(Self { memory_bytes, entry_fuel, command_fuel })
    }

    /// The profile that a group bootstrapped on this node would record.
    pub fn profile(self, module: &ModuleSource, engine_major: u32) -> Profile {
        let default = Profile::default();
        let memory_bytes = match module {
            ModuleSource::File(_) => default.memory_bytes,
            // A built-in state machine has no linear memory: it uses the process's.
            ModuleSource::Native(_) => u64::MAX,
        };
        Profile {
            fuel_entry: self.entry_fuel.unwrap_or(default.fuel_entry),
            fuel_command: self.command_fuel.unwrap_or(default.fuel_command),
            memory_bytes: self.memory_bytes.unwrap_or(memory_bytes),
            engine_major,
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_bounds_and_defaults() {
        let parse = |memory, entry, command| GuestLimits::parse("kv", memory, entry, command);
        let wasm = ModuleSource::File("kv.wasm".into());
        let none = parse(None, None, None).expect("nothing is needed").profile(&wasm, 48);
        assert_eq!(none, Profile::default());
        let some = parse(Some("256MiB"), Some(20_000_000), Some(0)).expect("they are good");
        let some = some.profile(&wasm, 48);
        let expect = (256 << 20, 20_000_000, 0);
        assert_eq!((some.memory_bytes, some.fuel_entry, some.fuel_command), expect);

        let wrong = [
            (parse(Some("1MiB"), None, None), "group \"kv\": memory is 1048576; use 33554432 to"),
            (parse(Some("65GiB"), None, None), "memory is 69793218560"),
            (parse(Some("much"), None, None), "memory: \"much\" is not a size"),
            (parse(None, Some(1), None), "entry-fuel is 1"),
            (parse(None, None, Some(u64::MAX)), "command-fuel is"),
        ];
        for (parsed, says) in wrong {
            let why = parsed.expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }
}

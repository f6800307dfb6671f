//! What a new group's first entry records of its state machine: its configuration and its limits,
//! keys of `[[groups]]`.
//!
//! Once a group is bootstrapped they change nothing: limits that decide outcomes come from the log.

use std::ops::RangeInclusive;

use lockstep_core::entry::{Limits, Profile};
use lockstep_core::limits;

use super::{ModuleSource, parse_size};

/// Limits of a state machine; `None` = the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestLimits {
    /// Linear memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Fuel of an entry, and the fuel that each command adds to it.
    pub entry_fuel: Option<u64>,
    pub command_fuel: Option<u64>,
    /// Events that the group keeps, bytes.
    pub event_window_bytes: Option<u32>,
}

/// The keys of `[[groups]]` that say so, as they are written.
#[derive(Clone, Copy, Default)]
pub(crate) struct Written<'a> {
    pub(crate) memory: Option<&'a str>,
    pub(crate) entry_fuel: Option<u64>,
    pub(crate) command_fuel: Option<u64>,
    pub(crate) event_window: Option<&'a str>,
}

/// Bounds of `memory`, bytes. With less, a single long command could take all that lies above the
/// bound from which commands are refused; 16 memories of 4 GiB cannot have more.
pub(crate) const MEMORY_BYTES: RangeInclusive<u64> = (32 << 20)..=(64 << 30);
/// Bounds of `entry-fuel`: with less, nothing useful can be done; with more, an entry could take a
/// quarter of an hour, and a snapshot days.
pub(crate) const ENTRY_FUEL: RangeInclusive<u64> = 10_000_000..=5_000_000_000_000;
/// Bounds of `command-fuel`; a full entry has 1,024 commands.
pub(crate) const COMMAND_FUEL: RangeInclusive<u64> = 0..=5_000_000_000;

/// Bounds of `event-window`, bytes.
pub(crate) const EVENT_WINDOW_BYTES: RangeInclusive<u64> =
    limits::EVENT_WINDOW_BYTES_MIN as u64..=limits::EVENT_WINDOW_BYTES_MAX as u64;

/// The configuration of a state machine, if it is not too long.
pub(crate) fn config(text: &str) -> Result<String, String> {
    let (bytes, most) = (text.len(), limits::GUEST_CONFIG_BYTES_MAX);
    if bytes > most {
        return Err(format!("config has {bytes} bytes, the limit is {most}: shorten it"));
    }
    Ok(text.to_owned())
}

/// Whether the limits are within their bounds.
pub(crate) fn check_limits(limits: &Limits) -> Result<(), String> {
    within("memory", limits.memory_bytes, MEMORY_BYTES)?;
    within("entry-fuel", limits.fuel_entry, ENTRY_FUEL)?;
    within("command-fuel", limits.fuel_command, COMMAND_FUEL)
}

fn within(key: &str, value: Option<u64>, bounds: RangeInclusive<u64>) -> Result<(), String> {
    match value.filter(|value| !bounds.contains(value)) {
        None => Ok(()),
        Some(value) => Err(format!("{key} is {value}; use {} to {}", bounds.start(), bounds.end())),
    }
}

impl GuestLimits {
    pub(crate) fn parse(written: Written<'_>) -> Result<Self, String> {
        let Written { memory, entry_fuel, command_fuel, event_window } = written;
        let memory_bytes = memory.map(|size| parse_size("memory", size)).transpose()?;
        let event_window_bytes =
            event_window.map(|size| parse_size("event-window", size)).transpose()?;
        let (fuel_entry, fuel_command) = (entry_fuel, command_fuel);
        check_limits(&Limits { fuel_entry, fuel_command, memory_bytes })?;
        within("event-window", event_window_bytes, EVENT_WINDOW_BYTES)?;
        let event_window_bytes = event_window_bytes
            .map(|bytes| u32::try_from(bytes).expect("it is within bounds of 32 bits"));
        Ok(Self { memory_bytes, entry_fuel, command_fuel, event_window_bytes })
    }

    /// The profile that a group bootstrapped on this node would record.
    pub fn profile(self, module: &ModuleSource, engine_major: u32) -> Profile {
        match module {
            ModuleSource::File(_) => self.of_component(engine_major),
            ModuleSource::Native(_) => {
                // A built-in state machine has no linear memory: it uses the process's.
                let memory_bytes = self.memory_bytes.or(Some(u64::MAX));
                Self { memory_bytes, ..self }.of_component(engine_major)
            }
        }
    }

    /// The profile of a group whose state machine is a component.
    pub(crate) fn of_component(self, engine_major: u32) -> Profile {
        let default = Profile::default();
        Profile {
            fuel_entry: self.entry_fuel.unwrap_or(default.fuel_entry),
            fuel_command: self.command_fuel.unwrap_or(default.fuel_command),
            memory_bytes: self.memory_bytes.unwrap_or(default.memory_bytes),
            event_window_bytes: self.event_window_bytes.unwrap_or(default.event_window_bytes),
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
        let parse = |memory, entry_fuel, command_fuel, event_window| {
            GuestLimits::parse(Written { memory, entry_fuel, command_fuel, event_window })
        };
        let wasm = ModuleSource::File("kv.wasm".into());
        let none = parse(None, None, None, None).expect("nothing is needed").profile(&wasm, 48);
        assert_eq!(none, Profile::default());
        let some = parse(Some("256MiB"), Some(20_000_000), Some(0), Some("2MiB"));
        let some = some.expect("they are good").profile(&wasm, 48);
        let expect = Profile {
            memory_bytes: 256 << 20,
            fuel_entry: 20_000_000,
            fuel_command: 0,
            event_window_bytes: 2 << 20,
            ..none
        };
        assert_eq!(some, expect);

        let wrong = [
            (parse(Some("1MiB"), None, None, None), "memory is 1048576; use 33554432 to"),
            (parse(Some("65GiB"), None, None, None), "memory is 69793218560"),
            (parse(Some("much"), None, None, None), "memory: \"much\" is not a size"),
            (parse(None, Some(1), None, None), "entry-fuel is 1"),
            (parse(None, None, Some(u64::MAX), None), "command-fuel is"),
            (parse(None, None, None, Some("5GiB")), "event-window is 5368709120; use 1048576 to"),
        ];
        for (parsed, says) in wrong {
            let why = parsed.expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }
}

//! The limits of a state machine, as options: of the author's kit, which tries it with them, and of
//! `lockstep limits`, which orders them.

use crate::cli::Failure;
use crate::config::GuestLimits;
use crate::config::guest::Written;

#[derive(clap::Args)]
pub(super) struct LimitArgs {
    /// Most memory of the state machine, such as 256MiB; 32MiB to 64GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Fuel of an entry.
    #[arg(long, value_name = "FUEL")]
    entry_fuel: Option<u64>,
    /// Fuel that each command adds to that of its entry.
    #[arg(long, value_name = "FUEL", visible_alias = "fuel")]
    command_fuel: Option<u64>,
}

impl LimitArgs {
    /// The limits that are given, if they are within their bounds.
    pub(super) fn limits(&self) -> Result<GuestLimits, Failure> {
        let Self { memory, entry_fuel, command_fuel } = self;
        let (memory, entry_fuel, command_fuel) = (memory.as_deref(), *entry_fuel, *command_fuel);
        let written = Written { memory, entry_fuel, command_fuel, event_window: None };
        GuestLimits::parse(written).map_err(Failure::Usage)
    }

    /// The options as they were given: the name of each, and its value.
    pub(super) fn given(&self) -> [(&'static str, Option<String>); 3] {
        let Self { memory, entry_fuel, command_fuel } = self;
        let fuel = |fuel: &Option<u64>| fuel.map(|fuel| fuel.to_string());
        [
            ("memory", memory.clone()),
            ("entry-fuel", fuel(entry_fuel)),
            ("command-fuel", fuel(command_fuel)),
        ]
    }
}

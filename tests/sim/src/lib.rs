//! A whole cluster in one thread, from one seed.
//!
//! The production core, log, stores, lanes and transfer machines run behind simulated doors: disk
//! ([`lockstep_host::fs::mem`]), network, clock and guest. Without an async runtime and without
//! threads, everything happens because the scheduler drew it, so the same seed always gives the
//! same run.

pub mod asking;
pub mod audit;
pub mod bulk;
pub mod check;
pub mod client;
pub mod copies;
pub mod counters;
pub mod disks;
pub mod faults;
pub mod guest;
pub mod lanes;
pub mod looking;
pub mod network;
pub mod node;
pub mod operator;
pub mod points;
pub mod recover;
pub mod rng;
pub mod rot;
pub mod setup;
pub mod stalls;
pub mod starting;
pub mod steps;
pub mod store;
pub mod transfer;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use check::Violation;
use counters::Counters;
use world::World;

/// The result of running one seed.
pub struct Run {
    pub seed: u64,
    pub events: u64,
    pub acknowledged: u64,
    /// Simulated seconds.
    pub seconds: u64,
    pub trace: u64,
    pub counters: Counters,
    pub violation: Option<Violation>,
}

/// Runs one seed to its end or its first violation. A panic of the product counts as a violation.
pub fn run(seed: u64, verbose: bool) -> Run {
    let mut world = World::new(seed);
    world.verbose = verbose;
    let began = world.now;
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match ended {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            Some(Violation { checker: "panic", what: text })
        }
    };
    let run = Run {
        seed,
        events: world.events,
        acknowledged: world.acknowledged(),
        seconds: (world.now - began) / world::SECOND,
        trace: world.trace,
        counters: world.counters.clone(),
        violation,
    };
    if run.violation.as_ref().is_some_and(|violation| violation.checker == "panic") {
        // Dropping a world that a panic left half changed may panic again.
        std::mem::forget(world);
    }
    run
}

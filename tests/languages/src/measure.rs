//! What a machine costs in each language: a table.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use lockstep_host::guest::{Context, Guest, Outcome};
use lockstep_tests::tell::{seconds, thousands};

use crate::build::Built;

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 128;
/// Commands of an entry.
const BATCH: usize = 64;
/// Entries of a round, short enough for a round that nothing else on the machine interrupts.
const ROUND: usize = 16;
/// How often each key is set in all; the fastest round counts.
const TIMES: u64 = 9;

/// What was measured.
struct Figures {
    set_ns: f64,
    set_fuel: u64,
    empty_bytes: u64,
}

/// A row for each component.
pub fn table(all: &[Built]) -> Result<String> {
    let mut text = "| language | component | `lockstep build` | compiled | from the cache | \
        memory when empty | a `set` of 128 bytes | fuel of it |\n\
        |---|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for built in all {
        let Figures { set_ns, set_fuel, empty_bytes } = measure(built)?;
        text.push_str(&format!(
            "| {} | {} KB | {} | {} | {} | {:.1} MiB | {:.1} µs | {} |\n",
            built.language.name(),
            thousands(built.bytes.div_ceil(1000)),
            seconds(built.built),
            seconds(built.compiled),
            seconds(built.cached),
            empty_bytes as f64 / f64::from(1 << 20),
            set_ns / 1000.0,
            thousands(set_fuel),
        ));
    }
    Ok(text)
}

fn measure(built: &Built) -> Result<Figures> {
    let maker = built.machine().maker(0);
    let mut guest = maker.module.instantiate(&maker.bootstrap, &maker.log)?;
    guest.init(Context { index: 1, time_ms: 0, seed: (0, 0) }, b"")?;
    let empty_bytes = guest.memory_bytes();
    let entries = entries();
    let mut index = 1;
    set_all(&mut *guest, &entries, &mut index)?;
    let before = guest.fuel_used();
    let mut set_ns = f64::MAX;
    for _ in 0..TIMES {
        for round in entries.chunks(ROUND) {
            let count: usize = round.iter().map(Vec::len).sum();
            let began = Instant::now();
            set_all(&mut *guest, round, &mut index)?;
            set_ns = set_ns.min(began.elapsed().as_nanos() as f64 / count as f64);
        }
    }
    let set_fuel = (guest.fuel_used() - before) / (KEYS * TIMES);
    Ok(Figures { set_ns, set_fuel, empty_bytes })
}

/// A `set` of each key, in an order that is not theirs.
fn entries() -> Vec<Vec<Bytes>> {
    let command = |number: u64| {
        let mut text = format!("set key-{:06} ", number * 7_919 % KEYS).into_bytes();
        text.resize(text.len() + VALUE_BYTES, b'a' + (number % 26) as u8);
        Bytes::from(text)
    };
    let all: Vec<Bytes> = (0..KEYS).map(command).collect();
    all.chunks(BATCH).map(<[Bytes]>::to_vec).collect()
}

fn set_all(guest: &mut dyn Guest, entries: &[Vec<Bytes>], index: &mut u64) -> Result<()> {
    for entry in entries {
        *index += 1;
        let ctx = Context { index: *index, time_ms: *index, seed: (1, 2) };
        let outcomes = guest.apply(ctx, entry)?.outcomes;
        ensure!(outcomes.iter().all(|it| matches!(it, Outcome::Ok(_))), "a `set` was refused");
    }
    Ok(())
}

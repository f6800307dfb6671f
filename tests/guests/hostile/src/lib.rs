//! A guest that misbehaves on request.
//!
//! It implements the world directly instead of the SDK's trait, which makes half of this
//! misbehaviour impossible. It takes its orders, as text, from
//!
//! * its configuration, one per line: `init DEED`, `restore DEED`;
//! * a command: `DEED`, done at once, or `snapshot DEED`, done when a snapshot is taken;
//! * a query: `DEED`, done at once.
//!
//! A DEED is a word, often followed by a number; the rest is padding.
//!
//! The state is the number of commands, as 8 bytes, followed by the filling that `fill N` asked
//! for.
#![cfg(target_arch = "wasm32")]

use core::arch::wasm32::memory_grow;
use std::cell::RefCell;
use std::hint::black_box;

use lockstep_guest::component::bindings;
use lockstep_guest::{Level, log};

use bindings::exports::lockstep::fsm::state_machine::{
    Command, Context, Failure, Guest, Info, Outcome, SnapshotHeader,
};
use bindings::lockstep::fsm::snapshot_io;

struct Hostile;

bindings::__export_fsm!(Hostile with_types_in bindings);

#[derive(Default)]
struct State {
    commands: u64,
    fill: Vec<u8>,
    /// The deed to do in `snapshot`.
    at_snapshot: String,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

impl Guest for Hostile {
    fn describe() -> Info {
        Info {
            name: "hostile".to_owned(),
            version: "0.1.0".to_owned(),
            snapshot_format: 1,
            oldest_readable_format: 1,
        }
    }

    fn init(_: Context, config: Vec<u8>) -> Result<(), Failure> {
        told(&config, "init")
    }

    fn apply(_: Context, commands: Vec<Command>) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = commands.iter().map(|it| apply(&it.payload)).collect();
        match commands.last().map(|last| last.payload.as_slice()) {
            Some(b"too-few") => drop(outcomes.pop()),
            Some(b"too-many") => outcomes.push(Outcome::Ok(Vec::new())),
            _ => {}
        }
        outcomes
    }

    fn query(_: Context, request: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
        commit(&text(&request))
    }

    fn snapshot() -> Result<(), Failure> {
        let (commands, fill, deed) = STATE
            .with_borrow(|state| (state.commands, state.fill.clone(), state.at_snapshot.clone()));
        snapshot_io::write(&commands.to_le_bytes());
        let chunk = match numbered(&deed) {
            ("chunks", length) => length,
            _ => 65_536,
        };
        fill.chunks(chunk).for_each(snapshot_io::write);
        match numbered(&deed) {
            ("fail", 0) => Err(Failure::Other("not today".to_owned())),
            ("fail", length) => Err(Failure::Corrupt("e".repeat(length))),
            _ => commit(&deed).map(drop).map_err(|why| Failure::Other(text(&why))),
        }
    }

    fn restore(header: SnapshotHeader, config: Vec<u8>) -> Result<(), Failure> {
        if header.format != 1 {
            return Err(Failure::UnsupportedFormat(header.format));
        }
        told(&config, "restore")?;
        let mut bytes = Vec::new();
        loop {
            let chunk = snapshot_io::read(100_000);
            if chunk.is_empty() {
                break;
            }
            bytes.extend(chunk);
        }
        let (commands, fill) =
            bytes.split_first_chunk().ok_or_else(|| Failure::Corrupt("too short".to_owned()))?;
        STATE.set(State {
            commands: u64::from_le_bytes(*commands),
            fill: fill.to_vec(),
            at_snapshot: String::new(),
        });
        Ok(())
    }
}

fn apply(command: &[u8]) -> Outcome {
    STATE.with_borrow_mut(|state| state.commands += 1);
    let command = text(command);
    if let Some(deed) = command.strip_prefix("snapshot ") {
        STATE.with_borrow_mut(|state| state.at_snapshot = deed.to_owned());
        return Outcome::Ok(Vec::new());
    }
    match commit(&command) {
        Ok(answer) => Outcome::Ok(answer),
        Err(reason) => Outcome::Rejected(reason),
    }
}

/// Does what the configuration orders for this place, `init` or `restore`. It is the first thing
/// that an instance does, so it also sets the panic hook.
fn told(config: &[u8], place: &str) -> Result<(), Failure> {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, "panic", &panic.to_string())));
    for line in text(config).lines() {
        match line.split_once(' ') {
            Some((there, "fail")) if there == place => {
                return Err(Failure::InvalidConfig("I was told to fail".to_owned()));
            }
            Some((there, deed)) if there == place => {
                commit(deed).map_err(|why| Failure::Other(text(&why)))?;
            }
            _elsewhere => {}
        }
    }
    Ok(())
}

/// Does a deed, and returns its answer if it has one.
fn commit(deed: &str) -> Result<Vec<u8>, Vec<u8>> {
    let (deed, number) = numbered(deed);
    match deed {
        "panic" => panic!("on purpose"),
        "loop" => loop {
            black_box(number);
        },
        "spin" => {
            for turn in 0..number {
                black_box(turn);
            }
        }
        "grow" => grow(),
        // Answers the previous size in pages of 64 KiB; u32::MAX would be a refusal that a guest
        // sees.
        "pages" => return Ok(memory_grow::<0>(number).to_string().into()),
        "fragment" => fragment(number),
        "reserve" => return Ok(reserve().to_string().into()),
        "recurse" => return Ok(recurse(number as u64, recurse_again).to_le_bytes().to_vec()),
        "write" => snapshot_io::write(b"contraband"),
        "read" => drop(snapshot_io::read(1)),
        "answer" => return Ok(vec![b'a'; number]),
        "reject" => return Err(vec![b'r'; number]),
        "say" => log(Level::Warn, &"t".repeat(number), &"m".repeat(number)),
        "say-long" => say_long(number),
        "say-often" => (0..number).for_each(|line| log(Level::Info, "often", &line.to_string())),
        "trickle" => loop {
            snapshot_io::write(b"trickle.");
        },
        "fill" => STATE.with_borrow_mut(|state| state.fill = vec![b'f'; number]),
        _ => {}
    }
    Ok(Vec::new())
}

/// A deed's word and its number.
fn numbered(deed: &str) -> (&str, usize) {
    let mut words = deed.splitn(3, ' ');
    let (word, number) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    (word, number.parse().unwrap_or(0))
}

/// Allocates this many blocks of 64 KiB, each followed by a small one, and frees the large ones.
/// The heap then has free memory that no larger block fits in, until the state is restored
/// elsewhere.
fn fragment(blocks: usize) {
    let large: Vec<_> = (0..blocks)
        .map(|_| {
            let large = Vec::<u8>::with_capacity(64 << 10);
            black_box(Vec::<u8>::with_capacity(16)).leak();
            large
        })
        .collect();
    drop(black_box(large));
}

/// Reserves blocks of 1 MiB until one is refused; returns how many were granted.
fn reserve() -> usize {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            return blocks.len();
        }
        blocks.push(black_box(block));
    }
}

/// Logs the same mebibyte this many times.
fn say_long(times: usize) {
    let text = "m".repeat(1 << 20);
    (0..times).for_each(|_| log(Level::Warn, "long", &text));
}

/// Allocates memory without end.
fn grow() {
    loop {
        black_box(Vec::<u8>::with_capacity(16 << 20)).leak();
    }
}

type Recurse = fn(u64, u64) -> u64;

/// Recurses without end, and without using the stack in linear memory.
fn recurse(depth: u64, again: Recurse) -> u64 {
    again(depth, black_box(1))
}

#[inline(never)]
fn recurse_again(depth: u64, step: u64) -> u64 {
    if depth == u64::MAX {
        return depth;
    }
    recurse_again(depth + step, step).rotate_left(7) ^ depth.wrapping_mul(31)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

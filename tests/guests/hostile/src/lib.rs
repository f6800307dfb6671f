//! A guest that misbehaves on request.
//!
//! It implements the world directly instead of the SDK's trait, which makes half of this
//! misbehaviour impossible. It takes its orders, as text, from
//!
//! * its configuration, one per line: `init DEED`, `restore DEED`;
//! * a command: `DEED`, done at once, or `snapshot DEED`, `wake DEED` or `digest DEED`, done when
//!   that function is called;
//! * a query: `DEED`, done at once.
//!
//! A DEED is a word, often followed by a number; the rest is padding. What is done to the answers
//! of a whole entry is ordered by its last command, see `spoil`.
//!
//! The state is the number of commands, as 8 bytes, followed by the filling that `fill N` asked
//! for.
#![cfg(target_arch = "wasm32")]

use core::arch::wasm32::memory_grow;
use std::cell::RefCell;
use std::hint::black_box;

use lockstep_guest::component::{bindings, digest_bindings, wake_bindings};
use lockstep_guest::{Level, log};

use bindings::exports::lockstep::fsm::state_machine::{
    Commands, Context, Failure, Guest, Info, Outcomes, SnapshotHeader,
};
use bindings::lockstep::fsm::types::Omission;
use bindings::lockstep::fsm::{events, snapshot_io, timer};
use digest_bindings::exports::lockstep::fsm::digest;
use wake_bindings::exports::lockstep::fsm::wake;

struct Hostile;

bindings::__export_fsm!(Hostile with_types_in bindings);
wake_bindings::__export_wake!(Hostile with_types_in wake_bindings);
digest_bindings::__export_digest!(Hostile with_types_in digest_bindings);

#[derive(Default)]
struct State {
    commands: u64,
    fill: Vec<u8>,
    /// The deed to do in `snapshot`.
    at_snapshot: String,
    /// The deed to do in `wake`.
    at_wake: String,
    /// The deed to do in `digest`.
    at_digest: String,
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

    fn apply(_: Context, commands: Commands) -> Outcomes {
        let mut outcomes =
            Outcomes { ends: vec![], data: vec![], rejected: vec![], omitted: vec![] };
        let mut start = 0;
        let mut last = String::new();
        for (position, end) in (0..).zip(commands.ends) {
            last = text(&commands.data[start..end as usize]);
            start = end as usize;
            match apply(&last) {
                Ok(answer) => outcomes.data.extend(answer),
                Err(reason) => {
                    outcomes.data.extend(reason);
                    outcomes.rejected.push(position);
                }
            }
            outcomes.ends.push(outcomes.data.len() as u32);
        }
        spoil(&last, &mut outcomes);
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
            ..State::default()
        });
        Ok(())
    }
}

impl wake::Guest for Hostile {
    fn wake(_: Context) {
        let deed = STATE.with_borrow(|state| state.at_wake.clone());
        // A wake has no answer.
        drop(commit(&deed));
    }
}

impl digest::Guest for Hostile {
    /// What the deed answers, such as `answer 65`; otherwise the number of commands.
    fn digest() -> Vec<u8> {
        let (commands, deed) = STATE.with_borrow(|state| (state.commands, state.at_digest.clone()));
        match commit(&deed) {
            Ok(answer) if !answer.is_empty() => answer,
            _ => commands.to_le_bytes().to_vec(),
        }
    }
}

/// Executes one command; the error is a rejection.
fn apply(command: &str) -> Result<Vec<u8>, Vec<u8>> {
    let later = STATE.with_borrow_mut(|state| {
        state.commands += 1;
        let (place, deed) = command.split_once(' ')?;
        let order = match place {
            "snapshot" => &mut state.at_snapshot,
            "wake" => &mut state.at_wake,
            "digest" => &mut state.at_digest,
            _ => return None,
        };
        *order = deed.to_owned();
        Some(())
    });
    if later.is_some() { Ok(Vec::new()) } else { commit(command) }
}

/// Makes the answers of an entry what they may not be, if its last command orders it.
fn spoil(last: &str, outcomes: &mut Outcomes) {
    let count = outcomes.ends.len() as u32;
    let (deed, number) = numbered(last);
    match deed {
        "too-few" => drop(outcomes.ends.pop()),
        "too-many" => outcomes.ends.push(outcomes.data.len() as u32),
        // As many ends as the number says, of empty answers.
        "many-ends" => outcomes.ends = vec![0; number],
        "descending" => {
            outcomes.data = vec![b'd'; count as usize];
            outcomes.ends = (0..count).rev().collect();
        }
        "beyond" => outcomes.ends.iter_mut().for_each(|end| *end = u32::MAX),
        // The last answer ends before the data does.
        "left-over" => outcomes.data.extend(b"nobody's"),
        "rejects-beyond" => outcomes.rejected.push(count),
        "rejects-twice" => outcomes.rejected.extend([0, 0]),
        "rejects-descending" => outcomes.rejected = vec![count - 1, 0],
        "many-rejected" => outcomes.rejected = vec![0; number],
        "omits" => outcomes.omitted.push(omission(count - 1, number as u64)),
        "omits-most" => outcomes.omitted.push(omission(count - 1, u64::MAX)),
        "omits-beyond" => outcomes.omitted.push(omission(count, 65_537)),
        "omits-twice" => outcomes.omitted = vec![omission(0, 65_537), omission(0, 65_537)],
        "omits-descending" => {
            outcomes.omitted = vec![omission(count - 1, 65_537), omission(0, 65_537)];
        }
        "many-omitted" => outcomes.omitted = vec![omission(0, 65_537); number],
        _ => {}
    }
}

fn omission(position: u32, bytes: u64) -> Omission {
    Omission { position, bytes }
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
        "emit" => events::emit("hostile", &vec![b'e'; number]),
        "emit-often" => (0..number).for_each(|event| events::emit("often", &event.to_le_bytes())),
        "emit-full" => {
            (0..number).for_each(|_| events::emit(&"t".repeat(256), &vec![b'p'; 65_536]))
        }
        "emit-topic" => events::emit(&"t".repeat(number), b""),
        "wake-at" => timer::wake_at(number as u64),
        "wake-at-last" => timer::wake_at(u64::MAX),
        "wake-at-often" => (0..number).for_each(|time| timer::wake_at(time as u64)),
        "cancel" => timer::cancel(),
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

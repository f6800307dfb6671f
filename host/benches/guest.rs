//! What WebAssembly costs: the example `kv` as a component behind the door `Guest`, beside the same
//! code compiled for this machine. `cargo xtask bench guest`.
//!
//! Each round applies the same entries to both, alternately: `set` of 10,000 keys that exist, with
//! values of several sizes, in entries of several lengths. Medians over the rounds, in nanoseconds
//! for a command; fuel is counted, as on a node.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kv::Kv;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_guest::StateMachine as _;
use lockstep_host::guest::component::{ComponentGuest, ComponentModule};
use lockstep_host::guest::{Context, Guest as _, GuestLog, GuestModule as _};

const KEYS: usize = 10_000;
const SIZES: [usize; 3] = [16, 256, 4096];
const BATCHES: [usize; 3] = [1, 16, 128];
const ROUNDS: usize = 9;
/// Commands of a round.
const COMMANDS: usize = 20_000;
/// What a component may take of the native time, for values of 256 bytes in entries of 16 or more.
const GOAL: f64 = 1.5;

fn main() -> Result<()> {
    // Cargo passes `--bench`.
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/guests/kv.wasm");
    let bytes = std::fs::read(&path)
        .with_context(|| format!("reading {}: run cargo xtask guests", path.display()))?;
    let module = ComponentModule::load(&bytes).map_err(|why| anyhow::anyhow!("{why}"))?;
    println!("| value | entry | native | component | ratio | fuel |");
    println!("|---:|---:|---:|---:|---:|---:|");
    let mut worst: f64 = 0.0;
    for size in SIZES {
        for batch in BATCHES {
            let Row { native, component, fuel } = measure(&module, size, batch)?;
            let ratio = component / native;
            println!("| {size} | {batch} | {native:.0} | {component:.0} | {ratio:.2} | {fuel} |");
            if size == 256 && batch >= 16 {
                worst = worst.max(ratio);
            }
        }
    }
    println!("\nat 256 bytes from 16 commands on: at most {worst:.2} times native, goal {GOAL}");
    Ok(())
}

/// Nanoseconds for a command, and fuel for one.
struct Row {
    native: f64,
    component: f64,
    fuel: u64,
}

fn measure(module: &ComponentModule, size: usize, batch: usize) -> Result<Row> {
    let mut native = Native::new();
    let mut component = Component::new(module)?;
    let keys = entries(KEYS, size, 128);
    native.run(&keys);
    component.run(&keys)?;
    let count = (COMMANDS / (1 + size / 1024)).max(batch);
    let entries = entries(count, size, batch);
    let (mut natives, mut components, mut fuel) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        native.run(&entries);
        natives.push(began.elapsed().as_nanos() as f64 / count as f64);
        let before = component.guest.fuel_used();
        let began = Instant::now();
        component.run(&entries)?;
        components.push(began.elapsed().as_nanos() as f64 / count as f64);
        fuel = (component.guest.fuel_used() - before) / count as u64;
    }
    ensure!(native.answers == component.answers, "the two disagree");
    Ok(Row { native: median(natives), component: median(components), fuel })
}

/// Entries of `set` commands in an order that is neither that of the keys nor always the same key.
fn entries(count: usize, size: usize, batch: usize) -> Vec<Vec<Bytes>> {
    let command = |number: usize| {
        let key = number * 7_919 % KEYS;
        let mut text = format!("set key-{key:06} ").into_bytes();
        text.resize(text.len() + size, b'a' + (number % 26) as u8);
        Bytes::from(text)
    };
    let all: Vec<Bytes> = (0..count).map(command).collect();
    all.chunks(batch).map(<[Bytes]>::to_vec).collect()
}

/// The state machine as this machine's code.
struct Native {
    kv: Kv,
    index: u64,
    answers: u64,
}

impl Native {
    fn new() -> Self {
        let ctx = lockstep_guest::Context { index: 1, position: 0, time_ms: 0, seed: (0, 0) };
        let kv = Kv::init(&ctx, b"").expect("kv needs no configuration");
        Self { kv, index: 1, answers: 0 }
    }

    fn run(&mut self, entries: &[Vec<Bytes>]) {
        for entry in entries {
            self.index += 1;
            for (position, command) in (0..).zip(entry) {
                let ctx = lockstep_guest::Context {
                    index: self.index,
                    position,
                    time_ms: self.index,
                    seed: (1, 2),
                };
                // The host takes the answer over, as from a component.
                let answer = match self.kv.apply(&ctx, command) {
                    lockstep_guest::Outcome::Ok(bytes)
                    | lockstep_guest::Outcome::Rejected(bytes) => Bytes::from(bytes),
                    _ => Bytes::new(),
                };
                self.answers += black_box(answer).len() as u64;
            }
        }
    }
}

/// The state machine as a component.
struct Component {
    guest: ComponentGuest,
    index: u64,
    answers: u64,
}

impl Component {
    fn new(module: &ComponentModule) -> Result<Self> {
        let bootstrap = Bootstrap {
            module: module.id(),
            config: Bytes::new(),
            seed: [0; 16],
            profile: Profile::default(),
            initial_voters: Vec::new(),
        };
        let mut guest = module.instantiate_component(&bootstrap, &GuestLog::of_no_group())?;
        guest.init(Context { index: 1, time_ms: 0, seed: (0, 0) }, b"")?;
        Ok(Self { guest, index: 1, answers: 0 })
    }

    fn run(&mut self, entries: &[Vec<Bytes>]) -> Result<()> {
        for entry in entries {
            self.index += 1;
            let ctx = Context { index: self.index, time_ms: self.index, seed: (1, 2) };
            for outcome in self.guest.apply(ctx, entry)?.outcomes {
                let answer = match outcome {
                    lockstep_host::guest::Outcome::Ok(bytes)
                    | lockstep_host::guest::Outcome::Rejected(bytes) => bytes,
                    lockstep_host::guest::Outcome::TooLong { .. } => Bytes::new(),
                };
                self.answers += black_box(answer).len() as u64;
            }
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! What WebAssembly costs: the example `kv` as a component, beside the same code compiled for this
//! machine, both behind the door `Guest`. `cargo xtask bench guest [SIZE BATCH]`.
//!
//! Each round applies the same entries to both, alternately: `set` of 10,000 keys that exist, with
//! values of several sizes, in entries of several lengths. Medians over the rounds, in nanoseconds
//! for a command; fuel is counted, as on a node. *Bare* is the same code without the door, where
//! each answer is dropped before the next command is applied.

use std::hint::black_box;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kv::Kv;
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_guest::StateMachine as _;
use lockstep_host::guest::component::ComponentModule;
use lockstep_host::guest::native::{NativeMachine, NativeModule};
use lockstep_host::guest::{Context, Guest, GuestLog, GuestModule, Outcome};

const KEYS: usize = 10_000;
const SIZES: [usize; 3] = [16, 256, 4096];
const BATCHES: [usize; 3] = [1, 16, 128];
const ROUNDS: usize = 9;
/// Commands of a round.
const COMMANDS: usize = 20_000;
/// What a component may take of the native time, for values of 256 bytes in entries of 16 or more.
const GOAL: f64 = 1.5;

fn main() -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/guests/kv.wasm");
    let bytes = std::fs::read(&path)
        .with_context(|| format!("reading {}: run cargo xtask guests", path.display()))?;
    let module = ComponentModule::load(&bytes).map_err(|why| anyhow::anyhow!("{why}"))?;
    println!("| value | entry | bare | native | component | of native | fuel |");
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let mut worst: f64 = 0.0;
    for (size, batch) in asked()? {
        let Row { bare, native, component, fuel } = measure(&module, size, batch)?;
        let ratio = component / native;
        println!(
            "| {size} | {batch} | {bare:.0} | {native:.0} | {component:.0} | {ratio:.2} | {fuel} |"
        );
        if size == 256 && batch >= 16 {
            worst = worst.max(ratio);
        }
    }
    println!("\nat 256 bytes from 16 commands on: at most {worst:.2} times native, goal {GOAL}");
    Ok(())
}

/// The one case that the arguments name, or all.
fn asked() -> Result<Vec<(usize, usize)>> {
    // Cargo passes `--bench`, too.
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let numbers: Vec<usize> =
        words.map(|word| word.parse().context(word)).collect::<Result<_>>()?;
    match numbers[..] {
        [] => {
            let of_size = |size| BATCHES.map(|batch| (size, batch));
            Ok(SIZES.into_iter().flat_map(of_size).collect())
        }
        [size, batch] if batch > 0 => Ok(vec![(size, batch)]),
        _ => anyhow::bail!("the arguments are SIZE BATCH, or none"),
    }
}

/// Nanoseconds for a command, and fuel for one.
struct Row {
    bare: f64,
    native: f64,
    component: f64,
    fuel: u64,
}

fn measure(module: &ComponentModule, size: usize, batch: usize) -> Result<Row> {
    let mut native = Replica::new(&NativeModule::new("kv", Native::default))?;
    let mut component = Replica::new(module)?;
    let mut bare = Native::default();
    let keys = entries(KEYS, size, 128);
    bare.run(&keys);
    native.run(&keys)?;
    component.run(&keys)?;
    let count = (COMMANDS / (1 + size / 1024)).max(batch);
    let entries = entries(count, size, batch);
    let (mut bares, mut natives, mut components) = (Vec::new(), Vec::new(), Vec::new());
    let mut fuel = 0;
    for _ in 0..ROUNDS {
        bares.push(bare.run(&entries) / count as f64);
        natives.push(native.run(&entries)? / count as f64);
        let before = component.guest.fuel_used();
        components.push(component.run(&entries)? / count as f64);
        fuel = (component.guest.fuel_used() - before) / count as u64;
    }
    ensure!(native.answers == component.answers, "the two disagree");
    Ok(Row { bare: median(bares), native: median(natives), component: median(components), fuel })
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

/// A guest, and how far it is.
struct Replica {
    guest: Box<dyn Guest>,
    index: u64,
    /// Bytes of all answers.
    answers: u64,
}

impl Replica {
    fn new(module: &dyn GuestModule) -> Result<Self> {
        let bootstrap = Bootstrap {
            module: module.id(),
            config: Bytes::new(),
            seed: [0; 16],
            profile: Profile::default(),
            initial_voters: Vec::new(),
        };
        let mut guest = module.instantiate(&bootstrap, &GuestLog::of_no_group())?;
        guest.init(Context { index: 1, time_ms: 0, seed: (0, 0) }, b"")?;
        Ok(Self { guest, index: 1, answers: 0 })
    }

    /// Applies the entries; returns how many nanoseconds that took.
    fn run(&mut self, entries: &[Vec<Bytes>]) -> Result<f64> {
        let began = Instant::now();
        for entry in entries {
            self.index += 1;
            let ctx = Context { index: self.index, time_ms: self.index, seed: (1, 2) };
            for outcome in self.guest.apply(ctx, entry)?.outcomes {
                let answer = match outcome {
                    Outcome::Ok(bytes) | Outcome::Rejected(bytes) => bytes,
                    Outcome::TooLong { .. } => Bytes::new(),
                };
                self.answers += black_box(answer).len() as u64;
            }
        }
        Ok(began.elapsed().as_nanos() as f64)
    }
}

/// The state machine as this machine's code.
#[derive(Default)]
struct Native(Kv);

impl Native {
    /// Applies the commands without the door; returns how many nanoseconds that took.
    fn run(&mut self, entries: &[Vec<Bytes>]) -> f64 {
        let began = Instant::now();
        let ctx = lockstep_guest::Context { index: 1, position: 0, time_ms: 1, seed: (1, 2) };
        for command in entries.iter().flatten() {
            black_box(self.0.apply(&ctx, command));
        }
        began.elapsed().as_nanos() as f64
    }
}

impl NativeMachine for Native {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<(), String> {
        self.0 = Kv::init(&of_the_sdk(ctx), config).map_err(|failure| failure.to_string())?;
        Ok(())
    }

    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String> {
        // The host takes the answer over, as from a component.
        Ok(match self.0.apply(&of_the_sdk(ctx), command) {
            lockstep_guest::Outcome::Ok(answer) => Outcome::Ok(answer.into()),
            lockstep_guest::Outcome::Rejected(reason) => Outcome::Rejected(reason.into()),
            lockstep_guest::Outcome::TooLong { bytes, .. } => Outcome::TooLong { bytes },
        })
    }

    fn query(&self, ctx: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        let answer = self.0.query(&of_the_sdk(ctx), request);
        Ok(answer.map(Bytes::from).map_err(Bytes::from))
    }

    fn snapshot(&self, _: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }

    fn restore(&mut self, _: &[u8], _: &mut dyn Read) -> std::io::Result<()> {
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// `kv` makes no difference between the positions in an entry.
fn of_the_sdk(ctx: Context) -> lockstep_guest::Context {
    let Context { index, time_ms, seed } = ctx;
    lockstep_guest::Context { index, position: 0, time_ms, seed }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

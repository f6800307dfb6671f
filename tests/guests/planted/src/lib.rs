//! A guest that breaks the contract in one of the ways in which authors do, or in none.
//!
//! Unlike `hostile` it uses the SDK as an author would, and each bug is one that has cost somebody
//! a cluster. Its configuration is the name of a [`Bug`], or empty: then it keeps every promise.
//!
//! Commands:
//!
//! * `set KEY N`: stores a number, tells it as an event;
//! * `list`: the keys;
//! * `count`: the number of commands so far;
//! * `sum`: the sum of all numbers;
//! * `price`: the price of anything, which is 3;
//! * `alarm KEY MS`: sets KEY to the present time in so many milliseconds.
//!
//! A query is a key, and answered with its number.
//!
//! The snapshot is the number of commands, then the numbers by key, then the alarms by time.

#![cfg(target_arch = "wasm32")]

mod self_test;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_guest::{
    Context, DetMap, Digest, Failure, Info, Outcome, SnapshotHeader, SnapshotReader,
    SnapshotWriter, StateMachine, Wake, emit, timer,
};

/// The map whose order is one of the bugs.
#[expect(clippy::disallowed_types, reason = "this is the bug")]
type HashMap = std::collections::HashMap<String, u64>;

/// Longest key, bytes.
const KEY_BYTES_MAX: usize = 64;

/// The price, as a static: an instance that was restored has it only if `restore` sets it.
static PRICE: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// `hash-order`: `list` answers in the order of a hash table.
    HashOrder,
    /// `forgotten-field`: the number of commands is not in the snapshot.
    ForgottenField,
    /// `careless-restore`: the number of commands is in the snapshot, and `restore` forgets it.
    CarelessRestore,
    /// `query-mutates`: a query counts as a command.
    QueryMutates,
    /// `packing`: `count` counts within the entry, although the opposite is claimed.
    Packing,
    /// `stale-cache`: the sum is not computed again when a number changes; a restore forgets it.
    StaleCache,
    /// `static`: `restore` does not set the price.
    Static,
    /// `forgotten-alarms`: the alarms are not in the snapshot, while the host keeps the timer.
    ForgottenAlarms,
    /// `query-emits`: a query tells an event.
    QueryEmits,
    /// `query-sets-timer`: a query sets the timer.
    QuerySetsTimer,
}

/// Numbers by key, the number of commands, and alarms.
struct Planted {
    bug: Bug,
    numbers: HashMap,
    commands: Cell<u64>,
    sum: Option<u64>,
    /// Keys by the time of their alarm.
    alarms: DetMap<u64, String>,
}

impl Bug {
    fn parse(config: &[u8]) -> Result<Self, Failure> {
        Ok(match config {
            b"" => Self::None,
            b"hash-order" => Self::HashOrder,
            b"forgotten-field" => Self::ForgottenField,
            b"careless-restore" => Self::CarelessRestore,
            b"query-mutates" => Self::QueryMutates,
            b"packing" => Self::Packing,
            b"stale-cache" => Self::StaleCache,
            b"static" => Self::Static,
            b"forgotten-alarms" => Self::ForgottenAlarms,
            b"query-emits" => Self::QueryEmits,
            b"query-sets-timer" => Self::QuerySetsTimer,
            _ => return Err(Failure::InvalidConfig("there is no such bug".to_owned())),
        })
    }
}

impl Planted {
    fn empty(config: &[u8]) -> Result<Self, Failure> {
        Ok(Self {
            bug: Bug::parse(config)?,
            numbers: HashMap::default(),
            commands: Cell::new(0),
            sum: None,
            alarms: DetMap::new(),
        })
    }

    fn set(&mut self, key: &str, number: u64) {
        let new = self.numbers.insert(key.to_owned(), number).is_none();
        if new || self.bug != Bug::StaleCache {
            self.sum = None;
        }
        emit(key, number.to_string().as_bytes());
    }

    fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.numbers.keys().map(String::as_str).collect();
        if self.bug != Bug::HashOrder {
            keys.sort_unstable();
        }
        keys
    }

    /// In wrapping numbers: no answer depends on how commands are packed.
    fn sum(&mut self) -> u64 {
        let sum = || self.numbers.values().fold(0, |sum: u64, number| sum.wrapping_add(*number));
        *self.sum.get_or_insert_with(sum)
    }

    fn arm(&self) {
        match self.alarms.first_key_value() {
            Some((at, _)) => timer::wake_at(*at),
            None => timer::cancel(),
        }
    }

    fn count(&self) {
        self.commands.set(self.commands.get() + 1);
    }

    fn said(&mut self, ctx: &Context, command: &[u8]) -> Option<String> {
        let words: Vec<&str> = str::from_utf8(command).ok()?.split(' ').collect();
        Some(match words[..] {
            ["set", key, number] if key.len() <= KEY_BYTES_MAX => {
                self.set(key, number.parse().ok()?);
                String::new()
            }
            ["list"] => self.keys().join(" "),
            ["count"] if self.bug == Bug::Packing => (ctx.position + 1).to_string(),
            ["count"] => self.commands.get().to_string(),
            ["sum"] => self.sum().to_string(),
            ["price"] => PRICE.load(Ordering::Relaxed).to_string(),
            ["alarm", key, ms] if key.len() <= KEY_BYTES_MAX => {
                let at = ctx.time_ms.checked_add(ms.parse().ok()?)?;
                self.alarms.insert(at, key.to_owned());
                self.arm();
                String::new()
            }
            _ => return None,
        })
    }
}

impl StateMachine for Planted {
    const INFO: Info = Info::new("planted", env!("CARGO_PKG_VERSION"));

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        PRICE.store(3, Ordering::Relaxed);
        Self::empty(config)
    }

    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome {
        self.count();
        let expected = "expected `set KEY N`, `list`, `count`, `sum`, `price` or `alarm KEY MS`";
        self.said(ctx, command).map_or_else(|| Outcome::rejected(expected), Outcome::ok)
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match self.bug {
            Bug::QueryMutates => self.count(),
            Bug::QueryEmits => emit("asked", request),
            Bug::QuerySetsTimer => timer::wake_at(ctx.time_ms),
            Bug::None
            | Bug::HashOrder
            | Bug::ForgottenField
            | Bug::CarelessRestore
            | Bug::Packing
            | Bug::StaleCache
            | Bug::Static
            | Bug::ForgottenAlarms => {}
        }
        let number = str::from_utf8(request).ok().and_then(|key| self.numbers.get(key));
        number.map(|it| it.to_string().into()).ok_or_else(|| b"there is no such key".to_vec())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        out.write_u64(if self.bug == Bug::ForgottenField { 0 } else { self.commands.get() })?;
        let numbers: DetMap<&String, &u64> = self.numbers.iter().collect();
        out.write_u64(numbers.len() as u64)?;
        for (key, number) in numbers {
            out.write_block(key.as_bytes())?;
            out.write_u64(*number)?;
        }
        let none = DetMap::new();
        let alarms = if self.bug == Bug::ForgottenAlarms { &none } else { &self.alarms };
        out.write_u64(alarms.len() as u64)?;
        for (at, key) in alarms {
            out.write_u64(*at)?;
            out.write_block(key.as_bytes())?;
        }
        Ok(())
    }

    fn restore(
        _: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        let mut machine = Self::empty(config)?;
        if machine.bug != Bug::Static {
            PRICE.store(3, Ordering::Relaxed);
        }
        let commands = from.read_u64()?;
        if machine.bug != Bug::CarelessRestore {
            machine.commands.set(commands);
        }
        for _ in 0..from.read_u64()? {
            let key = key(from)?;
            machine.numbers.insert(key, from.read_u64()?);
        }
        for _ in 0..from.read_u64()? {
            let at = from.read_u64()?;
            machine.alarms.insert(at, key(from)?);
        }
        Ok(machine)
    }
}

impl Wake for Planted {
    fn wake(&mut self, ctx: &Context) {
        while let Some((at, key)) = self.alarms.pop_first() {
            if at > ctx.time_ms {
                self.alarms.insert(at, key);
                break;
            }
            self.set(&key, at);
        }
        self.arm();
    }
}

impl Digest for Planted {
    fn digest(&self) -> Vec<u8> {
        self.commands.get().to_le_bytes().to_vec()
    }
}

fn key(from: &mut SnapshotReader) -> Result<String, Failure> {
    let key = from.read_block(KEY_BYTES_MAX)?;
    String::from_utf8(key).map_err(|_| Failure::Corrupt("a key is not UTF-8".to_owned()))
}

lockstep_guest::export!(Planted: wake, digest, self_test);

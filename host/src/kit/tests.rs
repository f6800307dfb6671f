//! Machines with planted bugs are found with a small case; machines without are never accused.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::apply::{Emitted, GuestEvent, Setting};
use lockstep_core::fault::GuestFault;
use lockstep_core::limits;

use super::bench;
use super::case::Case;
use super::player::Maker;
use super::property::Property;
use super::source::Source;
use super::templates::Templates;
use super::trial::{Failure, Plan, TrialError, Tried, run};
use crate::config::GuestLimits;
use crate::guest::native::{NativeMachine, NativeModule};
use crate::guest::{Claims, Context, GuestLog, Outcome, SelfTest};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// `list` answers in an order that differs from instance to instance.
    HashOrder,
    /// The number of commands is not in the snapshot.
    FieldForgotten,
    /// A query counts as a command.
    QueryMutates,
    /// `count` says how many commands of the entry came before.
    CountsInEntry,
    /// `sum` answers with a sum that is out of date, until a restore forgets it.
    StaleCache,
    /// What `init` computes is not computed by `restore`.
    StaticNotRebuilt,
    /// The alarms are not in the snapshot.
    AlarmsForgotten,
    /// A snapshot holds how often one was taken.
    CountsSnapshots,
    /// `sum` fails if there are two keys.
    Traps,
    /// `restore` reads no snapshot that holds a `7`.
    RefusesItsOwn,
}

/// Values by key, a counter, and alarms.
struct Machine {
    bug: Bug,
    instance: u64,
    values: BTreeMap<String, u64>,
    count: Cell<u64>,
    snapshots: Cell<u64>,
    greeting: &'static str,
    sum: Option<u64>,
    alarms: BTreeMap<u64, String>,
    entry: (u64, u64),
    emitted: Emitted,
}

impl Machine {
    fn module(bug: Bug) -> NativeModule {
        let instances = AtomicU64::new(0);
        NativeModule::new(&format!("planted-{bug:?}"), move || Self {
            bug,
            instance: instances.fetch_add(1, Ordering::Relaxed),
            values: BTreeMap::new(),
            count: Cell::new(0),
            snapshots: Cell::new(0),
            greeting: "",
            sum: None,
            alarms: BTreeMap::new(),
            entry: (0, 0),
            emitted: Emitted::default(),
        })
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn list(&self) -> String {
        let mut keys: Vec<&str> = self.values.keys().map(String::as_str).collect();
        if self.has(Bug::HashOrder) && !keys.is_empty() {
            let turn = self.instance as usize % keys.len();
            keys.rotate_left(turn);
        }
        keys.join(" ")
    }

    fn set(&mut self, key: &str, value: u64) {
        let new = self.values.insert(key.to_owned(), value).is_none();
        if new || !self.has(Bug::StaleCache) {
            self.sum = None;
        }
        let event = GuestEvent { topic: key.into(), payload: value.to_string().into() };
        self.emitted.emit(event, limits::EVENT_WINDOW_BYTES as usize);
    }

    fn arm(&mut self) {
        let next = self.alarms.keys().next();
        self.emitted.timer = Some(next.map_or(Setting::Never, |at| Setting::At(*at)));
    }

    fn said(&mut self, ctx: Context, text: &str) -> Result<String, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        Ok(match words[..] {
            ["set", key, value] => {
                self.set(key, number(value));
                String::new()
            }
            ["alarm", key, after] => {
                self.alarms.insert(ctx.time_ms + number(after), key.to_owned());
                self.arm();
                String::new()
            }
            ["list"] => self.list(),
            ["count"] if self.has(Bug::CountsInEntry) => self.entry.1.to_string(),
            ["count"] => self.count.get().to_string(),
            ["greet"] => self.greeting.to_owned(),
            ["sum"] if self.has(Bug::Traps) && self.values.len() == 2 => {
                return Err("two keys cannot be summed".to_owned());
            }
            ["sum"] => self.sum.get_or_insert(self.values.values().sum()).to_string(),
            _ => return Err(format!("{text}: unknown")),
        })
    }
}

impl NativeMachine for Machine {
    fn init(&mut self, _: Context, config: &[u8]) -> Result<(), String> {
        self.greeting = "hello";
        if config == b"wrong" { Err("the configuration is wrong".to_owned()) } else { Ok(()) }
    }

    fn apply(&mut self, ctx: Context, command: &[u8]) -> Result<Outcome, String> {
        self.count.set(self.count.get() + 1);
        self.entry =
            if self.entry.0 == ctx.index { (ctx.index, self.entry.1 + 1) } else { (ctx.index, 1) };
        let text = String::from_utf8_lossy(command).into_owned();
        Ok(Outcome::Ok(self.said(ctx, &text)?.into()))
    }

    fn query(&self, _: Context, request: &[u8]) -> Result<Result<Bytes, Bytes>, String> {
        if self.has(Bug::QueryMutates) {
            self.count.set(self.count.get() + 1);
        }
        let value = self.values.get(&*String::from_utf8_lossy(request));
        Ok(value.map(|value| value.to_string().into()).ok_or_else(|| Bytes::from("no such key")))
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        self.snapshots.set(self.snapshots.get() + 1);
        if !self.has(Bug::FieldForgotten) {
            writeln!(out, "count {}", self.count.get())?;
        }
        if self.has(Bug::CountsSnapshots) {
            writeln!(out, "snapshots {}", self.snapshots.get())?;
        }
        for (key, value) in &self.values {
            writeln!(out, "value {key} {value}")?;
        }
        for (at, key) in self.alarms.iter().filter(|_| !self.has(Bug::AlarmsForgotten)) {
            writeln!(out, "alarm {at} {key}")?;
        }
        Ok(())
    }

    fn restore(&mut self, _: &[u8], input: &mut dyn Read) -> io::Result<()> {
        if !self.has(Bug::StaticNotRebuilt) {
            self.greeting = "hello";
        }
        let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
        for line in io::read_to_string(input)?.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["count", count] => self.count.set(number(count)?),
                ["value", _, "7"] if self.has(Bug::RefusesItsOwn) => {
                    return Err(io::Error::other("7 is no number"));
                }
                ["value", key, value] => drop(self.values.insert(key.to_owned(), number(value)?)),
                ["alarm", at, key] => drop(self.alarms.insert(number(at)?, key.to_owned())),
                _ => {}
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.values.len() as u64
    }

    fn wake(&mut self, ctx: Context) -> Result<(), String> {
        while let Some((at, key)) = self.alarms.pop_first() {
            if at > ctx.time_ms {
                self.alarms.insert(at, key);
                break;
            }
            self.set(&key, at);
        }
        self.arm();
        Ok(())
    }

    fn emitted(&mut self) -> Emitted {
        std::mem::take(&mut self.emitted)
    }
}

const TEMPLATES: &str = "\
#! independent-of-packing
set {word} {0..9}
list
count
greet
sum
alarm {word} {0..30000}
?{word}";

fn maker(bug: Bug, seed: u64, config: &'static str) -> Arc<Maker> {
    let module = Arc::new(Machine::module(bug));
    Maker::new(
        module,
        Bytes::from_static(config.as_bytes()),
        GuestLimits::default(),
        seed,
        GuestLog::of_no_group(),
    )
}

fn source() -> Source {
    Source::Templates(Templates::parse(TEMPLATES).expect("they are well formed"))
}

/// Tries so many cases from a first one on.
fn tried(
    bug: Bug,
    seed: u64,
    config: &'static str,
    (first, cases): (u64, u64),
) -> Result<Tried, TrialError> {
    let plan = Plan { seed, first, cases, independent_of_packing: false };
    run(&maker(bug, seed, config), &mut source(), plan)
}

/// As many as a bug needs to show.
const CASES: (u64, u64) = (0, 150);

/// The seeds to try, or the one that is given.
fn seeds() -> Vec<u64> {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    given.map_or_else(|| (1..=10).collect(), |seed| vec![seed])
}

/// The bug is found with every seed, by this property, in a case of at most this many steps and
/// commands; the same case fails in the same way again.
fn check(bug: Bug, property: Property, steps: usize, commands: usize) {
    for seed in seeds() {
        let story = format!("{bug:?}, SEED={seed}");
        let first = tried(bug, seed, "", CASES).unwrap_or_else(|error| panic!("{story}: {error}"));
        let failure = first.failure.unwrap_or_else(|| panic!("{story}: it was not found"));
        let Failure { number, case, broken, .. } = failure;
        assert_eq!(broken.property, property, "{story}: {broken:?}\n{case}");
        let small = case.steps.len() <= steps && case.commands() <= commands;
        assert!(small, "{story}: {broken:?}\n{case}");
        // What the planted hash table answers depends on how many instances there were.
        if bug != Bug::HashOrder {
            let again = tried(bug, seed, "", (number, 1)).expect("it runs again");
            let again = again.failure.map(|it| (it.case, it.broken));
            assert_eq!(again, Some((case, broken)), "{story}");
        }
    }
}

#[test]
fn an_order_that_differs_between_instances() {
    check(Bug::HashOrder, Property::Replay, 5, 5);
}

#[test]
fn a_field_that_is_not_in_the_snapshot() {
    check(Bug::FieldForgotten, Property::Restore, 3, 2);
}

#[test]
fn a_query_that_changes_the_state() {
    check(Bug::QueryMutates, Property::Query, 1, 0);
}

#[test]
fn an_answer_that_depends_on_packing() {
    check(Bug::CountsInEntry, Property::Packing, 1, 2);
}

#[test]
fn a_cache_that_is_out_of_date() {
    check(Bug::StaleCache, Property::Restore, 9, 6);
}

#[test]
fn a_static_that_is_not_rebuilt() {
    check(Bug::StaticNotRebuilt, Property::Restore, 2, 1);
}

#[test]
fn an_alarm_that_is_not_in_the_snapshot() {
    check(Bug::AlarmsForgotten, Property::Restore, 5, 4);
}

#[test]
fn a_snapshot_that_changes_the_next_one() {
    check(Bug::CountsSnapshots, Property::Again, 1, 0);
}

#[test]
fn a_command_and_a_restore_that_fail() {
    check(Bug::Traps, Property::NoTrap, 5, 4);
    check(Bug::RefusesItsOwn, Property::NoTrap, 2, 1);
}

#[test]
fn what_has_no_bug_is_not_accused() {
    for seed in seeds() {
        let tried = tried(Bug::None, seed, "", CASES).expect("nothing is in the way");
        let Tried { failure, seen, properties, .. } = tried;
        assert_eq!(failure.map(|it| (it.broken, it.case)), None, "SEED={seed}");
        assert_eq!(properties, Property::ALL);
        let all = [seen.commands, seen.queries, seen.restores, seen.events, seen.timers_fired];
        assert!(all.iter().all(|count| *count > 100), "SEED={seed}: {seen:?}");
    }
}

/// Makes numbers up, and too long a command for the number 7.
struct Numbers;

impl SelfTest for Numbers {
    fn claims(&mut self) -> Result<Claims, GuestFault> {
        Ok(Claims { independent_of_packing: true })
    }

    fn command(&mut self, number: u64) -> Result<Bytes, GuestFault> {
        let long = || vec![0; limits::COMMAND_BYTES_MAX + 1].into();
        Ok(if number == 7 { long() } else { format!("set k {number}").into() })
    }

    fn query(&mut self, number: u64) -> Result<Bytes, GuestFault> {
        Ok(number.to_string().into())
    }
}

#[test]
fn cases_follow_from_seed_and_number() {
    let make = |seed, number, mut source| Case::make(seed, number, &mut source);
    assert_eq!(make(1, 5, source()), make(1, 5, source()));
    assert_ne!(make(1, 5, source()), make(2, 5, source()));
    assert_ne!(make(1, 5, source()), make(1, 6, source()));
    let numbers = || Source::SelfTest(Box::new(Numbers));
    let long = (0..500).find_map(|number| make(1, number, numbers()).err());
    let long = long.expect("7 comes up").to_string();
    assert!(long.contains("1044481 bytes for number 7"), "{long}");
    let none = Source::of(&Machine::module(Bug::None), None).err().expect("it has no self-test");
    let said = none.to_string();
    assert!(said.contains("`self-test`") && said.contains("--commands FILE"), "{said}");
}

#[test]
fn commands_and_snapshots_are_measured() {
    let each = Duration::from_millis(5);
    let measured = bench::run(&maker(Bug::None, 1, ""), &mut source(), 1, each);
    let measured = measured.expect("nothing is in the way");
    assert_eq!(measured.batches.len(), bench::BATCHES.len());
    assert!(measured.batches.iter().all(|it| it.commands > 0 && it.ns_per_command > 0.0));
    assert!(measured.snapshot_bytes > 0 && measured.rejected == 0);
}

#[test]
fn a_refused_configuration_is_no_bug() {
    let error = tried(Bug::None, 1, "wrong", CASES).expect_err("init refuses it").to_string();
    assert!(error.contains("the configuration is wrong") && error.contains("--config"), "{error}");
    let each = Duration::from_millis(5);
    let measured = bench::run(&maker(Bug::None, 1, "wrong"), &mut source(), 1, each);
    assert_eq!(measured.expect_err("init refuses it").to_string(), error);
}

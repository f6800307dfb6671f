//! Random sequences of commands, queries and times: each is run and verified; one that fails is
//! shrunk and printed with its seed.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::Harness;
use super::shrink::shrink;
use crate::{Exports, Rng};

/// Most commands of an entry.
const ENTRY_COMMANDS_MAX: u64 = 4;
/// How far the clock goes on at once is below two to this power, in ms: about nine minutes.
const ADVANCE_BITS_MAX: u64 = 19;
/// Most bytes of a command or query that are printed.
const SHOWN_BYTES_MAX: usize = 200;

/// Makes up sequences of commands and looks for one with which the machine breaks its contract, or
/// a promise of your own.
///
/// ```no_run
/// # use lockstep_guest::*;
/// # use lockstep_guest::testing::{Explore, Harness};
/// # fn explore<Bank: Exports>() {
/// Explore::<Bank>::new()
///     .commands(|rng| match rng.below(3) {
///         0 => format!("open {} 10", rng.below(4)).into(),
///         _ => format!("transfer t {} {} {}", rng.below(4), rng.below(4), rng.below(9)).into(),
///     })
///     .check(|bank: &mut Harness<Bank>| assert!(bank.query("total").is_ok()))
///     .run();
/// # }
/// ```
///
/// A machine that exports `self_test` needs no [`commands`](Explore::commands). The seed differs
/// from run to run; `SEED=N` in the environment repeats the sequence of that seed, and only that.
pub struct Explore<M> {
    sequences: u32,
    steps: u32,
    config: Vec<u8>,
    commands: Option<MakeUp>,
    queries: Option<MakeUp>,
    check: Option<Check<M>>,
    machine: PhantomData<M>,
}

type MakeUp = Box<dyn Fn(&mut Rng) -> Vec<u8>>;
type Check<M> = Box<dyn Fn(&mut Harness<M>)>;

/// One step of a sequence.
#[derive(Clone)]
enum Step {
    Entry(Vec<Vec<u8>>),
    Query(Vec<u8>),
    /// The clock goes on.
    Advance(u64),
    /// The clock goes on, but the entry that wakes the machine is late.
    Late(u64),
    /// The clock goes to the timer's time, or one millisecond before it.
    Timer {
        before_ms: u64,
    },
}

impl<M: Exports> Explore<M> {
    /// Thirty sequences of forty steps, with an empty configuration.
    #[expect(clippy::new_without_default, reason = "it is a list of settings, not a value")]
    pub fn new() -> Self {
        Self {
            sequences: 30,
            steps: 40,
            config: Vec::new(),
            commands: None,
            queries: None,
            check: None,
            machine: PhantomData,
        }
    }

    /// How many sequences are tried.
    pub fn sequences(self, sequences: u32) -> Self {
        Self { sequences, ..self }
    }

    /// How many steps each has.
    pub fn steps(self, steps: u32) -> Self {
        Self { steps, ..self }
    }

    /// The configuration of each.
    pub fn config(self, config: &[u8]) -> Self {
        Self { config: config.to_vec(), ..self }
    }

    /// Makes up commands with this function instead of `SelfTest::command`.
    pub fn commands(self, make_up: impl Fn(&mut Rng) -> Vec<u8> + 'static) -> Self {
        Self { commands: Some(Box::new(make_up)), ..self }
    }

    /// Makes up queries with this function instead of `SelfTest::query`.
    pub fn queries(self, make_up: impl Fn(&mut Rng) -> Vec<u8> + 'static) -> Self {
        Self { queries: Some(Box::new(make_up)), ..self }
    }

    /// Checks, after each step, a promise beyond the contract; a panic is a failure.
    pub fn check(self, check: impl Fn(&mut Harness<M>) + 'static) -> Self {
        Self { check: Some(Box::new(check)), ..self }
    }

    /// Tries all sequences. Panics at the first that fails, with its shortest form and its seed.
    #[track_caller]
    pub fn run(self) {
        match std::env::var("SEED") {
            Ok(seed) => self.seed(seed.trim().parse().expect("SEED is a number")),
            Err(_) => {
                let entropy = RandomState::new();
                (0..self.sequences).for_each(|number| self.seed(entropy.hash_one(number)));
            }
        }
    }

    #[track_caller]
    fn seed(&self, seed: u64) {
        let steps = self.sequence(&mut Rng::new((seed, 0), 0));
        if self.failure(&steps).is_none() {
            return;
        }
        let fails = |steps: &[Step]| self.failure(steps).is_some();
        let shortest = shrink(steps, smaller, fails);
        let why = self.failure(&shortest).unwrap_or_else(|| "not again: it varies".to_owned());
        let lines: Vec<String> = shortest.iter().map(Step::to_string).collect();
        let lines = lines.join("\n  ");
        panic!("after these steps, which SEED={seed} repeats:\n  {lines}\n{why}");
    }

    fn sequence(&self, rng: &mut Rng) -> Vec<Step> {
        (0..self.steps).map(|_| self.step(rng)).collect()
    }

    fn step(&self, rng: &mut Rng) -> Step {
        match rng.below(20) {
            0..12 => {
                let count = 1 + rng.below(ENTRY_COMMANDS_MAX);
                Step::Entry((0..count).map(|_| self.command(rng)).collect())
            }
            12..14 => self.query(rng).map_or(Step::Advance(0), Step::Query),
            14..16 => Step::Timer { before_ms: rng.below(2) },
            kind => {
                let bits = rng.below(ADVANCE_BITS_MAX);
                let ms = rng.below(1 << bits);
                if kind == 16 { Step::Late(ms) } else { Step::Advance(ms) }
            }
        }
    }

    fn command(&self, rng: &mut Rng) -> Vec<u8> {
        match (&self.commands, M::SELF_TEST) {
            (Some(make_up), _) => make_up(rng),
            (None, Some(tests)) => (tests.command)(rng.next_u64()),
            (None, None) => panic!("give `commands`, or export `self_test`"),
        }
    }

    fn query(&self, rng: &mut Rng) -> Option<Vec<u8>> {
        match (&self.queries, M::SELF_TEST) {
            (Some(make_up), _) => Some(make_up(rng)),
            (None, Some(tests)) => Some((tests.query)(rng.next_u64())),
            (None, None) => None,
        }
    }

    /// Runs a sequence; returns the message with which it fails.
    fn failure(&self, steps: &[Step]) -> Option<String> {
        caught(|| {
            let mut harness =
                Harness::<M>::with_config(&self.config).expect("the machine accepts it");
            for step in steps {
                step.run(&mut harness);
                if let Some(check) = &self.check {
                    check(&mut harness);
                }
            }
            harness.verify();
        })
    }
}

impl Step {
    fn run<M: Exports>(&self, harness: &mut Harness<M>) {
        let now_ms = harness.now_ms();
        match self {
            Self::Entry(commands) => {
                harness.apply_entry(commands);
            }
            Self::Query(request) => drop(harness.query(request)),
            Self::Advance(ms) => harness.advance(*ms),
            Self::Late(ms) => harness.at(now_ms + ms),
            Self::Timer { before_ms } => {
                let timer = harness.timer().unwrap_or(now_ms);
                harness.run_until(timer.saturating_sub(*before_ms).max(now_ms));
            }
        }
    }
}

/// Smaller forms of a step: an entry without one of its commands, and half of a time.
fn smaller(step: &Step) -> Vec<Step> {
    match step {
        Step::Entry(commands) if commands.len() > 1 => {
            let without = |place: usize| {
                let kept = commands.iter().enumerate().filter(|(other, _)| *other != place);
                Step::Entry(kept.map(|(_, command)| command.clone()).collect())
            };
            (0..commands.len()).map(without).collect()
        }
        Step::Advance(ms) if *ms > 0 => vec![Step::Advance(ms / 2)],
        Step::Late(ms) if *ms > 0 => vec![Step::Late(ms / 2)],
        Step::Entry(_) | Step::Query(_) | Step::Timer { .. } => Vec::new(),
        Step::Advance(_) | Step::Late(_) => Vec::new(),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(commands) => {
                let shown: Vec<String> = commands.iter().map(|command| shown(command)).collect();
                write!(f, "apply {}", shown.join(", "))
            }
            Self::Query(request) => write!(f, "query {}", shown(request)),
            Self::Advance(ms) => write!(f, "{ms} ms pass"),
            Self::Late(ms) => write!(f, "{ms} ms pass, and the wake is late"),
            Self::Timer { before_ms: 0 } => f.write_str("until the timer's time"),
            Self::Timer { before_ms } => write!(f, "until {before_ms} ms before the timer's time"),
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let length = bytes.len().min(SHOWN_BYTES_MAX);
    let dots = if length < bytes.len() { "…" } else { "" };
    format!("`{}{dots}`", bytes[..length].escape_ascii())
}

thread_local! {
    /// Whether panics of this thread are kept instead of printed.
    static KEPT: Cell<bool> = const { Cell::new(false) };
    /// The last panic that was kept, with its place.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The message of the panic that `work` ends with. Nothing is printed, for a failing sequence is
/// run hundreds of times.
fn caught(work: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if KEPT.get() { LAST.set(panic.to_string()) } else { others(panic) }
        }));
    });
    KEPT.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    KEPT.set(false);
    result.is_err().then(|| LAST.take())
}

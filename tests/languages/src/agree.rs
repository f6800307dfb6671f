//! Machines of different languages in one process: given the same entries, they must agree on
//! everything that can be seen.
//!
//! - What is compared: the outcome of each command with its text, events, the timer, answers to
//!   queries, snapshots byte by byte, and which damaged snapshots are refused.
//! - Half-way each machine restores the snapshot of each other one. All of these go on beside those
//!   that were there from the beginning, and are compared as they are.
//! - The first machine is the measure; a difference names it, the other one and the command.
//! - An agreement about nothing proves nothing: what took place is counted, see [`Seen`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use lockstep_core::fault::FaultClass;
use lockstep_host::config::GuestLimits;
use lockstep_host::guest::{GuestLog, Module, NoAnswer, Outcome, SnapshotHeader};
use lockstep_host::kit::compare::{self, Difference};
use lockstep_host::kit::player::{Looks, Maker, Player, Trace};
use lockstep_host::kit::text::show;
use lockstep_tests::rng::Rng;

use crate::commands::Commands;

/// The log's time before the first entry, and at most between two of them, ms.
const BEGIN_MS: u64 = 1_700_000_000_000;
const STEP_MS: u64 = 50;
/// How often snapshots are compared on the way.
const CHECKPOINTS: u64 = 20;
/// Snapshots that are damaged and offered to all.
const DAMAGED: u64 = 100;
/// Most queries after an entry.
const QUERIES_MAX: u64 = 3;

/// A state machine in one language.
#[derive(Clone)]
pub struct Machine {
    pub name: &'static str,
    pub module: Module,
}

impl Machine {
    /// What makes its guests, with the limits that a group has by default.
    pub fn maker(&self, seed: u64) -> Arc<Maker> {
        let (module, limits) = (Arc::clone(&self.module), GuestLimits::default());
        Maker::new(module, Bytes::new(), limits, seed, GuestLog::of_no_group())
    }
}

/// A replica that has applied the first entry.
fn begun(maker: &Arc<Maker>) -> Result<Player> {
    let mut player = Player::new(maker, Looks::AsServer);
    player.play(&maker.first_entry())?;
    Ok(player)
}

/// How many commands, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub commands: u64,
    pub seed: u64,
}

/// What took place.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    pub commands: u64,
    pub entries: u64,
    pub longest_entry: u64,
    /// Accepted and refused commands, by verb.
    pub verbs: BTreeMap<&'static str, (u64, u64)>,
    /// Texts of refusals.
    pub refusals: BTreeSet<Bytes>,
    /// Answers that were over the limit.
    pub too_long: u64,
    pub queries: u64,
    pub queries_refused: u64,
    /// Comparisons of one snapshot with that of the first machine.
    pub snapshots: u64,
    pub snapshot_bytes: u64,
    /// Machines that restored the snapshot of another one.
    pub restored: usize,
    /// Damaged snapshots that all refused, and that all took.
    pub damaged: (u64, u64),
}

/// A machine, or one that restored the snapshot of another.
struct Replica {
    name: String,
    maker: Arc<Maker>,
    player: Player,
}

/// A comparison under way.
pub struct Comparison {
    plan: Plan,
    replicas: Vec<Replica>,
    machines: usize,
    commands: Commands,
    /// Chance for all but the commands.
    rng: Rng,
    time_ms: u64,
    seen: Seen,
}

impl Comparison {
    pub fn begin(machines: &[Machine], plan: Plan) -> Result<Self> {
        ensure!(machines.len() > 1, "one machine has nothing to be compared with");
        let mut replicas = Vec::new();
        for machine in machines {
            // The same seed for all: it is in the context of each command.
            let maker = machine.maker(plan.seed);
            let player = begun(&maker).with_context(|| format!("{}: init", machine.name))?;
            replicas.push(Replica { name: machine.name.to_owned(), maker, player });
        }
        let mut rng = Rng::new(plan.seed);
        let commands = Commands::new(rng.next());
        let seen = Seen::default();
        let (time_ms, machines) = (BEGIN_MS, machines.len());
        Ok(Self { plan, replicas, machines, commands, rng, time_ms, seen })
    }

    /// One entry, and what comes after it; `None` before the end.
    pub fn step(&mut self) -> Result<Option<&Seen>> {
        let Plan { commands: goal, seed } = self.plan;
        let before = self.seen.commands;
        let told = || format!("seed {seed}, after {before} commands");
        let entry = self.commands.entry(goal - before);
        self.apply(&entry).with_context(told)?;
        for _ in 0..self.rng.below(QUERIES_MAX + 1) {
            let query = self.commands.query();
            self.query(&query).with_context(told)?;
        }
        let now = self.seen.commands;
        let passed = |share: u64| before * share / goal < now * share / goal;
        if passed(CHECKPOINTS) {
            self.compare_snapshots().with_context(told)?;
        }
        if self.replicas.len() == self.machines && passed(2) {
            self.restore_all().with_context(told)?;
            self.offer_damaged().with_context(told)?;
        }
        Ok((self.seen.commands >= goal).then_some(&self.seen))
    }

    fn apply(&mut self, commands: &[Bytes]) -> Result<()> {
        self.time_ms += self.rng.below(STEP_MS);
        let entry = self.replicas[0].player.entry_of(self.time_ms, commands);
        let mut first: Option<Trace> = None;
        for at in 0..self.replicas.len() {
            let Replica { name, player, .. } = &mut self.replicas[at];
            let trace =
                player.play(&entry).with_context(|| format!("{name}: {}", all(commands)))?;
            let Some(first) = &first else {
                first = Some(trace);
                continue;
            };
            if let Some(difference) = compare::traces(first, &trace) {
                let differs = |(one, two): (&Outcome, &Outcome)| one != two;
                let place = first.outcomes.iter().zip(&trace.outcomes).position(differs);
                let command = place.and_then(|place| commands.get(place));
                let what = command.map_or_else(|| all(commands), |command| show(command));
                return Err(self.differ(at, &what, &difference));
            }
        }
        let trace = first.context("there is no machine")?;
        ensure!(trace.outcomes.len() == commands.len(), "commands without an outcome");
        self.seen.entry(commands, &trace.outcomes);
        Ok(())
    }

    fn query(&mut self, request: &[u8]) -> Result<()> {
        let mut first: Option<Result<Bytes, NoAnswer>> = None;
        for at in 0..self.replicas.len() {
            let Replica { name, player, .. } = &mut self.replicas[at];
            let answer =
                player.query(request).with_context(|| format!("{name}: ?{}", show(request)))?;
            match &first {
                None => first = Some(answer),
                Some(first) => {
                    if let Some(difference) = compare::answers(first, &answer) {
                        return Err(self.differ(at, &format!("?{}", show(request)), &difference));
                    }
                }
            }
        }
        self.seen.queries += 1;
        self.seen.queries_refused += u64::from(first.is_some_and(|answer| answer.is_err()));
        Ok(())
    }

    fn compare_snapshots(&mut self) -> Result<()> {
        let first = self.replicas[0].player.snapshot()?;
        self.seen.snapshot_bytes = first.len() as u64;
        for at in 1..self.replicas.len() {
            let Replica { name, player, .. } = &mut self.replicas[at];
            let other = player.snapshot().with_context(|| format!("{name}: a snapshot"))?;
            if let Some(difference) = compare::bytes("the snapshot", &first, &other) {
                return Err(self.differ(at, "a snapshot", &difference));
            }
            self.seen.snapshots += 1;
        }
        Ok(())
    }

    /// Each machine restores the snapshot of each other one; these replicas go on with the others.
    fn restore_all(&mut self) -> Result<()> {
        for from in 0..self.machines {
            let saved = self.replicas[from].player.save()?;
            for to in (0..self.machines).filter(|to| *to != from) {
                let Replica { name, maker, .. } = &self.replicas[to];
                let name =
                    format!("{name}, restored from the snapshot of {}", self.replicas[from].name);
                let player = Player::restored(maker, Looks::AsServer, &saved);
                let player = player.with_context(|| name.clone())?;
                let maker = Arc::clone(maker);
                self.replicas.push(Replica { name, maker, player });
                self.seen.restored += 1;
            }
        }
        self.compare_snapshots()
    }

    /// All refuse a damaged snapshot as corrupt, or all take it for the same state.
    fn offer_damaged(&mut self) -> Result<()> {
        let whole = self.replicas[0].player.snapshot()?;
        for _ in 0..DAMAGED {
            let (what, bytes) = damage(&mut self.rng, &whole);
            let mut first: Option<Result<Vec<u8>, FaultClass>> = None;
            for at in 0..self.machines {
                let restored = self.replicas[at].restored(&bytes)?;
                match &first {
                    None => first = Some(restored),
                    Some(first) if *first == restored => {}
                    Some(first) => {
                        let (first, other) = (shown(first), shown(&restored));
                        let what = format!("restoring a snapshot {what}");
                        let came = "what comes of it".to_owned();
                        let difference = Difference { what: came, first, other };
                        return Err(self.differ(at, &what, &difference));
                    }
                }
            }
            let (refused, taken) = &mut self.seen.damaged;
            *if matches!(first, Some(Err(_))) { refused } else { taken } += 1;
        }
        Ok(())
    }

    fn differ(&self, at: usize, what: &str, difference: &Difference) -> anyhow::Error {
        let Difference { what: part, first, other } = difference;
        let (one, two) = (&self.replicas[0].name, &self.replicas[at].name);
        anyhow::anyhow!("{what}: {part} differs\n  {one}: {first}\n  {two}: {other}")
    }
}

impl Replica {
    /// The snapshot of a new guest that restored these bytes, or how it refused them.
    fn restored(&self, bytes: &[u8]) -> Result<Result<Vec<u8>, FaultClass>> {
        let info = self.maker.module.info();
        let ledger = self.player.ledger().clone();
        let header = SnapshotHeader::of(info, info.snapshot_format, &ledger);
        let looks = Looks::AsServer;
        match Player::restored_from(&self.maker, looks, ledger, &header, &mut &bytes[..]) {
            Ok(mut player) => {
                Ok(Ok(player.snapshot().context("a snapshot of what was restored")?))
            }
            Err(fault) => Ok(Err(fault.class)),
        }
    }
}

impl Seen {
    fn entry(&mut self, commands: &[Bytes], outcomes: &[Outcome]) {
        self.entries += 1;
        self.commands += commands.len() as u64;
        self.longest_entry = self.longest_entry.max(commands.len() as u64);
        for (command, outcome) in commands.iter().zip(outcomes) {
            let (accepted, refused) = self.verbs.entry(verb(command)).or_default();
            match outcome {
                Outcome::Ok(_) => *accepted += 1,
                Outcome::TooLong { .. } => {
                    *accepted += 1;
                    self.too_long += 1;
                }
                Outcome::Rejected(text) => {
                    *refused += 1;
                    self.refusals.insert(text.clone());
                }
            }
        }
    }

    /// Fails if something that is to be compared never happened.
    pub fn enough(&self) -> Result<()> {
        for verb in ["set", "del", "cas", "incr"] {
            let (accepted, refused) = self.verbs.get(verb).copied().unwrap_or_default();
            ensure!(
                accepted > 0 && refused > 0,
                "`{verb}`: {accepted} accepted, {refused} refused"
            );
        }
        let counts = [
            ("answers over the limit", self.too_long),
            ("texts of refusals", self.refusals.len() as u64),
            ("queries", self.queries),
            ("restored snapshots", self.restored as u64),
            ("damaged snapshots that are refused", self.damaged.0),
        ];
        if let Some((what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            bail!("{} commands are too few: there were no {what}", self.commands);
        }
        Ok(())
    }
}

fn verb(command: &[u8]) -> &'static str {
    let word = command.split(|byte| *byte == b' ').next();
    let known =
        ["set", "del", "cas", "incr"].into_iter().find(|verb| Some(verb.as_bytes()) == word);
    known.unwrap_or("others")
}

/// A snapshot that is cut, longer, or changed somewhere, and what was done to it.
fn damage(rng: &mut Rng, whole: &[u8]) -> (String, Vec<u8>) {
    let mut bytes = whole.to_vec();
    let place = rng.below(whole.len() as u64) as usize;
    let what = match rng.below(8) {
        0 | 1 => {
            bytes.truncate(place);
            format!("cut to {place} bytes")
        }
        2 => {
            bytes.push(rng.next() as u8);
            "with a byte more".to_owned()
        }
        3 => {
            bytes.truncate(8);
            "of nothing but its count".to_owned()
        }
        // In the first bytes, the number of pairs and lengths are.
        4 | 5 => flip(rng, &mut bytes, place % 32),
        _other => flip(rng, &mut bytes, place),
    };
    (what, bytes)
}

fn flip(rng: &mut Rng, bytes: &mut [u8], place: usize) -> String {
    bytes[place] ^= 1 << rng.below(8);
    format!("with a bit changed in byte {place}")
}

fn shown(restored: &Result<Vec<u8>, FaultClass>) -> String {
    match restored {
        Ok(bytes) => format!("taken, a snapshot of it has {} bytes", bytes.len()),
        Err(class) => format!("refused: {class}"),
    }
}

/// An entry's commands, the first of them shown.
fn all(commands: &[Bytes]) -> String {
    let first = commands.first().map(|command| show(command)).unwrap_or_default();
    format!("an entry of {} commands that begins with {first}", commands.len())
}

/// What machines do with commands that come one after another: the answers of each, and what a
/// query says in the end.
pub fn answers(
    machine: &Machine,
    clients: &[Vec<Bytes>],
    query: &[u8],
) -> Result<(Vec<Vec<Outcome>>, Bytes)> {
    let mut player = begun(&machine.maker(0))?;
    let mut all = Vec::new();
    for commands in clients {
        let mut outcomes = Vec::new();
        for command in commands {
            let entry = player.entry_of(BEGIN_MS, std::slice::from_ref(command));
            outcomes.extend(player.play(&entry)?.outcomes);
        }
        all.push(outcomes);
    }
    match player.query(query)? {
        Ok(answer) => Ok((all, answer)),
        Err(no) => bail!("{}: {no:?}", show(query)),
    }
}

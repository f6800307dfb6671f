//! A replay: what happened in a group's log, once more, against a module of the caller's choice.
//!
//! - A replay begins as a replica does: with a snapshot that restores, or with entry 1. A snapshot
//!   that cannot be read or restored is told, and an older one takes its place.
//! - It applies entries with the server's ledger, so calls that repeat earlier ones are answered
//!   from the sessions.
//! - Where the log lists a snapshot, the replay's own must have the same digest.
//! - With a second module both are given the same entries, and the replay ends where they differ.
//!
//! Where the log and the snapshots come from is left to [`Past`].

use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::entry::{Bootstrap, EntryBody};
use lockstep_core::fault::GuestFault;
use lockstep_core::ids::{Digest, ModuleId};
use lockstep_core::snapshot::SnapshotDesc;
use raft::eraftpb::{Entry, EntryType};

use super::compare::{self, Difference};
use super::hashing::Hashing;
use super::past::{Facts, Past};
use super::player::{Looks, Maker, Player, Trace};
use crate::group::apply_lane::read_ledger;
use crate::guest::{GuestLog, Module, SnapshotHeader};

#[cfg(test)]
mod tests;

/// What to replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The last entry; by default the last one that is known to be committed.
    pub until: Option<u64>,
    /// Apply entries, too, that may not be committed.
    pub uncommitted: bool,
    /// The snapshot to begin with, 0 for entry 1; by default the newest one before `look`.
    pub from_snapshot: Option<u64>,
    /// The first entry that has to be applied here; by default any.
    pub look: Option<u64>,
}

/// Which entries a plan comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// The snapshots to try, in this order.
    pub snapshots: Vec<SnapshotDesc>,
    /// Whether entry 1 is the last thing to try.
    pub from_first: bool,
    pub until: u64,
    /// How many entries of the log come after `until`.
    pub left: u64,
}

/// How a replay began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    pub start: Start,
    /// The snapshots that were tried before, and why they were not taken.
    pub passed: Vec<(u64, String)>,
    /// The module with which the group was bootstrapped.
    pub bootstrapped: ModuleId,
    pub until: u64,
    pub left: u64,
    /// Whether the snapshots of the two modules are compared: only if their formats are equal.
    pub compares_snapshots: bool,
}

/// What a replay began with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    First,
    Snapshot { index: u64, digest: Digest },
}

/// One entry, and what it brought about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub index: u64,
    pub term: u64,
    pub kind: Kind,
    /// The log's time afterwards, ms.
    pub time_ms: u64,
    pub trace: Trace,
    /// The digest of the snapshot, if one was taken to compare it.
    pub snapshot: Option<Digest>,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A change of the group's members.
    Members,
    Body(EntryBody),
}

/// Which of the modules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    First,
    Other,
}

/// Where a replay ended early.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this entry; its trace is empty if its call failed.
    Entry(Box<Step>),
    /// After the last entry, which is this one.
    After(u64),
}

/// How a replay ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    Reached(Standing),
    /// Calls failed; the other module, if there is one and it is not named, did not fail.
    Faulted {
        place: Place,
        faults: Vec<(Who, GuestFault)>,
    },
    /// The two modules differ.
    Differs {
        place: Place,
        difference: Difference,
    },
    /// The log lists another snapshot at this entry.
    Diverged {
        step: Box<Step>,
        listed: SnapshotDesc,
    },
}

/// The state at the end of a replay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    pub applied: u64,
    pub time_ms: u64,
    /// Events in the window.
    pub events: u64,
    pub deadline_ms: Option<u64>,
    /// The guest's own digest, if it has one.
    pub digest: Option<Bytes>,
    /// The digest that a snapshot of this state would have.
    pub snapshot: Digest,
    /// Bytes of that snapshot's payload.
    pub snapshot_bytes: u64,
    pub memory_bytes: u64,
    /// Fuel of all calls of the replay.
    pub fuel: u64,
}

/// Why there is nothing to replay, or why a replay could not go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(
        "entry {until} cannot be replayed: the log ends at {last}, and entries up to {commit} are \
         known to be committed; give --until {commit}, or --uncommitted for entries above it"
    )]
    Until { until: u64, commit: u64, last: u64 },
    #[error("there is no snapshot at {index} at or below entry {until}; there are: {known}")]
    NoSuchSnapshot { index: u64, until: u64, known: String },
    #[error(
        "there is no snapshot at or below entry {before}, where a replay could begin; there \
        are: {known}"
    )]
    NoneBelow { before: u64, known: String },
    #[error("the log begins at entry {first}, so a replay has to begin with a snapshot")]
    Cut { first: u64 },
    #[error("there is nothing to begin with: {0}")]
    NoBeginning(String),
    #[error("the log's first entry is no bootstrap record: this is no group's log")]
    NoBootstrap,
    #[error("the module cannot run in this group: {0}")]
    Module(String),
    #[error("entry {index} cannot be read: {why}")]
    Entry { index: u64, why: String },
}

impl ReplayError {
    /// Nothing could be begun with: these snapshots were tried.
    pub(super) fn no_beginning(passed: &[(u64, String)]) -> Self {
        let why = passed.iter().map(|(index, why)| format!("snapshot at {index}: {why}"));
        Self::NoBeginning(why.collect::<Vec<_>>().join("; "))
    }
}

/// A replica of one module.
struct Side {
    who: Who,
    module: ModuleId,
    player: Player,
}

/// How a step went wrong.
enum Stop {
    Ends(Box<End>),
    Error(ReplayError),
}

impl Plan {
    /// The entries that the plan comes to, and the snapshots from which they can be reached.
    pub fn span(&self, facts: &Facts) -> Result<Span, ReplayError> {
        let Facts { commit, last_index: last, first_index: first, .. } = *facts;
        let most = if self.uncommitted { last } else { commit.min(last) };
        let until = self.until.unwrap_or(most);
        if until > most || until == 0 {
            return Err(ReplayError::Until { until, commit: commit.min(last), last });
        }
        let before = self.look.map_or(until, |look| until.min(look.saturating_sub(1)));
        let (snapshots, from_first): (Vec<_>, bool) = match self.from_snapshot {
            Some(0) => (Vec::new(), true),
            Some(index) => {
                let at = |desc: &&SnapshotDesc| desc.index == index && index <= until;
                (facts.snapshots.iter().filter(at).cloned().collect(), false)
            }
            None => {
                let below = |desc: &&SnapshotDesc| desc.index <= before;
                (facts.snapshots.iter().filter(below).cloned().collect(), first == 1)
            }
        };
        if from_first && first != 1 {
            return Err(ReplayError::Cut { first });
        }
        if snapshots.is_empty() && !from_first {
            let known: Vec<_> = facts.snapshots.iter().map(|it| it.index.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(match self.from_snapshot {
                Some(index) => ReplayError::NoSuchSnapshot { index, until, known },
                None => ReplayError::NoneBelow { before, known },
            });
        }
        Ok(Span { snapshots, from_first, until, left: last - until })
    }
}

/// A replay that has begun.
pub struct Replay<'a> {
    past: &'a dyn Past,
    begun: Begun,
    sides: Vec<Side>,
}

impl<'a> Replay<'a> {
    /// Restores a snapshot, or begins with entry 1.
    pub fn begin(
        past: &'a dyn Past,
        module: &Module,
        against: Option<&Module>,
        plan: &Plan,
        log: &Arc<GuestLog>,
    ) -> Result<Self, ReplayError> {
        let Span { snapshots, from_first, until, left } = plan.span(past.facts())?;
        let modules: Vec<_> = [(Who::First, Some(module)), (Who::Other, against)]
            .into_iter()
            .filter_map(|(who, module)| Some((who, module?)))
            .collect();
        let format = |module: &Module| module.info().snapshot_format;
        let compares_snapshots = against.is_some_and(|it| format(it) == format(module));
        let (mut passed, mut restored) = (Vec::new(), None);
        for desc in &snapshots {
            match restore(past, desc, &modules, log) {
                Ok((bootstrapped, sides)) => {
                    let start = Start::Snapshot { index: desc.index, digest: desc.digest };
                    restored = Some((start, bootstrapped, sides));
                    break;
                }
                Err(Unrestored::Module(why)) => return Err(ReplayError::Module(why)),
                Err(Unrestored::Snapshot(why)) => passed.push((desc.index, why)),
            }
        }
        let (start, bootstrapped, sides) = match restored {
            Some(restored) => restored,
            None if from_first => {
                let (bootstrapped, sides) = fresh(past, &modules, log)?;
                (Start::First, bootstrapped, sides)
            }
            None => return Err(ReplayError::no_beginning(&passed)),
        };
        let begun = Begun { start, passed, bootstrapped, until, left, compares_snapshots };
        Ok(Self { past, begun, sides })
    }

    pub fn begun(&self) -> &Begun {
        &self.begun
    }

    /// Applies all entries; `tell` is called after each one. The last one, if the replay ends at it
    /// early, is told by the [`End`] only.
    pub fn run(mut self, tell: &mut dyn FnMut(Step)) -> Result<End, ReplayError> {
        let until = self.begun.until;
        loop {
            let next = self.sides[0].player.ledger().applied() + 1;
            if next > until {
                break;
            }
            let unread = |why: String| ReplayError::Entry { index: next, why };
            let entries = self.past.entries(next, until + 1).map_err(unread)?;
            if entries.is_empty() {
                return Err(unread("it is missing".to_owned()));
            }
            for entry in entries {
                match self.step(&entry) {
                    Ok(step) => tell(step),
                    Err(Stop::Ends(end)) => return Ok(*end),
                    Err(Stop::Error(error)) => return Err(error),
                }
            }
        }
        Ok(self.finish())
    }

    fn step(&mut self, entry: &Entry) -> Result<Step, Stop> {
        let (index, term) = (entry.index, entry.term);
        let applied = self.sides[0].player.ledger().applied();
        if index != applied + 1 {
            let why = format!("entry {index} is in its place");
            return Err(Stop::Error(ReplayError::Entry { index: applied + 1, why }));
        }
        let kind = kind_of(entry).map_err(Stop::Error)?;
        let (mut traces, mut faults) = (Vec::new(), Vec::new());
        for side in &mut self.sides {
            match side.player.play(entry) {
                Ok(trace) => traces.push(trace),
                Err(fault) => faults.push((side.who, fault)),
            }
        }
        let time_ms = self.sides[0].player.ledger().log_time_ms();
        let mut step = Step { index, term, kind, time_ms, trace: Trace::default(), snapshot: None };
        if !faults.is_empty() {
            let place = Place::Entry(Box::new(step));
            return Err(Stop::Ends(Box::new(End::Faulted { place, faults })));
        }
        let difference = traces.get(1).and_then(|other| differs(&traces[0], other));
        step.trace = traces.swap_remove(0);
        if let Some(difference) = difference {
            let place = Place::Entry(Box::new(step));
            return Err(Stop::Ends(Box::new(End::Differs { place, difference })));
        }
        match self.look(&mut step) {
            Ok(None) => Ok(step),
            Ok(Some(end)) => Err(Stop::Ends(Box::new(end))),
            Err(fault) => {
                let (place, faults) = (Place::Entry(Box::new(step)), vec![fault]);
                Err(Stop::Ends(Box::new(End::Faulted { place, faults })))
            }
        }
    }

    /// Compares snapshots: with the other module's at a checkpoint, with the log's where it lists
    /// one.
    fn look(&mut self, step: &mut Step) -> Result<Option<End>, (Who, GuestFault)> {
        let mut listed = self.past.facts().listed.iter();
        let listed = listed.find(|desc| desc.index == step.index);
        let checkpoint = matches!(step.kind, Kind::Body(EntryBody::Checkpoint { .. }));
        let compares = checkpoint && self.begun.compares_snapshots;
        if listed.is_none() && !compares {
            return Ok(None);
        }
        let digest = self.sides[0].digest()?.0;
        step.snapshot = Some(digest);
        if compares && let Some(difference) = self.snapshots_differ(digest)? {
            let place = Place::Entry(Box::new(step.clone()));
            return Ok(Some(End::Differs { place, difference }));
        }
        // Another module may have another snapshot of the same state.
        let ours = self.sides[0].module;
        let other = listed.filter(|desc| desc.module == ours && desc.digest != digest);
        Ok(other.map(|listed| {
            let (step, listed) = (Box::new(step.clone()), listed.clone());
            End::Diverged { step, listed }
        }))
    }

    /// The first difference of the snapshots of the two modules, of which the first one's digest
    /// is known.
    fn snapshots_differ(
        &mut self,
        digest: Digest,
    ) -> Result<Option<Difference>, (Who, GuestFault)> {
        let [first, other] = &mut self.sides[..] else { return Ok(None) };
        if other.digest()?.0 == digest {
            return Ok(None);
        }
        Ok(compare::bytes("the snapshot", &first.snapshot()?, &other.snapshot()?))
    }

    fn finish(&mut self) -> End {
        let place = Place::After(self.sides[0].player.ledger().applied());
        match self.last_look() {
            Ok((standing, None)) => End::Reached(standing),
            Ok((_, Some(difference))) => End::Differs { place, difference },
            Err(fault) => End::Faulted { place, faults: vec![fault] },
        }
    }

    fn last_look(&mut self) -> Result<(Standing, Option<Difference>), (Who, GuestFault)> {
        let standing = self.sides[0].standing()?;
        let compares = self.begun.compares_snapshots;
        let difference = if compares { self.snapshots_differ(standing.snapshot)? } else { None };
        Ok((standing, difference))
    }
}

impl Side {
    /// The digest and the length of the payload that a snapshot of this state has.
    fn digest(&mut self) -> Result<(Digest, u64), (Who, GuestFault)> {
        let envelope = self.player.ledger().encode_envelope();
        let mut out = Hashing::new(io::sink());
        out.write_all(&envelope).expect("a sink takes everything");
        self.player.snapshot_to(&mut out).map_err(|fault| (self.who, fault))?;
        Ok((out.digest(), out.bytes))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, (Who, GuestFault)> {
        self.player.snapshot().map_err(|fault| (self.who, fault))
    }

    fn standing(&mut self) -> Result<Standing, (Who, GuestFault)> {
        let (fuel, memory_bytes) = (self.player.fuel(), self.player.memory_bytes());
        let digest = self.player.digest().map_err(|fault| (self.who, fault))?;
        let (snapshot, snapshot_bytes) = self.digest()?;
        let ledger = self.player.ledger();
        let events = ledger.events();
        Ok(Standing {
            applied: ledger.applied(),
            time_ms: ledger.log_time_ms(),
            events: events.since(events.begin()).count() as u64,
            deadline_ms: self.player.deadline().map(|deadline| deadline.at_ms),
            digest,
            snapshot,
            snapshot_bytes,
            memory_bytes,
            fuel,
        })
    }
}

/// Why there is no replica from a snapshot.
enum Unrestored {
    /// No other snapshot would help.
    Module(String),
    Snapshot(String),
}

/// Restores a snapshot into a guest of each module.
fn restore(
    past: &dyn Past,
    desc: &SnapshotDesc,
    modules: &[(Who, &Module)],
    log: &Arc<GuestLog>,
) -> Result<(ModuleId, Vec<Side>), Unrestored> {
    past.verify(desc).map_err(Unrestored::Snapshot)?;
    let mut bootstrapped = desc.module;
    let mut sides = Vec::new();
    for (who, module) in modules {
        let mut input = past.open(desc).map_err(Unrestored::Snapshot)?;
        let ledger = read_ledger(&mut *input, desc)
            .map_err(|error| Unrestored::Snapshot(format!("its ledger cannot be read: {error}")))?;
        let none = || Unrestored::Snapshot("it has no bootstrap record".to_owned());
        let bootstrap = ledger.bootstrap().ok_or_else(none)?;
        bootstrapped = bootstrap.module;
        let amendments = &past.facts().amendments;
        let bootstrap = amendments.lifted(bootstrap, desc.index);
        let maker = maker_of(module, &bootstrap, log).map_err(Unrestored::Module)?;
        let header = SnapshotHeader::of(module.info(), desc.format, &ledger);
        let looks = Looks::AsServer;
        let player = Player::restored_from(&maker, looks, ledger, &header, &mut *input);
        let player = player.map_err(|fault| Unrestored::Snapshot(fault.to_string()))?;
        let player = player.amended(amendments);
        sides.push(Side { who: *who, module: module.id(), player });
    }
    Ok((bootstrapped, sides))
}

/// A replica of each module before entry 1.
fn fresh(
    past: &dyn Past,
    modules: &[(Who, &Module)],
    log: &Arc<GuestLog>,
) -> Result<(ModuleId, Vec<Side>), ReplayError> {
    let amendments = &past.facts().amendments;
    let bootstrap = amendments.lifted(&first_record(past)?, 0);
    let sides = modules.iter().map(|(who, module)| {
        let maker = maker_of(module, &bootstrap, log)?;
        let player = Player::new(&maker, Looks::AsServer).amended(amendments);
        Ok(Side { who: *who, module: module.id(), player })
    });
    let sides = sides.collect::<Result<_, String>>().map_err(ReplayError::Module)?;
    Ok((bootstrap.module, sides))
}

fn maker_of(
    module: &Module,
    bootstrap: &Bootstrap,
    log: &Arc<GuestLog>,
) -> Result<Arc<Maker>, String> {
    module.check_profile(&bootstrap.profile)?;
    let (module, bootstrap, log) = (Arc::clone(module), bootstrap.clone(), Arc::clone(log));
    Ok(Arc::new(Maker { module, bootstrap, log }))
}

fn first_record(past: &dyn Past) -> Result<Bootstrap, ReplayError> {
    let unread = |why| ReplayError::Entry { index: 1, why };
    let entries = past.entries(1, 2).map_err(unread)?;
    let first = entries.first().ok_or_else(|| unread("it is missing".to_owned()))?;
    match kind_of(first)? {
        Kind::Body(EntryBody::Bootstrap(bootstrap)) => Ok(bootstrap),
        Kind::Members | Kind::Body(_) => Err(ReplayError::NoBootstrap),
    }
}

fn kind_of(entry: &Entry) -> Result<Kind, ReplayError> {
    let unread = |why: String| ReplayError::Entry { index: entry.index, why };
    match entry.get_entry_type() {
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => Ok(Kind::Members),
        EntryType::EntryNormal => {
            let body = EntryBody::decode(entry.data.clone()).map_err(|e| unread(e.to_string()))?;
            match body {
                EntryBody::Bootstrap(_) if entry.index != 1 => {
                    Err(unread("a second bootstrap record".to_owned()))
                }
                body => Ok(Kind::Body(body)),
            }
        }
    }
}

/// What differs in an entry. Answers come first, since they are counted as the entry's calls are.
fn differs(first: &Trace, other: &Trace) -> Option<Difference> {
    let pairs = first.answers.iter().zip(&other.answers).zip(1..);
    for ((one, two), number) in pairs {
        if one != two {
            let what = format!("the answer to command {number}");
            return Some(Difference::of(what, compare::answered(one), compare::answered(two)));
        }
    }
    compare::traces(first, other)
}

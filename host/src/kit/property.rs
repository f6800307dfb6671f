//! The properties that a state machine is tested for: what they mean, and how each is checked.
//!
//! - Each check compares other instances with a [`Recording`] of the first one, entry by entry.
//! - A check stops at the first difference. The order of the checks is such that a bug is told by
//!   the property that it is about: if two instances differ on the same entries, it is no use to
//!   restore one.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::fault::{FaultClass, GuestFault};

use super::case::Case;
use super::compare::{self, Difference};
use super::player::{Looks, Maker, Player, Saved, Trace};
use super::recording::{Item, Kind, Made, Recording};
use super::seen::Seen;
use crate::guest::NoAnswer;

/// What is promised, by the contract or by the author.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Property {
    NoTrap,
    Replay,
    Query,
    Again,
    Restore,
    Kill,
    Packing,
}

impl Property {
    /// All of them, in the order in which they are checked.
    pub const ALL: [Self; 7] = [
        Self::NoTrap,
        Self::Replay,
        Self::Query,
        Self::Again,
        Self::Restore,
        Self::Kill,
        Self::Packing,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NoTrap => "no-trap",
            Self::Replay => "replay",
            Self::Query => "query",
            Self::Again => "again",
            Self::Restore => "restore",
            Self::Kill => "kill",
            Self::Packing => "packing",
        }
    }

    /// What it means if the property does not hold.
    pub fn means(self) -> &'static str {
        match self {
            Self::NoTrap => {
                "a call failed: on a cluster every replica would fail at the same entry, and the \
                 group would stand still; answer `rejected` instead"
            }
            Self::Replay => {
                "two instances were given the same entries and differ, although a component has \
                 nothing else to go by: most likely Lockstep is wrong, so report it with the \
                 component. The order of a hash table, or an address, shows as `restore` instead"
            }
            Self::Query => {
                "an instance that was asked differs from one that was not: a query changes the \
                 state, and queries run on one replica only"
            }
            Self::Again => {
                "snapshots of one state differ, or taking one changes it: write what the state is, \
                 in a defined order, and not how it came about"
            }
            Self::Restore => {
                "an instance that restored a snapshot goes on in another way: the snapshot lacks \
                 something that matters later, or `restore` does not rebuild it, such as a field, \
                 a cache, a static or what the timer was set for"
            }
            Self::Kill => {
                "an instance that was rebuilt from a snapshot and the entries after it differs: \
                 what holds for `restore` does not hold if it is done again"
            }
            Self::Packing => {
                "it matters how commands are packed into entries, although the opposite is \
                 claimed: something is done once for an entry instead of once for a command, or \
                 an answer depends on `context.index` or the seed"
            }
        }
    }
}

/// A property does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    pub property: Property,
    /// The step at which it showed, from 1 on; 0 is `init`.
    pub step: usize,
    /// Which instance differs from the first one, or failed.
    pub who: &'static str,
    pub how: How,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    Fault(GuestFault),
    Differs(Difference),
}

/// Why a case was not carried out to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    Broken(Box<Broken>),
    /// This machine could not do it, which says nothing about the guest.
    Host(GuestFault),
}

impl Broken {
    /// What it means that the property does not hold here.
    pub fn means(&self) -> &'static str {
        match &self.how {
            How::Fault(fault) if fault.call == "query" => {
                "a query failed: no replica breaks, but nobody gets an answer; answer with the \
                 error case instead, and leave to `apply` what a query may not do"
            }
            How::Fault(_) | How::Differs(_) => self.property.means(),
        }
    }

    /// A fault of an instance.
    pub fn fault(step: usize, who: &'static str, fault: GuestFault) -> Stop {
        if fault.class == FaultClass::Host {
            return Stop::Host(fault);
        }
        let how = How::Fault(fault);
        Stop::Broken(Box::new(Self { property: Property::NoTrap, step, who, how }))
    }

    /// Whether both are most likely the same bug.
    pub fn resembles(&self, other: &Self) -> bool {
        self.property == other.property
            && match (&self.how, &other.how) {
                (How::Fault(one), How::Fault(two)) => {
                    one.call == two.call && one.class == two.class
                }
                (How::Differs(_), How::Differs(_)) => true,
                (How::Fault(_), How::Differs(_)) | (How::Differs(_), How::Fault(_)) => false,
            }
    }
}

/// Checks properties of one module's cases.
pub struct Checker<'a> {
    pub maker: &'a Arc<Maker>,
    pub independent_of_packing: bool,
}

/// One check under way: other instances follow the first one.
struct Check<'a> {
    maker: &'a Arc<Maker>,
    recording: &'a Recording,
    property: Property,
    who: &'static str,
}

impl Checker<'_> {
    pub fn properties(&self) -> impl Iterator<Item = Property> {
        let packing = self.independent_of_packing;
        Property::ALL.into_iter().filter(move |it| packing || *it != Property::Packing)
    }

    /// Checks all properties with a case.
    pub fn check(&self, case: &Case) -> Result<Seen, Stop> {
        let recording = Recording::make(self.maker, case)?;
        let mut seen = Seen::of(&recording);
        for property in self.properties() {
            self.check_property(&recording, property, &mut seen)?;
        }
        Ok(seen)
    }

    /// Checks again what did not hold; with a smaller case, mostly.
    pub fn check_only(&self, case: &Case, property: Property) -> Result<Seen, Stop> {
        if property == Property::NoTrap {
            return self.check(case);
        }
        let recording = Recording::make(self.maker, case)?;
        let mut seen = Seen::of(&recording);
        self.check_property(&recording, property, &mut seen)?;
        Ok(seen)
    }

    fn check_property(
        &self,
        recording: &Recording,
        property: Property,
        seen: &mut Seen,
    ) -> Result<(), Stop> {
        let check = |who| Check { maker: self.maker, recording, property, who };
        match property {
            Property::NoTrap => Ok(()),
            Property::Replay => check("a second instance").replay(),
            Property::Query => check("the instance that was asked").query(),
            Property::Again => check("the instance of which snapshots were taken").again(),
            Property::Restore => check("the restored instance").restore(seen),
            Property::Kill => check("the rebuilt instance").kill(),
            Property::Packing => check("the instance with an entry for each command").packing(),
        }
    }
}

impl Check<'_> {
    fn replay(&self) -> Result<(), Stop> {
        let mut player = Player::new(self.maker, Looks::AsServer);
        self.follow(&mut player, &self.recording.items)?;
        self.end(&mut player)
    }

    fn query(&self) -> Result<(), Stop> {
        if !self.recording.items.iter().any(|item| matches!(item.kind, Kind::Query(_))) {
            return Ok(());
        }
        let mut player = Player::new(self.maker, Looks::Live);
        for item in &self.recording.items {
            match &item.kind {
                Kind::Entry { .. } => drop(self.step(&mut player, item)?),
                Kind::Query(request) => drop(self.ask(&mut player, item, request)?),
                Kind::Snapshot | Kind::Kill => {}
            }
        }
        self.end(&mut player)
    }

    /// Takes each snapshot twice, of the live instance, which then goes on.
    fn again(&self) -> Result<(), Stop> {
        let mut player = Player::new(self.maker, Looks::Live);
        for item in &self.recording.items {
            match &item.kind {
                Kind::Entry { .. } => drop(self.step(&mut player, item)?),
                Kind::Snapshot => self.snapshot_again(&mut player, item)?,
                Kind::Query(_) | Kind::Kill => {}
            }
        }
        self.end(&mut player)
    }

    fn snapshot_again(&self, player: &mut Player, item: &Item) -> Result<(), Stop> {
        let digest = self.ok(item, player.digest())?;
        let first = self.ok(item, player.save())?;
        let second = self.ok(item, player.snapshot())?;
        self.equal(item, compare::bytes("the next snapshot", &first.bytes, &second))?;
        let later = self.ok(item, player.digest())?;
        self.equal(item, compare::digests(digest.as_ref(), later.as_ref()))?;
        let check = Check { who: "the restored instance", ..*self };
        let restored = Player::restored(self.maker, Looks::AsServer, &first);
        let mut restored = check.ok(item, restored)?;
        let third = check.ok(item, restored.snapshot())?;
        check.equal(item, compare::bytes("its snapshot", &first.bytes, &third))
    }

    /// Goes on from each snapshot in another instance, which also answers queries like the first.
    fn restore(&self, seen: &mut Seen) -> Result<(), Stop> {
        let (saved, answers) = self.saved()?;
        for (position, saved, digest) in saved {
            let item = &self.recording.items[position];
            let restored = Player::restored(self.maker, Looks::AsServer, &saved);
            let mut player = self.ok(item, restored)?;
            let restored = self.ok(item, player.digest())?;
            self.equal(item, compare::digests(digest.as_ref(), restored.as_ref()))?;
            let rest = self.recording.items.iter().zip(&answers).skip(position + 1);
            for (item, first) in rest {
                match (&item.kind, first) {
                    (Kind::Entry { trace, .. }, _) => {
                        let fuel = self.step(&mut player, item)?.fuel;
                        seen.fuel_drift_max = seen.fuel_drift_max.max(trace.fuel.abs_diff(fuel));
                    }
                    (Kind::Query(request), Some(first)) => {
                        let answer = self.ask(&mut player, item, request)?;
                        self.equal(item, compare::answers(first, &answer))?;
                    }
                    (Kind::Query(_) | Kind::Snapshot | Kind::Kill, _) => {}
                }
            }
            self.end(&mut player)?;
            seen.restores += 1;
            seen.memory_bytes_max = seen.memory_bytes_max.max(player.memory_bytes());
            seen.snapshot_bytes_max = seen.snapshot_bytes_max.max(saved.bytes.len() as u64);
        }
        Ok(())
    }

    /// The snapshots of an instance, each with the position of its item and the digest there, and
    /// the instance's answers to queries.
    fn saved(&self) -> Result<(Vec<Taken>, Vec<Option<Answer>>), Stop> {
        let check = Check { who: "the instance of which snapshots were taken", ..*self };
        let (mut saved, mut answers) = (Vec::new(), Vec::new());
        let mut player = Player::new(self.maker, Looks::AsServer);
        for (position, item) in self.recording.items.iter().enumerate() {
            let answer = match &item.kind {
                Kind::Entry { entry, .. } => {
                    check.ok(item, player.play(entry))?;
                    None
                }
                Kind::Query(request) => Some(check.ask(&mut player, item, request)?),
                Kind::Snapshot => {
                    let taken = check.ok(item, player.save())?;
                    saved.push((position, taken, check.ok(item, player.digest())?));
                    None
                }
                Kind::Kill => None,
            };
            answers.push(answer);
        }
        Ok((saved, answers))
    }

    fn kill(&self) -> Result<(), Stop> {
        let items = &self.recording.items;
        if !items.iter().any(|item| matches!(item.kind, Kind::Kill)) {
            return Ok(());
        }
        let mut player = Player::new(self.maker, Looks::AsServer);
        let mut last: Option<(usize, Saved)> = None;
        for (position, item) in items.iter().enumerate() {
            match &item.kind {
                Kind::Entry { .. } => drop(self.step(&mut player, item)?),
                Kind::Query(_) => {}
                Kind::Snapshot => last = Some((position + 1, self.ok(item, player.save())?)),
                Kind::Kill => {
                    let looks = Looks::AsServer;
                    let next = match &last {
                        Some((next, saved)) => {
                            player = self.ok(item, Player::restored(self.maker, looks, saved))?;
                            *next
                        }
                        None => {
                            player = Player::new(self.maker, looks);
                            0
                        }
                    };
                    self.follow(&mut player, &items[next..position])?;
                }
            }
        }
        self.end(&mut player)
    }

    fn packing(&self) -> Result<(), Stop> {
        let mut player = Player::new(self.maker, Looks::AsServer);
        for item in &self.recording.items {
            let Kind::Entry { entry, made, trace } = &item.kind else { continue };
            let other = match made {
                Made::Init => self.ok(item, player.play(entry))?,
                Made::Commands { time_ms, commands } => {
                    let mut parts = Vec::new();
                    for command in commands {
                        let entry = player.entry_of(*time_ms, std::slice::from_ref(command));
                        parts.push(self.ok(item, player.play(&entry))?);
                    }
                    Trace::joined(parts)
                }
                Made::Wake { time_ms } => match player.wake_entry(*time_ms) {
                    Some(entry) => self.ok(item, player.play(&entry))?,
                    None => Trace::default(),
                },
            };
            self.equal(item, compare::traces(trace, &other))?;
        }
        self.end(&mut player)
    }

    /// Gives an instance entries, which must bring about the same as before.
    fn follow(&self, player: &mut Player, items: &[Item]) -> Result<(), Stop> {
        for item in items {
            self.step(player, item)?;
        }
        Ok(())
    }

    fn step(&self, player: &mut Player, item: &Item) -> Result<Trace, Stop> {
        let Kind::Entry { entry, trace, .. } = &item.kind else { return Ok(Trace::default()) };
        let other = self.ok(item, player.play(entry))?;
        self.equal(item, compare::traces(trace, &other))?;
        Ok(other)
    }

    fn ask(&self, player: &mut Player, item: &Item, request: &[u8]) -> Result<Answer, Stop> {
        self.ok(item, player.query(request))
    }

    /// Compares the states at the end.
    fn end(&self, player: &mut Player) -> Result<(), Stop> {
        let Self { recording, .. } = self;
        let Some(item) = recording.items.last() else { return Ok(()) };
        let snapshot = self.ok(item, player.snapshot())?;
        self.equal(item, compare::bytes("the snapshot", &recording.snapshot, &snapshot))?;
        let digest = self.ok(item, player.digest())?;
        self.equal(item, compare::digests(recording.digest.as_ref(), digest.as_ref()))
    }

    fn ok<T>(&self, item: &Item, result: Result<T, GuestFault>) -> Result<T, Stop> {
        result.map_err(|fault| Broken::fault(item.step, self.who, fault))
    }

    fn equal(&self, item: &Item, difference: Option<Difference>) -> Result<(), Stop> {
        let Some(difference) = difference else { return Ok(()) };
        let (property, who, how) = (self.property, self.who, How::Differs(difference));
        Err(Stop::Broken(Box::new(Broken { property, step: item.step, who, how })))
    }
}

/// A snapshot with the position of its item, and the digest there.
type Taken = (usize, Saved, Option<Bytes>);

/// What a query is answered.
type Answer = Result<Bytes, NoAnswer>;

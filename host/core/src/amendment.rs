//! Amendments: entries that take a halted group on, because they change what an earlier entry does.
//!
//! A replica that halts before the entry at `i` looks no further on its own, but entries go on
//! being committed. An amendment that is committed at `j`, after `i`, holds for `i` as well: the
//! replica builds its guest again, with the amendment known from the start. So the state at `j` and
//! after it is a function of the log, the same on every replica:
//!
//! - [`Change::Skip`]: the entry at `i` does not reach the guest. It still advances log time and
//!   counts for sessions, whose calls are answered [`crate::fault::Rejection::Skipped`].
//! - [`Change::Limits`]: the group's limits from `j` on. Entries before `j` borrow what is raised,
//!   and never what is lowered: what they did under the old limits they must be able to do again.
//! - [`Change::Module`]: before the entry at `i`, the state moves into another module, which
//!   applies it.
//!
//! A recovery point at or after `i` and before `j` that contains what was skipped, or what the old
//! module did at `i`, is *undone*: no replica may start from it. Only a replica that was given up
//! for the sake of the amendment (`--abandon`) can have taken one.
//!
//! A replica keeps an amendment in its [`RecoveryState`](crate::recovery_state::RecoveryState),
//! from the moment that it hands the entry over, for as long as a guest can be built from something
//! before `j`: a recovery point, or a log that begins with entry 1.

use crate::codec::{DecodeError, Reader, Write};
use crate::entry::{Bootstrap, Limits, Profile};
use crate::ids::ModuleId;
use crate::limits;
use crate::mutant::planted;

/// What an amendment changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The entry at this index does not reach the guest.
    Skip { index: u64 },
    /// The group has other limits.
    Limits(Limits),
    /// The entry at this index, and all that follow, are applied by this module.
    Module { index: u64, module: ModuleId },
}

impl Change {
    /// The earlier entry of which this changes what it does.
    pub fn reaches_back_to(&self) -> Option<u64> {
        match self {
            Self::Skip { index } | Self::Module { index, .. } => Some(*index),
            Self::Limits(_) => None,
        }
    }
}

/// A change, and the index of the entry that made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Amendment {
    pub at: u64,
    pub change: Change,
}

/// The amendments that a replica has to know before it builds a guest; by ascending index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Amendments(Vec<Amendment>);

impl Amendments {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Amendment> {
        self.0.iter()
    }

    /// Those that were made after the entry at `index`.
    pub fn after(&self, index: u64) -> impl Iterator<Item = &Amendment> {
        self.0.iter().filter(move |it| it.at > index)
    }

    /// The index of the newest one; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.0.last().map_or(0, |last| last.at)
    }

    /// Whether the entry at `index` does not reach the guest.
    pub fn skips(&self, index: u64) -> bool {
        let skips = |it: &Amendment| it.change == Change::Skip { index };
        self.0.iter().any(skips) && !planted("skip_not_kept")
    }

    /// The module into which the state moves before the entry at `index`, if it does. What was
    /// decided last of that entry counts: one that is skipped after all moves nothing.
    pub fn module_from(&self, index: u64) -> Option<ModuleId> {
        let of_entry = |it: &&Amendment| it.change.reaches_back_to() == Some(index);
        match self.0.iter().rev().find(of_entry)?.change {
            Change::Module { module, .. } => Some(module),
            Change::Skip { .. } | Change::Limits(_) => None,
        }
    }

    /// Whether a snapshot at `index`, which may have been taken before the amendments were known,
    /// contains what an entry no longer does.
    pub fn undo(&self, index: u64) -> bool {
        let undoes = |it: &Amendment| {
            it.change.reaches_back_to().is_some_and(|from| (from..it.at).contains(&index))
        };
        self.0.iter().any(undoes) && !planted("start_from_what_is_undone")
    }

    /// What a guest that has applied the entries up to `applied` is built with, if its ledger has
    /// this record: limits that are raised later hold already.
    pub fn lifted(&self, record: &Bootstrap, applied: u64) -> Bootstrap {
        Bootstrap { profile: self.lift(&record.profile, applied), ..record.clone() }
    }

    pub(crate) fn lift(&self, profile: &Profile, applied: u64) -> Profile {
        self.after(applied).fold(*profile, |profile, it| match it.change {
            Change::Limits(limits) => profile.raised_to(&limits),
            Change::Skip { .. } | Change::Module { .. } => profile,
        })
    }

    /// Adds the newest one. Beyond the bound the oldest is forgotten: a replica that needs it halts
    /// where the others go on, and takes a snapshot of theirs.
    pub fn add(&mut self, amendment: Amendment) {
        debug_assert!(self.last() < amendment.at, "they are in order");
        if self.0.len() >= limits::AMENDMENTS_MAX {
            self.0.remove(0);
        }
        self.0.push(amendment);
    }

    /// Forgets those up to this index, which nothing is built from any more.
    pub(crate) fn forget_up_to(&mut self, oldest: u64) {
        self.0.retain(|it| it.at > oldest);
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_count_within(self.0.len(), limits::AMENDMENTS_MAX);
        for Amendment { at, change } in &self.0 {
            out.put_u64(*at);
            match change {
                Change::Skip { index } => {
                    out.put_u8(0);
                    out.put_u64(*index);
                }
                Change::Limits(limits) => {
                    out.put_u8(1);
                    limits.encode(out);
                }
                Change::Module { index, module } => {
                    out.put_u8(2);
                    out.put_u64(*index);
                    out.put_raw(&module.0);
                }
            }
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut all = Self::default();
        for _ in 0..reader.count(limits::AMENDMENTS_MAX)? {
            let at = reader.u64()?;
            let change = match reader.u8()? {
                0 => Change::Skip { index: reader.u64()? },
                1 => Change::Limits(Limits::decode(reader)?),
                2 => Change::Module { index: reader.u64()?, module: ModuleId(reader.array()?) },
                other => return Err(reader.unknown(u64::from(other))),
            };
            if all.last() >= at {
                return Err(reader.invalid("its amendments are out of order"));
            }
            all.0.push(Amendment { at, change });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKIP: Change = Change::Skip { index: 4 };
    const MODULE: Change = Change::Module { index: 4, module: ModuleId([2; 32]) };
    const OTHER: Change = Change::Module { index: 4, module: ModuleId([3; 32]) };
    const LIMITS: Change =
        Change::Limits(Limits { fuel_entry: Some(7), fuel_command: None, memory_bytes: None });

    fn amendments(changes: &[Change]) -> Amendments {
        let mut all = Amendments::default();
        for (at, change) in (10..).zip(changes) {
            all.add(Amendment { at, change: *change });
        }
        all
    }

    #[test]
    fn what_is_encoded_decodes() {
        let all = amendments(&[SKIP, LIMITS, MODULE, OTHER]);
        let mut bytes = Vec::new();
        all.encode(&mut bytes);
        let mut reader = Reader::new(bytes.into(), "amendments");
        assert_eq!(Amendments::decode(&mut reader), Ok(all));
        reader.finish().expect("it is read whole");
    }

    #[test]
    fn what_was_decided_last_of_an_entry_counts() {
        let check = |changes: &[Change], module: Option<u8>, skips| {
            let all = amendments(changes);
            let module = module.map(|number| ModuleId([number; 32]));
            assert_eq!((all.module_from(4), all.skips(4)), (module, skips), "{changes:?}");
            assert_eq!((all.module_from(5), all.skips(5)), (None, false));
        };
        check(&[], None, false);
        check(&[LIMITS], None, false);
        check(&[MODULE], Some(2), false);
        check(&[MODULE, LIMITS], Some(2), false);
        check(&[MODULE, OTHER], Some(3), false);
        check(&[MODULE, SKIP], None, true);
    }

    #[test]
    fn snapshots_between_an_entry_and_what_changed_it_are_undone() {
        for (change, undone) in [(SKIP, true), (MODULE, true), (LIMITS, false)] {
            let all = amendments(&[change]);
            assert_eq!([3, 4, 9, 10].map(|at| all.undo(at)), [false, undone, undone, false]);
        }
    }
}

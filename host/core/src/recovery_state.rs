//! [`RecoveryState`]: the one record from which a replica starts again.
//!
//! It is written whole, in the same atomic batch as the entries that it refers to, and at the head
//! of each log segment, so that deleting segments never loses it. A snapshot is a recovery point if
//! and only if the durable `RecoveryState` lists it.
//!
//! Invariants, checked by [`RecoveryState::validate`]:
//! - a snapshot is listed, or the log starts at 1;
//! - the commit index is not below the newest listed snapshot's index;
//! - the floor is not above the commit index;
//! - the log starts no later than the entry after the oldest listed snapshot;
//! - snapshots are listed newest first, each index once;
//! - a replica that has a log knows its group's lineage.
//!
//! ```text
//! state = version u8 (1 to 3) · name bytes · replica u64 · boot u64 ·
//!         stage u8 (0 met, 1 hosted, 2 removed) · lineage 16 (0 while not known) ·
//!         term u64 · vote u64 · commit u64 · configuration · configuration index u64 ·
//!         floor u64 · first index u64 · previous term u64 · count u32 · descs · amendments ·
//!         unapplied u64 · diverged u64
//! ```
//! Version 1 ends with the snapshots, version 2 with `unapplied`. The lowest version that holds all
//! there is to say is written, so that the release before can read it.

use bytes::Bytes;

use crate::amendment::{Amendment, Amendments};
use crate::codec::{DecodeError, Reader, Write};
use crate::ids::{Lineage, ReplicaId};
use crate::limits;
use crate::mutant::{plant, planted};
use crate::snapshot::{Configuration, SnapshotDesc};

const VERSION: u8 = 3;
const VERSION_OF_AMENDMENTS: u8 = 2;
const VERSION_OF_SNAPSHOTS: u8 = 1;
/// Snapshots that one state may list: the recovery points, with a reserve.
const SNAPSHOTS_MAX: usize = limits::RECOVERY_POINTS + 2;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveryState {
    /// The group's name, by which a group that is no longer configured can be reported.
    pub group: String,
    pub replica: ReplicaId,
    /// How often this replica was started; durable before its first frame leaves.
    pub boot: u64,
    /// False while the replica has an id but no log: it may neither vote nor lead.
    pub bootstrapped: bool,
    /// The group removed this replica: it takes no further part.
    pub removed: bool,
    /// The lineage of the group; known as soon as there is a log.
    pub lineage: Option<Lineage>,
    pub term: u64,
    /// The replica that this one voted for in `term`; 0 if it did not vote.
    pub vote: u64,
    pub commit: u64,
    pub configuration: Configuration,
    /// The index of the entry that made `configuration`. A replay skips changes up to it.
    pub configuration_index: u64,
    /// The index up to which entries were handed to the apply lane; raft calls it applied. After a
    /// start, raft hands out the entries above it again.
    pub floor: u64,
    /// The index of the log's first entry.
    pub first_index: u64,
    /// The term of the entry before `first_index`.
    pub previous_term: u64,
    /// Recovery points, newest first.
    pub snapshots: Vec<SnapshotDesc>,
    /// The amendments up to the floor that something is missing from which a guest can be built.
    pub amendments: Amendments,
    /// An entry at which this replica is halted and which it has never applied; 0 if there is none.
    /// It says so for one start: from then on, the entry may be applied.
    pub unapplied: u64,
    /// The index of the snapshot by which this replica was found to have diverged; 0 if it was not.
    /// It starts from none of its recovery points, and serves none.
    pub diverged: u64,
}

impl RecoveryState {
    /// The state of a replica that has an id and no log.
    pub fn blank(group: &str, replica: ReplicaId) -> Self {
        Self {
            group: group.to_owned(),
            replica,
            boot: 0,
            bootstrapped: false,
            removed: false,
            lineage: None,
            term: 0,
            vote: 0,
            commit: 0,
            configuration: Configuration::default(),
            configuration_index: 0,
            floor: 0,
            first_index: 1,
            previous_term: 0,
            snapshots: Vec::new(),
            amendments: Amendments::default(),
            unapplied: 0,
            diverged: 0,
        }
    }

    /// The newest recovery point.
    pub fn newest(&self) -> Option<&SnapshotDesc> {
        self.snapshots.first()
    }

    /// Guests are built from recovery points, and from the entries after this one: the oldest
    /// recovery point, or 0 if the log begins with entry 1.
    pub fn built_from(&self) -> u64 {
        match self.first_index {
            1 => 0,
            _later => self.snapshots.last().map_or(0, |desc| desc.index),
        }
    }

    /// Counts a start. Returns the entry at which the replica was halted before, if it had never
    /// applied it.
    pub(crate) fn start(&mut self) -> u64 {
        self.boot += 1;
        plant!("forget_that_it_diverged" does self.diverged = 0);
        std::mem::take(&mut self.unapplied)
    }

    /// The replica is halted at this entry, which it has never applied; 0 if it is not any more.
    pub(crate) fn never_applied(&mut self, entry: u64) {
        self.unapplied = entry;
    }

    /// The replica has a log from now on, which begins with entry 1 if it bootstraps the group.
    pub(crate) fn begin(&mut self, lineage: Lineage) {
        (self.bootstrapped, self.lineage) = (true, Some(lineage));
    }

    /// Entry 1 counts as committed in term 1 by these voters.
    pub(crate) fn bootstrap(&mut self, initial_voters: Configuration) {
        (self.term, self.commit) = (1, 1);
        self.configure(initial_voters, 1);
    }

    /// The term, vote and commit index that raft wants durable before it answers.
    pub(crate) fn promise(&mut self, term: u64, vote: u64, commit: u64) {
        (self.term, self.vote, self.commit) = (term, vote, commit);
    }

    /// The entry at `index` made this configuration.
    pub(crate) fn configure(&mut self, configuration: Configuration, index: u64) {
        (self.configuration, self.configuration_index) = (configuration, index);
    }

    /// Entries up to `index` were handed to the apply lane.
    pub(crate) fn deliver(&mut self, index: u64) {
        self.floor = index;
    }

    /// The entry that was handed over at `amendment.at` is an amendment.
    pub(crate) fn amend(&mut self, amendment: Amendment) {
        self.amendments.add(amendment);
    }

    /// This replica's snapshot at `index` is another one than that of a majority.
    pub(crate) fn diverge(&mut self, index: u64) {
        self.diverged = index;
    }

    /// A peer's snapshot, which is listed next, takes the place of what has diverged.
    pub(crate) fn repair(&mut self) {
        self.diverged = 0;
    }

    /// Whether nobody may start from this replica's recovery point at `index`.
    pub fn distrusts(&self, index: u64) -> bool {
        let diverged = self.diverged > 0 && !planted("serve_what_diverged");
        diverged || self.amendments.undo(index)
    }

    /// Lists `snapshots` and cuts the log; `previous_term` is the term of the entry before the log.
    pub(crate) fn list(
        &mut self,
        snapshots: Vec<SnapshotDesc>,
        first_index: u64,
        previous_term: u64,
    ) {
        self.snapshots = snapshots;
        (self.first_index, self.previous_term) = (first_index, previous_term);
        self.amendments.forget_up_to(self.built_from());
    }

    /// A peer's snapshot takes the place of the log.
    pub(crate) fn install(&mut self, snapshot: SnapshotDesc) {
        self.repair();
        self.commit = self.commit.max(snapshot.index);
        self.deliver(snapshot.index);
        self.configure(snapshot.configuration.clone(), snapshot.index);
        let (index, term) = (snapshot.index, snapshot.term);
        self.list(vec![snapshot], index + 1, term);
    }

    /// The group removed this replica. Otherwise it would ask to join again at its next start.
    pub(crate) fn remove(&mut self) {
        self.removed = true;
    }

    /// Says which invariant of the module is broken, if one is.
    pub fn validate(&self) -> Result<(), String> {
        let newest = self.newest().map_or(0, |desc| desc.index);
        let oldest = self.snapshots.last().map_or(0, |desc| desc.index);
        if self.bootstrapped != self.lineage.is_some() || (self.removed && !self.bootstrapped) {
            return Err("a log, a lineage and a removal do not go together".to_owned());
        }
        if self.snapshots.is_empty() && self.first_index != 1 {
            return Err(format!(
                "no snapshot is listed, but the log starts at {}",
                self.first_index
            ));
        }
        if self.commit < newest {
            return Err(format!("commit {} is below the snapshot at {newest}", self.commit));
        }
        if self.floor > self.commit {
            return Err(format!("floor {} is above commit {}", self.floor, self.commit));
        }
        if self.amendments.iter().any(|it| !(self.built_from() + 1..=self.floor).contains(&it.at)) {
            return Err(
                "an amendment lies before all that is built from, or above the floor".into()
            );
        }
        if self.first_index > oldest + 1 {
            return Err(format!(
                "the log starts at {}, which leaves a gap after the snapshot at {oldest}",
                self.first_index
            ));
        }
        if self.snapshots.len() > SNAPSHOTS_MAX {
            return Err(format!("{} snapshots are listed", self.snapshots.len()));
        }
        if !self.snapshots.windows(2).all(|pair| pair[0].index > pair[1].index) {
            return Err("snapshots are not listed newest first".into());
        }
        Ok(())
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let amended = !self.amendments.is_empty() || self.unapplied > 0;
        let version = match (amended, self.diverged) {
            (false, 0) => VERSION_OF_SNAPSHOTS,
            (true, 0) => VERSION_OF_AMENDMENTS,
            _diverged => VERSION,
        };
        out.put_u8(version);
        out.put_bytes_within(self.group.as_bytes(), limits::GROUP_NAME_BYTES_MAX);
        out.put_u64(self.replica.0);
        out.put_u64(self.boot);
        out.put_u8(u8::from(self.bootstrapped) + u8::from(self.removed));
        out.put_raw(&self.lineage.map_or([0; 16], |lineage| lineage.0));
        out.put_u64(self.term);
        out.put_u64(self.vote);
        out.put_u64(self.commit);
        self.configuration.encode(out);
        out.put_u64(self.configuration_index);
        out.put_u64(self.floor);
        out.put_u64(self.first_index);
        out.put_u64(self.previous_term);
        out.put_count_within(self.snapshots.len(), SNAPSHOTS_MAX);
        self.snapshots.iter().for_each(|desc| desc.encode(out));
        if version >= VERSION_OF_AMENDMENTS {
            self.amendments.encode(out);
            out.put_u64(self.unapplied);
        }
        if version >= VERSION {
            out.put_u64(self.diverged);
        }
    }

    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "recovery state");
        let version = reader.version_from(VERSION_OF_SNAPSHOTS, VERSION)?;
        let group = reader.string(limits::GROUP_NAME_BYTES_MAX)?;
        let (replica, boot) = (ReplicaId(reader.u64()?), reader.u64()?);
        let (bootstrapped, removed) = match reader.u8()? {
            0 => (false, false),
            1 => (true, false),
            2 => (true, true),
            other => return Err(reader.unknown(u64::from(other))),
        };
        let mut state = Self {
            group,
            replica,
            boot,
            bootstrapped,
            removed,
            lineage: Some(Lineage(reader.array()?)).filter(|lineage| lineage.0 != [0; 16]),
            term: reader.u64()?,
            vote: reader.u64()?,
            commit: reader.u64()?,
            configuration: Configuration::decode(&mut reader)?,
            configuration_index: reader.u64()?,
            floor: reader.u64()?,
            first_index: reader.u64()?,
            previous_term: reader.u64()?,
            snapshots: {
                let count = reader.count(SNAPSHOTS_MAX)?;
                (0..count).map(|_| SnapshotDesc::decode(&mut reader)).collect::<Result<_, _>>()?
            },
            amendments: Amendments::default(),
            unapplied: 0,
            diverged: 0,
        };
        if version >= VERSION_OF_AMENDMENTS {
            state.amendments = Amendments::decode(&mut reader)?;
            state.unapplied = reader.u64()?;
        }
        if version >= VERSION {
            state.diverged = reader.u64()?;
        }
        state.validate().map_err(|why| reader.invalid(why))?;
        reader.finish()?;
        Ok(state)
    }
}

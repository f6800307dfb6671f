//! [`SnapshotDesc`]: the only name of a snapshot. By its digest it denotes exactly one byte string.
//!
//! ```text
//! desc = version u8 (1) · term u64 · index u64 · length u64 · digest 32 · module 32 ·
//!        format u32 · configuration
//! configuration = 4 lists of replica ids (voters, learners, outgoing voters, next learners),
//!                 each a u32 count and u64s · auto leave u8
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::ConfState;

use crate::codec::{DecodeError, Reader, Write};
use crate::ids::{Digest, ModuleId, NodeId, ReplicaId};
use crate::limits;

const VERSION: u8 = 1;

/// Denotes one immutable snapshot object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotDesc {
    pub term: u64,
    pub index: u64,
    /// Bytes of payload: the envelope and the guest's stream, without block checksums.
    pub length: u64,
    pub digest: Digest,
    pub module: ModuleId,
    /// The guest's own snapshot format number.
    pub format: u32,
    /// The configuration as of `index`.
    pub configuration: Configuration,
}

/// The members of a group: raft's `ConfState`, with ordered sets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    pub voters: BTreeSet<ReplicaId>,
    pub learners: BTreeSet<ReplicaId>,
    /// The voters of the configuration that is being left; not empty while joint.
    pub voters_outgoing: BTreeSet<ReplicaId>,
    pub learners_next: BTreeSet<ReplicaId>,
    pub auto_leave: bool,
}

impl Configuration {
    pub fn of_voters(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `replica` has any role: voter, learner, or one that is being removed.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.replicas().any(|id| id == replica)
    }

    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// All replicas, in ascending order within each role; one with two roles comes twice.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        lists.into_iter().flatten().copied()
    }

    pub fn of_node(&self, node: NodeId) -> BTreeSet<ReplicaId> {
        self.replicas().filter(|id| id.node() == node).collect()
    }

    pub fn to_raft(&self) -> ConfState {
        let list = |ids: &BTreeSet<ReplicaId>| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        let mut state = ConfState::default();
        state.set_voters(list(&self.voters));
        state.set_learners(list(&self.learners));
        state.set_voters_outgoing(list(&self.voters_outgoing));
        state.set_learners_next(list(&self.learners_next));
        state.set_auto_leave(self.auto_leave);
        state
    }

    pub fn from_raft(state: &ConfState) -> Self {
        let set = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
        Self {
            voters: set(state.get_voters()),
            learners: set(state.get_learners()),
            voters_outgoing: set(state.get_voters_outgoing()),
            learners_next: set(state.get_learners_next()),
            auto_leave: state.get_auto_leave(),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        for ids in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            out.put_count_within(ids.len(), limits::REPLICAS_MAX);
            ids.iter().for_each(|id| out.put_u64(id.0));
        }
        out.put_u8(u8::from(self.auto_leave));
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut list = || -> Result<BTreeSet<ReplicaId>, DecodeError> {
            let count = reader.count(limits::REPLICAS_MAX)?;
            (0..count).map(|_| reader.u64().map(ReplicaId)).collect()
        };
        let (voters, learners, voters_outgoing, learners_next) =
            (list()?, list()?, list()?, list()?);
        let auto_leave = reader.u8()? != 0;
        Ok(Self { voters, learners, voters_outgoing, learners_next, auto_leave })
    }
}

impl SnapshotDesc {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(VERSION);
        out.put_u64(self.term);
        out.put_u64(self.index);
        out.put_u64(self.length);
        out.put_raw(&self.digest.0);
        out.put_raw(&self.module.0);
        out.put_u32(self.format);
        self.configuration.encode(out);
    }

    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(192);
        self.encode(&mut out);
        out.into()
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        reader.version(VERSION)?;
        Ok(Self {
            term: reader.u64()?,
            index: reader.u64()?,
            length: reader.u64()?,
            digest: Digest(reader.array()?),
            module: ModuleId(reader.array()?),
            format: reader.u32()?,
            configuration: Configuration::decode(reader)?,
        })
    }

    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "snapshot descriptor");
        let desc = Self::decode(&mut reader)?;
        reader.finish()?;
        Ok(desc)
    }
}

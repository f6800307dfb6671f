//! Disaster recovery by hand: one replica becomes the whole group, because the others are lost.
//!
//! - Everything in its log counts as committed.
//! - Entries in the log remove the other replicas. A replica that joins later, from this log or
//!   from an older snapshot and the entries after it, thus arrives at the same configuration as
//!   this one. If only this replica's state said so, newcomers would still count the lost replicas
//!   as voters.
//! - The group gets a new lineage and a higher term, so that nothing from the old group is accepted
//!   any more.

use std::collections::BTreeSet;

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType,
};

use crate::group::membership::{change, single};
use crate::ids::{GroupId, Lineage, ReplicaId};
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::snapshot::Configuration;
use crate::wal::LogJob;

/// Returns what to write into the log of `state`, which ends at `last`. `rest` holds the entries
/// after the floor: their configuration changes are not in `state` yet.
pub fn alone(
    state: &RecoveryState,
    last: u64,
    rest: &[Entry],
    lineage: Lineage,
) -> Result<LogJob, String> {
    let term = state.term + 1;
    let changes = if planted("alone_in_state_only") { Vec::new() } else { changes(state, rest)? };
    let entry = |(index, change): (u64, ConfChangeV2)| {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        (entry.index, entry.term) = (index, term);
        entry.data = change.write_to_bytes().expect("it is written to memory").into();
        entry
    };
    let entries: Vec<Entry> = (last + 1..).zip(changes).map(entry).collect();
    let last = last + entries.len() as u64;
    let state = RecoveryState {
        configuration: Configuration::of_voters([state.replica]),
        configuration_index: last,
        commit: last,
        lineage: Some(lineage),
        term,
        vote: 0,
        // The group that removed this replica no longer exists.
        removed: false,
        // Nor does the majority that it differed from.
        diverged: 0,
        ..state.clone()
    };
    Ok(LogJob { group: GroupId::of_name(&state.group), state, entries })
}

/// The changes after which this replica is alone, whatever configuration the log led to before.
fn changes(state: &RecoveryState, rest: &[Entry]) -> Result<Vec<ConfChangeV2>, String> {
    let mut joint = state.configuration.is_joint();
    // Every replica that was a member at some point: removing a replica that is no member changes
    // nothing.
    let mut others: BTreeSet<ReplicaId> = state.configuration.replicas().collect();
    let mut add = |id| {
        others.insert(ReplicaId(id));
    };
    for entry in rest {
        let failed = |error| format!("entry {}: {error}", entry.index);
        match entry.get_entry_type() {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChange => {
                let change = ConfChange::parse_from_bytes(&entry.data).map_err(failed)?;
                add(change.node_id);
            }
            EntryType::EntryConfChangeV2 => {
                let change = ConfChangeV2::parse_from_bytes(&entry.data).map_err(failed)?;
                let several = change.changes.len() > 1
                    || change.get_transition() != ConfChangeTransition::Auto;
                joint = several || joint && !change.changes.is_empty();
                change.changes.iter().for_each(|change| add(change.node_id));
            }
        }
    }
    others.remove(&state.replica);
    let mut changes = Vec::new();
    if joint {
        changes.push(ConfChangeV2::default());
    }
    if !others.is_empty() {
        let removed = others.into_iter().map(|other| single(ConfChangeType::RemoveNode, other));
        let stays = single(ConfChangeType::AddNode, state.replica);
        // Several changes at once make a joint configuration; the empty change leaves it again.
        changes.push(change([stays].into_iter().chain(removed).collect()));
        changes.push(ConfChangeV2::default());
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use raft::storage::MemStorage;
    use raft::{Config, RawNode};

    use super::*;
    use crate::ids::NodeId;

    fn replica(node: u16) -> ReplicaId {
        ReplicaId::new(NodeId(node), 7)
    }

    fn replicas(nodes: &[u16]) -> BTreeSet<ReplicaId> {
        nodes.iter().map(|node| replica(*node)).collect()
    }

    fn entry(index: u64, change: &ConfChangeV2) -> Entry {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        (entry.index, entry.term) = (index, 4);
        entry.data = change.write_to_bytes().expect("memory").into();
        entry
    }

    /// Replica 1 has this configuration and further changes in its log. A replica that starts from
    /// that configuration and reads the rest of the log ends with replica 1 alone.
    fn check(configuration: &Configuration, rest: &[ConfChangeV2]) {
        let mut state = RecoveryState::blank("kv", replica(1));
        (state.bootstrapped, state.term, state.vote) = (true, 4, replica(2).0);
        (state.removed, state.diverged) = (true, 4);
        (state.commit, state.floor, state.configuration_index) = (9, 9, 5);
        state.configuration = configuration.clone();
        let rest: Vec<Entry> = (10..).zip(rest).map(|(at, change)| entry(at, change)).collect();
        let last = 9 + rest.len() as u64;
        let job = alone(&state, last, &rest, Lineage([3; 16])).expect("it can be read");
        assert!(!job.state.removed && job.state.diverged == 0, "it may run");
        assert_eq!(job.state.configuration, Configuration::of_voters([replica(1)]));
        assert_eq!((job.state.term, job.state.vote), (5, 0), "older votes do not count");
        let end = last + job.entries.len() as u64;
        assert_eq!((job.state.commit, job.state.configuration_index), (end, end));
        let storage = MemStorage::new();
        storage.initialize_with_conf_state(configuration.to_raft());
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let config = Config::new(replica(9).0);
        let mut newcomer = RawNode::new(&config, storage, &logger).expect("a good state");
        let mut reached = configuration.clone();
        for (at, entry) in (10..).zip(rest.iter().chain(&job.entries)) {
            assert_eq!(entry.index, at);
            let change = ConfChangeV2::parse_from_bytes(&entry.data).expect("a change");
            let state = newcomer.apply_conf_change(&change).expect("raft takes it");
            reached = Configuration::from_raft(&state);
        }
        assert_eq!(reached, Configuration::of_voters([replica(1)]), "from {configuration:?}");
    }

    #[test]
    fn every_reader_of_the_log_finds_the_one_replica_left() {
        let three = Configuration::of_voters(replicas(&[1, 2, 3]));
        let joint = Configuration {
            voters: replicas(&[1, 4]),
            voters_outgoing: replicas(&[1, 2, 3]),
            ..Configuration::default()
        };
        let learns = Configuration {
            learners: replicas(&[1]),
            ..Configuration::of_voters(replicas(&[2, 3]))
        };
        let add = |node| change(vec![single(ConfChangeType::AddLearnerNode, replica(node))]);
        let swap = change(vec![
            single(ConfChangeType::RemoveNode, replica(2)),
            single(ConfChangeType::AddNode, replica(5)),
        ]);
        let gone = change(vec![single(ConfChangeType::RemoveNode, replica(1))]);
        check(&Configuration::of_voters([replica(1)]), &[]);
        check(&three, &[]);
        check(&three, &[add(4), swap.clone()]);
        check(&three, &[swap, ConfChangeV2::default(), add(6)]);
        check(&three, &[gone]);
        check(&joint, &[]);
        check(&joint, &[ConfChangeV2::default()]);
        check(&learns, &[]);
    }
}

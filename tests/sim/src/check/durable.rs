//! An acknowledged entry is on the disks of a majority; disks that were lost count as they last
//! were. What was durable when a process ended is there at its next start, or the start is refused.
//! Planted: `commit_alone`, `skip_fsync`, `rot_is_a_tear`.

use std::collections::BTreeMap;

use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::snapshot::Configuration;

use super::{Checked, violated};

/// A summary of a replica's durable log.
#[derive(Clone, Debug)]
pub struct View {
    pub replica: ReplicaId,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub first_index: u64,
    /// Runs of equal terms, from the entry before the first one on: first index and term.
    pub terms: Vec<(u64, u64)>,
    pub last_index: u64,
}

impl View {
    /// Whether the log has the entry, or a snapshot that covers it.
    fn has(&self, index: u64, term: u64) -> bool {
        let run = self.terms.iter().rev().find(|run| run.0 <= index);
        self.first_index > index || (self.last_index >= index && run.is_some_and(|r| r.1 == term))
    }
}

/// Every configuration that a group has had, by the index of the entry that made it.
#[derive(Default)]
pub struct Configurations(BTreeMap<(GroupId, u64), Configuration>);

impl Configurations {
    pub fn seen(&mut self, group: GroupId, index: u64, configuration: &Configuration) {
        self.0.entry((group, index)).or_insert_with(|| configuration.clone());
    }

    /// An operator made one replica the whole group, with the entry at `index`.
    pub fn replaced(&mut self, group: GroupId, index: u64, alone: Configuration) {
        self.0.retain(|(of, at), _| *of != group || *at < index);
        self.0.insert((group, index), alone);
    }

    /// The configurations that may have committed an entry which is applied under the configuration
    /// of `index`: raft uses a configuration until the entry that replaces it is applied.
    pub fn of(&self, group: GroupId, index: u64) -> Vec<Configuration> {
        let before = self.0.range((group, 0)..=(group, index)).rev().take(2);
        before.map(|(_, configuration)| configuration.clone()).collect()
    }
}

/// The durable logs of a node.
pub type Views = BTreeMap<GroupId, View>;

/// A process ended with `before` on its disk, and the next one finds `now`.
pub fn kept(before: &Views, now: &Views) -> Checked {
    for (group, before) in before {
        let Some(now) = now.get(group).filter(|now| now.replica == before.replica) else {
            return violated("durable", format!("group {group}: {} is gone", before.replica));
        };
        // After the commit index, unsynced writes may have survived instead.
        let committed = before.commit.min(before.last_index);
        let run = before.terms.iter().rev().find(|run| run.0 <= committed);
        let has = run.is_none_or(|run| now.has(committed, run.1));
        let voted = now.term > before.term || before.vote == 0 || now.vote == before.vote;
        if !has || !voted || now.term < before.term || now.commit < before.commit {
            return violated("durable", format!("ended with {before:?}, starts with {now:?}"));
        }
    }
    Ok(())
}

/// The entry of `term` at `index` was acknowledged to a client by a group with one of these
/// configurations.
pub fn acknowledged(
    index: u64,
    term: u64,
    configurations: &[Configuration],
    views: &[View],
) -> Checked {
    let mut broken = None;
    for configuration in configurations {
        match chosen(index, term, configuration, views) {
            Ok(()) => return Ok(()),
            Err(violation) => broken = Some(violation),
        }
    }
    broken.map_or(Ok(()), Err)
}

fn chosen(index: u64, term: u64, configuration: &Configuration, views: &[View]) -> Checked {
    for voters in [&configuration.voters, &configuration.voters_outgoing] {
        let has = |view: &&View| view.has(index, term);
        let have = views.iter().filter(|view| voters.contains(&view.replica)).filter(has).count();
        let majority = voters.len() / 2 + 1;
        if !voters.is_empty() && have < majority {
            let what = format!(
                "entry {index} of term {term} was acknowledged, but {have} of {voters:?} have it"
            );
            return violated("durable", what);
        }
    }
    Ok(())
}

//! What was acknowledged is on the disks of a majority, or was when a disk went; and what was
//! durable when a process fell is there at its next start, or that is refused. Planted:
//! `commit_alone`, `skip_fsync`, `rot_is_a_tear`.

use std::collections::BTreeMap;

use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::snapshot::Configuration;

use super::{Checked, violated};

/// A replica's durable log, in short.
#[derive(Clone, Debug)]
pub struct View {
    pub replica: ReplicaId,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub first_index: u64,
    /// Runs of equal terms: first index and term, from the entry before the first one.
    pub terms: Vec<(u64, u64)>,
    pub last_index: u64,
}

impl View {
    /// Whether the entry is here, or a snapshot that stands for it.
    fn has(&self, index: u64, term: u64) -> bool {
        let run = self.terms.iter().rev().find(|run| run.0 <= index);
        self.first_index > index || (self.last_index >= index && run.is_some_and(|r| r.1 == term))
    }
}

/// Every configuration that a group had, by the index of the entry that made it.
#[derive(Default)]
pub struct Configurations(BTreeMap<(GroupId, u64), Configuration>);

impl Configurations {
    pub fn seen(&mut self, group: GroupId, index: u64, configuration: &Configuration) {
        self.0.entry((group, index)).or_insert_with(|| configuration.clone());
    }

    /// By hand a replica was made the whole group, as of this entry.
    pub fn replaced(&mut self, group: GroupId, index: u64, alone: Configuration) {
        self.0.retain(|(of, at), _| *of != group || *at < index);
        self.0.insert((group, index), alone);
    }

    /// Those that may have chosen an entry that is applied under the one of `index`: raft counts
    /// by a configuration until the entry that ends it is applied.
    pub fn of(&self, group: GroupId, index: u64) -> Vec<Configuration> {
        let before = self.0.range((group, 0)..=(group, index)).rev().take(2);
        before.map(|(_, configuration)| configuration.clone()).collect()
    }
}

pub type Views = BTreeMap<GroupId, View>;

/// A process fell with `before` on its disk, and the next one finds `now`.
pub fn kept(before: &Views, now: &Views) -> Checked {
    for (group, before) in before {
        let Some(now) = now.get(group).filter(|now| now.replica == before.replica) else {
            return violated("durable", format!("group {group}: {} is gone", before.replica));
        };
        // Beyond the commit index what was not synced yet may have stayed instead.
        let committed = before.commit.min(before.last_index);
        let run = before.terms.iter().rev().find(|run| run.0 <= committed);
        let has = run.is_none_or(|run| now.has(committed, run.1));
        let voted = now.term > before.term || before.vote == 0 || now.vote == before.vote;
        if !has || !voted || now.term < before.term || now.commit < before.commit {
            return violated("durable", format!("fell with {before:?}, starts with {now:?}"));
        }
    }
    Ok(())
}

/// The entry of `term` at `index` was acknowledged to a client by a group with one of these
/// configurations.
pub fn acknowledged(
    (index, term): (u64, u64),
    configurations: &[Configuration],
    views: &[View],
) -> Checked {
    let mut broken = None;
    for configuration in configurations {
        match chosen((index, term), configuration, views) {
            Ok(()) => return Ok(()),
            Err(violation) => broken = Some(violation),
        }
    }
    broken.map_or(Ok(()), Err)
}

fn chosen((index, term): (u64, u64), configuration: &Configuration, views: &[View]) -> Checked {
    for voters in [&configuration.voters, &configuration.voters_outgoing] {
        let has = |view: &&View| view.has(index, term);
        let have = views.iter().filter(|view| voters.contains(&view.replica)).filter(has).count();
        let majority = voters.len() / 2 + 1;
        if !voters.is_empty() && have < majority {
            let what = format!(
                "entry {index} of term {term} was acknowledged, {have} of {voters:?} have it"
            );
            return violated("durable", what);
        }
    }
    Ok(())
}

//! What was acknowledged is on the disks of a majority, disks that are gone counted in. Planted:
//! `commit_alone`.

use std::collections::BTreeMap;

use lockstep_core::ids::{GroupId, ReplicaId};
use lockstep_core::snapshot::Configuration;

use super::{Checked, violated};

/// A replica's durable log, in short.
#[derive(Clone, Debug)]
pub struct View {
    pub replica: ReplicaId,
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

    /// Those that may have chosen an entry that is applied under the one of `index`: raft counts
    /// by a configuration until the entry that ends it is applied.
    pub fn of(&self, group: GroupId, index: u64) -> Vec<Configuration> {
        let before = self.0.range((group, 0)..=(group, index)).rev().take(2);
        before.map(|(_, configuration)| configuration.clone()).collect()
    }
}

pub type Views = BTreeMap<GroupId, View>;

/// The entry of `term` at `index` was acknowledged to a client by a group with one of these
/// configurations.
pub fn acknowledged(
    (index, term): (u64, u64),
    configurations: &[Configuration],
    views: &[View],
    is_gone: impl Fn(ReplicaId) -> bool,
) -> Checked {
    let mut broken = None;
    for configuration in configurations {
        match chosen((index, term), configuration, views, &is_gone) {
            Ok(()) => return Ok(()),
            Err(violation) => broken = Some(violation),
        }
    }
    broken.map_or(Ok(()), Err)
}

fn chosen(
    (index, term): (u64, u64),
    configuration: &Configuration,
    views: &[View],
    is_gone: &impl Fn(ReplicaId) -> bool,
) -> Checked {
    for voters in [&configuration.voters, &configuration.voters_outgoing] {
        let gone = voters.iter().filter(|voter| is_gone(**voter)).count();
        let has = |view: &&View| view.has(index, term);
        let have = views.iter().filter(|view| voters.contains(&view.replica)).filter(has).count();
        let majority = voters.len() / 2 + 1;
        if !voters.is_empty() && have + gone < majority {
            let what = format!(
                "entry {index} of term {term} was acknowledged, {have} of {voters:?} have it"
            );
            return violated("durable", what);
        }
    }
    Ok(())
}

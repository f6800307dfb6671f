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

pub type Views = BTreeMap<GroupId, View>;

/// The entry of `term` at `index` was acknowledged to a client by a group with this configuration.
pub fn acknowledged(
    (index, term): (u64, u64),
    configuration: &Configuration,
    views: &[View],
    is_gone: impl Fn(ReplicaId) -> bool,
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

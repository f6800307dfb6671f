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
    pub last_index: u64,
}

pub type Views = BTreeMap<GroupId, View>;

/// `index` was acknowledged to a client by a group with this configuration.
pub fn acknowledged(
    index: u64,
    configuration: &Configuration,
    views: &[View],
    is_gone: impl Fn(ReplicaId) -> bool,
) -> Checked {
    for voters in [&configuration.voters, &configuration.voters_outgoing] {
        let gone = voters.iter().filter(|voter| is_gone(**voter)).count();
        let has = |view: &&View| view.first_index > index || view.last_index >= index;
        let have = views.iter().filter(|view| voters.contains(&view.replica)).filter(has).count();
        let majority = voters.len() / 2 + 1;
        if !voters.is_empty() && have + gone < majority {
            let what = format!("index {index} was acknowledged, {have} of {voters:?} have it");
            return violated("durable", what);
        }
    }
    Ok(())
}

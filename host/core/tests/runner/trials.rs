//! Modules that a node is to have ready for a trial.

use lockstep_core::group::Event;
use lockstep_core::group::trial::{Preparation, Stage};

use super::cluster::Cluster;

/// What a node has to prepare, and what becomes of that.
#[derive(Default)]
pub(crate) struct Trials {
    pub(crate) wanted: Vec<Preparation>,
    prepares: Prepares,
}

#[derive(Clone, Copy, Default)]
enum Prepares {
    #[default]
    Go,
    Hang,
    Fail,
}

/// A script says what becomes of it: `prepares NODE go|hang|fail`.
pub(crate) fn told(cluster: &mut Cluster, node: &str, how: &str) {
    let trials = &mut cluster.processes.get_mut(node).expect("a process").trials;
    trials.prepares = match how {
        "go" => Prepares::Go,
        "hang" => Prepares::Hang,
        "fail" => Prepares::Fail,
        other => panic!("prepares NODE {other}"),
    };
}

impl Cluster {
    /// Has modules ready that are to be tried, or says why not.
    pub(crate) fn prepare(&mut self, name: &str) -> bool {
        let trials = &mut self.processes.get_mut(name).expect("the process was added").trials;
        let stage = match trials.prepares {
            Prepares::Hang => return false,
            Prepares::Fail => Stage::failed("the script says so".to_owned()),
            Prepares::Go => Stage::Prepared,
        };
        let Some(Preparation { trial, module, .. }) = trials.wanted.pop() else { return false };
        self.tell(format!("{name} prepares module {}", module.0[0]));
        self.event(name, Event::Tried { trial, stage });
        true
    }
}

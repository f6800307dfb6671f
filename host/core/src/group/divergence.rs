//! Replicas that applied the same entries and are in different states.
//!
//! - Snapshots of one index have the same bytes on every replica. Frames name the newest snapshot
//!   that the sender's own guest wrote, and the leader compares them.
//! - If a majority of the voters agree and a member differs, the leader puts a *verdict* into the
//!   log that names such members. Reports about snapshots from before the last verdict no longer
//!   count.
//! - A replica that is named has *diverged*. It halts, also after a restart, and neither starts
//!   from its recovery points nor serves them. It still votes and keeps its log.
//! - It goes on from another replica's snapshot when an operator says so, and not by itself: if
//!   replicas started from another's snapshot, the wrong ones may be the majority.
//! - Without such a majority all go on, and the leader raises an alarm.

use std::collections::{BTreeMap, BTreeSet};

use crate::entry::EntryBody;
use crate::fault::Fault;
use crate::group::Shared;
use crate::group::effect::{Halt, Stands};
use crate::group::raft_node::RaftNode;
use crate::ids::ReplicaId;
use crate::mutant::planted;
use crate::recovery_state::RecoveryState;
use crate::snapshot::Configuration;
use crate::snapshot::chunk::ObjectRef;

/// How many of the newest snapshots a leader compares.
const INDEXES_MAX: usize = 8;

/// The digests, cut to 16 bytes.
type Reports = BTreeMap<ReplicaId, [u8; 16]>;

/// What a leader knows of the members' snapshots.
#[derive(Default)]
pub(super) struct Comparison {
    by_index: BTreeMap<u64, Reports>,
    /// The verdict that was last proposed: its term and index.
    proposed: (u64, u64),
    /// The index of the last snapshots without a majority of which an alarm was raised.
    undecided: u64,
}

/// What this process knows of states that diverged, and of the origin of its own.
#[derive(Default)]
pub(super) struct Divergence {
    /// How often states were found to have diverged, and what was said of it last.
    alarms: (u64, Option<String>),
    /// The index of the last verdict that was handed over.
    judged: u64,
    /// The index of the last snapshot of a peer that replaced the state here.
    received: u64,
}

/// What the reports of one index come to.
enum Finding {
    Agree,
    /// These differ from a majority of the voters.
    Differ(BTreeSet<ReplicaId>),
    /// All voters reported, and no majority agrees.
    Undecided,
}

impl Divergence {
    pub(super) fn alarm(&mut self, why: String) {
        self.alarms = (self.alarms.0 + 1, Some(why));
    }

    /// How many alarms there were, and the last of them.
    pub(super) fn alarms(&self) -> (u64, Option<&str>) {
        (self.alarms.0, self.alarms.1.as_deref())
    }
}

impl Comparison {
    /// On a leader, compares what the members reported, and acts on a difference.
    pub(super) fn tick(&mut self, raw: &mut RaftNode, shared: &mut Shared) {
        if !raw.is_leader() {
            self.by_index.clear();
            return;
        }
        self.gather(shared);
        let (term, index) = self.proposed;
        if (term == raw.raft.term && index > shared.divergence.judged)
            || !raw.raft.commit_to_current_term()
        {
            return;
        }
        let mut undecided = None;
        for (index, reports) in self.by_index.iter().rev() {
            match compare(reports, &shared.recovery.configuration, shared.me()) {
                Finding::Agree => {}
                Finding::Undecided => undecided = undecided.max(Some(*index)),
                Finding::Differ(against) => {
                    let body =
                        EntryBody::Verdict { time_ms: shared.stamp(), index: *index, against };
                    let proposed = raw.propose_body(&body);
                    self.proposed = proposed.map_or(self.proposed, |(index, term)| (term, index));
                    return;
                }
            }
        }
        if let Some(index) = undecided.filter(|index| *index > self.undecided) {
            self.undecided = index;
            shared.divergence.alarm(format!(
                "the voters' snapshots at entry {index} differ, and no majority of them are equal: \
                 which states are right cannot be told"
            ));
        }
    }

    /// Notes what members have reported since the last verdict.
    fn gather(&mut self, shared: &Shared) {
        let members = shared.recovery.configuration.replicas();
        let reported = members.filter_map(|replica| {
            let taken = if replica == shared.me() {
                shared.own.taken
            } else {
                shared.seen.get(&replica).and_then(|seen| seen.taken)
            };
            taken.map(|taken| (replica, taken))
        });
        for (replica, ObjectRef { index, digest, .. }) in reported {
            self.by_index.entry(index).or_default().insert(replica, digest);
        }
        let judged = shared.divergence.judged;
        self.by_index.retain(|index, _| *index > judged || planted("judge_old_news"));
        while self.by_index.len() > INDEXES_MAX {
            self.by_index.pop_first();
        }
    }
}

/// Compares the reports of one index; `me` leads.
fn compare(reports: &Reports, members: &Configuration, me: ReplicaId) -> Finding {
    let of_leader = reports.get(&me).copied().filter(|_| planted("judge_without_a_majority"));
    let Some(agreed) = of_leader.or_else(|| agreed(reports, members)) else {
        let mut voters = members.voters.iter().chain(&members.voters_outgoing);
        let all = voters.all(|voter| reports.contains_key(voter));
        return if all { Finding::Undecided } else { Finding::Agree };
    };
    let differs = reports.iter().filter(|(_, digest)| **digest != agreed);
    let against: BTreeSet<ReplicaId> = differs.map(|(replica, _)| *replica).collect();
    if against.is_empty() { Finding::Agree } else { Finding::Differ(against) }
}

/// The digest on which a majority of the voters agree; of both configurations if they are joint.
fn agreed(reports: &Reports, members: &Configuration) -> Option<[u8; 16]> {
    let majority = |voters: &BTreeSet<ReplicaId>| {
        let of = |voter: &ReplicaId| reports.get(voter).copied();
        let count = |digest: [u8; 16]| voters.iter().filter(|it| of(it) == Some(digest)).count();
        voters.iter().filter_map(of).find(|digest| 2 * count(*digest) > voters.len())
    };
    let agreed = majority(&members.voters)?;
    let both = !members.is_joint() || majority(&members.voters_outgoing) == Some(agreed);
    both.then_some(agreed)
}

impl Shared {
    /// Replicas that have diverged and take no snapshot before an operator says so.
    pub(super) fn waiting_for_repair(&self) -> BTreeSet<ReplicaId> {
        let waiting = self.seen.iter().filter(|(_, seen)| seen.diverged);
        waiting.map(|(replica, _)| *replica).collect()
    }

    /// The entry at `at` is handed over, a verdict about the snapshots at `index`.
    pub(super) fn is_judged(&mut self, at: u64, index: u64, against: &BTreeSet<ReplicaId>) {
        self.divergence.judged = at;
        let nodes: Vec<String> = against.iter().map(|it| it.node().to_string()).collect();
        self.divergence.alarm(format!(
            "the snapshots at entry {index} of node {} differ from those of a majority of the \
             voters: the states have diverged",
            nodes.join(", ")
        ));
        // What this replica said before its state was replaced is no longer true of it.
        let is_old = index <= self.divergence.received && !planted("judge_old_news");
        if against.contains(&self.me()) && !is_old {
            self.recovery.diverge(index);
            self.own.taken = None;
        }
    }

    /// A peer's snapshot at `index` takes the place of the state here.
    pub(super) fn is_replaced(&mut self, index: u64) {
        self.recovery.repair();
        self.divergence.received = index;
        self.own.taken = None;
    }
}

/// How a replica is halted that has diverged.
pub(super) fn halt(recovery: &RecoveryState) -> Option<Halt> {
    let index = Some(recovery.diverged).filter(|index| *index > 0)?;
    let fault = Fault::Diverged { index, repairing: planted("repair_unasked") };
    Some(Halt { fault, stands: Stands::Nowhere, applied_by: None, is_first: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: u8 = 9;

    /// What is found if the voters and a learner reported these; 0 if one reported nothing.
    fn check(voters: &[u8], learner: u8, expect: &str) {
        let replica = |place: usize| ReplicaId(place as u64 + 1);
        let mut members = Configuration::of_voters((0..voters.len()).map(replica));
        members.learners.insert(ReplicaId(u64::from(D)));
        let mut reports = Reports::new();
        for (place, said) in voters.iter().enumerate().filter(|(_, said)| **said > 0) {
            reports.insert(replica(place), [*said; 16]);
        }
        if learner > 0 {
            reports.insert(ReplicaId(u64::from(D)), [learner; 16]);
        }
        let found = match compare(&reports, &members, ReplicaId(1)) {
            Finding::Agree => "agree".to_owned(),
            Finding::Undecided => "undecided".to_owned(),
            Finding::Differ(against) => {
                against.iter().map(|replica| replica.0.to_string()).collect::<Vec<_>>().join(" ")
            }
        };
        assert_eq!(found, expect, "{voters:?} {learner}");
    }

    #[test]
    fn a_majority_of_the_voters_decides() {
        check(&[1, 1, 1], 0, "agree");
        check(&[1, 1, 2], 0, "3");
        check(&[2, 1, 1], 0, "1");
        check(&[1, 2, 3], 0, "undecided");
        check(&[1, 2, 0], 0, "agree");
        check(&[1, 1, 0], 2, "9");
        check(&[1, 0, 0], 2, "agree");
        check(&[1, 2], 0, "undecided");
        check(&[1], 2, "9");
        check(&[1, 1, 2, 2, 0], 0, "agree");
        check(&[1, 1, 2, 2, 3], 0, "undecided");
        check(&[1, 1, 1, 2, 3], 2, "4 5 9");
    }

    #[test]
    fn both_majorities_of_a_joint_configuration_must_agree() {
        let mut members = Configuration::of_voters([1, 2, 3].map(ReplicaId));
        members.voters_outgoing = [3, 4, 5].map(ReplicaId).into();
        let reports = |said: [u8; 5]| -> Reports {
            (1..).map(ReplicaId).zip(said.map(|said| [said; 16])).collect()
        };
        assert_eq!(agreed(&reports([1, 1, 2, 1, 1]), &members), Some([1; 16]));
        assert_eq!(agreed(&reports([1, 1, 2, 2, 1]), &members), None);
    }
}

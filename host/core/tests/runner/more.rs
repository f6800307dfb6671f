//! What `more NODE` shows, which is the rest of a replica's status, and `log NODE`. Also the
//! requests of clients other than commands, disks that hang, and logs that refuse a job.

use lockstep_core::entry::{Limits, OnFault};
use lockstep_core::fault::{Fault, Refusal, Rejection, Stall};
use lockstep_core::group::{
    Event, GroupStatus, Order, PeerStatus, RebuildTally, ReplicaState, Resume, Stopped,
};
use lockstep_core::ids::{ModuleId, ReplicaId};
use lockstep_core::retention::Pin;

use super::cluster::Cluster;

/// Asks a replica for a key: linearizably (`query`), or from the state that it has (`local`).
pub(crate) fn query(cluster: &mut Cluster, word: &str, node: &str, key: &str) {
    let ticket = cluster.ticket(format!("{word} {key}"), false);
    let request = key.as_bytes().to_vec().into();
    cluster.event(node, Event::Query { ticket, request, linearizable: word == "query" });
}

/// A client opens a session.
pub(crate) fn open(cluster: &mut Cluster, node: &str) {
    let ticket = cluster.ticket("open".to_owned(), false);
    cluster.event(node, Event::OpenSession { ticket, nonce: ticket.0 });
}

/// A client closes the session that the entry at this index opened.
pub(crate) fn close(cluster: &mut Cluster, node: &str, session: &str) {
    let ticket = cluster.ticket(format!("close {session}"), false);
    let session = cluster.session(session.parse().expect("close NODE SESSION"));
    cluster.event(node, Event::CloseSession { ticket, session });
}

/// The words of orders.
pub(crate) const ORDERS: [&str; 7] =
    ["skip", "limits", "freeze", "unfreeze", "on-fault", "upgrade", "abort"];

/// An operator orders: `skip NODE INDEX [ABANDON]...`, `limits NODE FUEL`, `freeze NODE`,
/// `on-fault NODE skip|halt`, `upgrade NODE MODULE [INDEX [ABANDON]...]`, `abort NODE`.
pub(crate) fn order(cluster: &mut Cluster, word: &str, node: &str, how: &[&str]) {
    let label = [&[word], how].concat().join(" ");
    let order = match (word, how) {
        ("skip", [index, abandon @ ..]) => Order::Skip {
            index: index.parse().expect("skip NODE INDEX"),
            abandon: abandon.iter().map(|name| cluster.processes[*name].node).collect(),
        },
        ("limits", [fuel]) => {
            let fuel_command = Some(fuel.parse().expect("limits NODE FUEL"));
            Order::Limits(Limits { fuel_command, ..Limits::default() })
        }
        ("limits", [_, memory]) => {
            let memory_bytes = Some(memory.parse().expect("limits NODE FUEL MEMORY"));
            Order::Limits(Limits { memory_bytes, ..Limits::default() })
        }
        ("upgrade", [module, resume @ ..]) => {
            let module = ModuleId([module.parse().expect("upgrade NODE MODULE"); 32]);
            let resume = resume.split_first().map(|(index, abandon)| Resume {
                index: index.parse().expect("upgrade NODE MODULE INDEX"),
                abandon: abandon.iter().map(|name| cluster.processes[*name].node).collect(),
            });
            Order::Upgrade { module, resume }
        }
        ("abort", []) => Order::AbortUpgrade,
        ("freeze" | "unfreeze", []) => Order::Freeze(word == "freeze"),
        ("on-fault", ["skip"]) => Order::OnFault(OnFault::Skip),
        ("on-fault", ["halt"]) => Order::OnFault(OnFault::Halt),
        _other => panic!("{label}"),
    };
    let ticket = cluster.ticket(label, false);
    cluster.event(node, Event::Order { ticket, order });
}

/// Shows the bootstrap record that a replica applied.
pub(crate) fn bootstrap(cluster: &mut Cluster, node: &str) {
    let process = &cluster.processes[node];
    let bootstrap = process.lane.ledger.bootstrap().expect("the bootstrap record");
    let module = bootstrap.module == process.config.module;
    let config = String::from_utf8_lossy(&bootstrap.config).into_owned();
    let voters = bootstrap.initial_voters.len();
    cluster.tell(format!("{node} own module: {module}, config {config:?}, {voters} voters"));
}

/// The disk of a node hangs, or answers again, and its replica is told.
pub(crate) fn stall(cluster: &mut Cluster, name: &str, hangs: bool) {
    cluster.processes.get_mut(name).expect("a process").disk.stuck = hangs;
    let stall = hangs.then(|| Stall { path: "wal".to_owned() });
    cluster.event(name, Event::DiskStalled(stall));
}

/// The log of a node refuses the entries that it has not written yet, and its replica is told.
pub(crate) fn refuse(cluster: &mut Cluster, name: &str) {
    cluster.processes.get_mut(name).expect("a process").disk.refuse();
    let fault = Fault::LogRefused("entries after a gap".to_owned());
    cluster.event(name, Event::Faulted(fault));
}

/// Shows the rest of a replica's status.
pub(crate) fn tell(cluster: &mut Cluster, name: &str) {
    let process = &cluster.processes[name];
    let GroupStatus {
        commit,
        leaderless_ticks,
        leader_changes,
        log_pin,
        capture_failure,
        rebuilds,
        peers,
        alarm,
        upgrade,
        ..
    } = process.group.as_ref().expect("it runs").status();
    let mut text = format!("{name} commit {commit}");
    if leaderless_ticks > 0 {
        text += &format!(", without a leader for {leaderless_ticks} ticks");
    }
    if leader_changes > 1 {
        text += &format!(", had {leader_changes} leaders");
    }
    if let Some((pin, index)) = log_pin {
        let whom = match pin {
            Pin::RecoveryPoint => "a recovery point".to_owned(),
            Pin::CatchUp => "followers that lag".to_owned(),
            Pin::Follower(id) => cluster.name_of(id),
            Pin::Sending(id) => format!("a snapshot for {}", cluster.name_of(id)),
        };
        text += &format!(", keeps the log from {index} on for {whom}");
    }
    if let Some(why) = capture_failure {
        text += &format!(", could not capture: {why}");
    }
    if let (asked @ 1.., gain) = process.lane.refused {
        text += &format!(", found no place {asked} times, last with a gain of {gain} bytes");
    }
    let sessions = process.lane.ledger.sessions();
    if sessions.answer_bytes() > 0 {
        text += &format!(", keeps {} bytes of answers", sessions.answer_bytes());
    }
    if process.asked > 0 {
        text += &format!(", asked for objects {} times", process.asked);
    }
    if rebuilds.done > 0 {
        let RebuildTally { done, in_vain, bytes } = rebuilds;
        text += &format!(", rebuilt its guest {done} times for {bytes} bytes, {in_vain} in vain");
    }
    if let Some(alarm) = alarm {
        text += &format!(", alarm: {alarm}");
    }
    if let Some(upgrade) = upgrade {
        text += &format!(", upgrade: {upgrade}");
    }
    if !process.judged.is_empty() {
        text += &format!(", judged {}", process.judged.join(" "));
    }
    for PeerStatus { replica, matched, active, sending_snapshot, snapshots_in_a_row, .. } in peers {
        text += &format!(", knows {} at {matched}", cluster.name_of(replica));
        text += if active { "" } else { " silent" };
        text += if sending_snapshot { " receiving" } else { "" };
        if snapshots_in_a_row > 1 {
            text += &format!(" after {snapshots_in_a_row} snapshots in a row");
        }
    }
    cluster.tell(text);
}

/// Shows what a node's disk holds of the log.
pub(crate) fn log(cluster: &mut Cluster, node: &str) {
    let image = cluster.processes[node].disk.durable.as_ref().expect("a disk");
    let terms: Vec<String> = (image.state().first_index..=image.last())
        .map(|index| format!("{index}:{}", image.term(index).unwrap_or(0)))
        .collect();
    let state = image.state();
    let vote = match state.vote {
        0 => "nobody".to_owned(),
        vote => cluster.name_of(ReplicaId(vote)),
    };
    let text = format!(
        "{node} term {} voted for {} commit {} floor {} log {}",
        state.term,
        vote,
        state.commit,
        state.floor,
        terms.join(" ")
    );
    cluster.tell(text);
}

/// A rejection, in short.
pub(crate) fn brief(rejection: &Rejection) -> String {
    match rejection {
        Rejection::Guest(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Rejection::SessionExpired => "session expired".to_owned(),
        Rejection::AnswerTooLarge { bytes } => format!("answer of {bytes} bytes is too large"),
        Rejection::AnswerNotKept { bytes } => format!("answer of {bytes} bytes was not kept"),
        Rejection::SessionFull => "session full".to_owned(),
        Rejection::TooManySessions => "too many sessions".to_owned(),
        Rejection::Skipped => "skipped".to_owned(),
        Rejection::Frozen => "frozen".to_owned(),
    }
}

/// A refusal, in short.
pub(crate) fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotLeader { leader: None } => "not leader, none known".to_owned(),
        Refusal::NotLeader { leader: Some(node) } => format!("not leader, n{node} leads"),
        Refusal::Overloaded => "overloaded".to_owned(),
        Refusal::Lost => "lost".to_owned(),
        Refusal::Unknown { why } => format!("unknown, {why}"),
        Refusal::DiskFull { need, have } => format!("disk full, needs {need}, has {have}"),
        Refusal::ReadTimeout => "read timeout".to_owned(),
        Refusal::NotServing { state, cause } => format!("{state}: {cause}"),
        Refusal::ShuttingDown => "shutting down".to_owned(),
        other => other.to_string(),
    }
}

/// A replica's lane lost its guest: because its log was cut, or because no recovery point restores,
/// of which the newest is this one.
pub(crate) fn no_guest(cluster: &mut Cluster, node: &str, tried: &[&str]) {
    let lane = &mut cluster.processes.get_mut(node).expect("a process").lane;
    let cut = Event::Overtaken { build: lane.build };
    let tried = tried.first().map(|tried| tried.parse().expect("lost NODE INDEX"));
    let event = tried.map_or(cut, |tried| lane.lost(tried));
    cluster.event(node, event);
}

/// A state, with its cause.
pub(crate) fn describe(state: &ReplicaState) -> String {
    let cause = match state {
        ReplicaState::Stopped(Stopped::Requested | Stopped::Removed) => None,
        other => other.cause(),
    };
    cause.map_or_else(|| state.name().to_owned(), |cause| format!("{}: {cause}", state.name()))
}

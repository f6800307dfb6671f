//! `lockstep status`: who leads, how far each replica is, and what is on its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_client::Client;
use lockstep_client::v1::group_status::Role;
use lockstep_client::v1::{GroupStatus, Peer, StatusResponse, Stranger};
use lockstep_core::ids::{ReplicaId, hex};
use lockstep_core::limits;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::format::{size, table};
use crate::cli::remote::Target;
use crate::cli::{Failure, Outcome};
use crate::clock::{Clock as _, SystemClock};
use crate::group::CLOCK_IS_OFF;
use crate::logging::out;

mod json;

pub(super) use json::unreachable;

/// Show the groups of a cluster, as every reachable node sees them.
#[derive(clap::Args)]
#[command(after_help = "\
Example: lockstep status --endpoint 127.0.0.1:7101,127.0.0.1:7102

Exit codes: 0 every group has a leader, and every node answers and serves; 1 no node answers;
2 usage; 3 a group has no leader; 4 every group has one, but a node does not answer or serve.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print one JSON array with everything that the nodes report.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let client = args.target.client()?;
    let (answers, errors) = ask_all(&client).await?;
    if args.json {
        let mut all: Vec<_> = answers.iter().flat_map(json::groups).collect();
        all.extend(answers.iter().flat_map(json::peer_errors));
        all.extend(errors.iter().map(|(at, why)| unreachable(at, why)));
        out!("{}", serde_json::Value::Array(all));
    } else {
        print(&answers, &errors);
    }
    match health(&answers, !errors.is_empty()) {
        0 => Ok(()),
        code => Err(Failure::Unwell(code)),
    }
}

/// The exit code: the health of the cluster, judged by the answers alone.
fn health(answers: &[StatusResponse], is_silent: bool) -> u8 {
    const LEADERLESS: u8 = 3;
    const IMPAIRED: u8 = 4;
    let groups = || answers.iter().flat_map(|node| &node.groups);
    let is_led = |name: &str| {
        groups().any(|group| {
            let running = !matches!(group.state.as_str(), "stopped" | "removed" | "failed");
            group.name == name && group.leader_node != 0 && running
        })
    };
    if groups().any(|group| !is_led(&group.name)) {
        LEADERLESS
    } else if is_silent || groups().any(|group| group.state != "serving") {
        IMPAIRED
    } else {
        0
    }
}

/// Asks the given nodes, and the nodes that they name, all at the same time under one deadline.
/// Returns the answers, and by address why the others gave none; fails if there is no answer.
pub(super) async fn ask_all(
    client: &Client,
) -> Result<(Vec<StatusResponse>, BTreeMap<String, String>), Failure> {
    let until = Instant::now() + client.options().deadline;
    let mut answers: BTreeMap<u32, StatusResponse> = BTreeMap::new();
    let mut errors = BTreeMap::new();
    let mut asked = BTreeSet::new();
    let mut to_ask: Vec<String> = client.endpoints().to_vec();
    let mut asking = JoinSet::new();
    loop {
        for endpoint in to_ask.drain(..) {
            if asked.insert(endpoint.clone()) {
                let client = client.clone();
                asking.spawn(async move {
                    let answer = tokio::time::timeout_at(until, client.status(&endpoint)).await;
                    (endpoint, answer)
                });
            }
        }
        let Some(told) = asking.join_next().await else { break };
        match told.expect("no call panics") {
            (_, Ok(Ok(answer))) => {
                asked.insert(answer.address.clone());
                to_ask.extend(known_addresses(&answer));
                answers.insert(answer.node, answer);
            }
            (endpoint, Ok(Err(error))) => drop(errors.insert(endpoint, error.to_string())),
            (endpoint, Err(_elapsed)) => {
                errors.insert(endpoint, "no answer in time".to_owned());
            }
        }
    }
    // A node that answered through one address is not silent, even if its own address failed.
    for answer in answers.values() {
        errors.remove(&answer.address);
    }
    if answers.is_empty() {
        return Err(nobody_answers(&errors));
    }
    Ok((answers.into_values().collect(), errors))
}

/// The failure of a command that no node answers.
pub(super) fn nobody_answers(errors: &BTreeMap<String, String>) -> Failure {
    let errors: Vec<String> = errors.iter().map(|(at, why)| format!("{at}: {why}")).collect();
    Failure::Failed(errors.join("; "))
}

fn known_addresses(answer: &StatusResponse) -> impl Iterator<Item = String> + '_ {
    let peers =
        answer.groups.iter().flat_map(|group| &group.peers).map(|peer| peer.address.clone());
    let leaders = answer.groups.iter().map(|group| group.leader_address.clone());
    peers.chain(leaders).filter(|address| !address.is_empty())
}

fn print(answers: &[StatusResponse], errors: &BTreeMap<String, String>) {
    let heading = [
        "GROUP",
        "NODE",
        "ADDRESS",
        "ROLE",
        "STATE",
        "TERM",
        "APPLIED",
        "LAG",
        "LOG",
        "SNAPSHOTS",
        "NEWEST",
        "GUEST",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut all: Vec<(&StatusResponse, &GroupStatus)> =
        answers.iter().flat_map(|node| node.groups.iter().map(move |g| (node, g))).collect();
    all.sort_by_key(|(_, group)| (group.name.clone(), group.node));
    let furthest = |name: &str| {
        all.iter().filter(|(_, g)| g.name == name).map(|(_, g)| g.commit.max(g.applied)).max()
    };
    for (node, group) in &all {
        rows.push(row(node, group, furthest(&group.name).unwrap_or(0)));
    }
    out!("{}", table(&rows).trim_end());
    for (_, group) in &all {
        notes(group).iter().for_each(|note| out!("{} node {}: {note}", group.name, group.node));
    }
    let mut lineages: Vec<_> = all.iter().map(|(_, g)| (&g.name, hex(&g.lineage))).collect();
    lineages.dedup();
    for (name, lineage) in lineages.iter().filter(|(_, lineage)| !lineage.is_empty()) {
        out!("{name} has the lineage {lineage}");
    }
    let now_ms = SystemClock { offset_ms: 0 }.wall_ms();
    for timer in timers(all.iter().map(|(_, group)| *group), now_ms) {
        out!("{timer}");
    }
    for node in answers {
        for peer in &node.peer_errors {
            out!("node {} to node {} ({}): {}", node.node, peer.node, peer.address, peer.error);
        }
    }
    for (endpoint, why) in errors {
        out!("{endpoint}: {why}");
    }
}

fn row(node: &StatusResponse, group: &GroupStatus, furthest: u64) -> Vec<String> {
    let newest = group.snapshots.first();
    vec![
        group.name.clone(),
        group.node.to_string(),
        node.address.clone(),
        role_name(group).to_owned(),
        group.state.clone(),
        group.term.to_string(),
        group.applied.to_string(),
        furthest.saturating_sub(group.applied).to_string(),
        size(group.log_bytes),
        format!("{} ({})", group.snapshots.len(), size(group.snapshot_bytes)),
        newest.map_or("-".to_owned(), |s| format!("{} {}", s.index, &hex(&s.digest)[..8])),
        size(group.guest_memory_bytes),
    ]
}

/// The notes below the table: conditions that need an operator's attention.
fn notes(group: &GroupStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if !group.cause.is_empty() {
        notes.push(format!("{}: {}", group.state, group.cause));
    }
    notes.extend(group.strangers.iter().map(|stranger| stranger_note(group, stranger)));
    notes.extend(stalled_disks(group));
    if group.clock_is_off {
        notes.push(CLOCK_IS_OFF.to_owned());
    }
    if group.guest_memory_bytes >= group.memory_warning_bytes.max(1)
        && group.memory_warning_bytes > 0
        && group.state != "memory high"
    {
        notes.push(memory_note(group));
    }
    if group.log_time_ahead_ms > limits::CLOCK_SKEW_MS_MAX {
        let ahead = Duration::from_millis(group.log_time_ahead_ms);
        notes.push(format!(
            "log time is {} ahead of the nodes' clocks, which are or were wrong: it advances at \
             half speed until they reach it, in about {}",
            span(ahead),
            span(2 * ahead)
        ));
    }
    if group.leaderless_ms > limits::LEADERLESS_MS && group.state != "joining" {
        let seconds = group.leaderless_ms / 1000;
        notes.push(format!(
            "no leader for {seconds} s: a majority of the voters must be up; if it is lost for \
             good, `lockstep recover` keeps one replica"
        ));
    }
    if group.log_damaged_segments > 0 {
        notes.push(damage_note(group));
    }
    if group.objects.iter().any(|object| object.corrupt) {
        notes.push("a snapshot here is corrupt; the replica asks its peers for a good copy".into());
    }
    if !group.log_pin.is_empty() && group.log_pin != "recovery point" && group.log_pin != "catch-up"
    {
        let (index, pin) = (group.log_pin_index, &group.log_pin);
        notes.push(format!("its log from entry {index} on is kept for {pin}"));
    }
    if !group.log_pinned_by.is_empty() && group.log_pinned_by != group.name {
        let other = &group.log_pinned_by;
        notes.push(format!("the oldest part of this node's log is kept for group {other}"));
    }
    if !group.divergence_alarm.is_empty() {
        notes.push(format!("ALARM: {}", group.divergence_alarm));
    }
    if !group.upgrade.is_empty() {
        notes.push(group.upgrade.clone());
    }
    if !group.last_capture_error.is_empty() {
        notes.push(format!(
            "the last snapshot failed and will be retried: {}",
            group.last_capture_error
        ));
    }
    notes.extend(peer_notes(group));
    notes
}

/// Disks that hang, and the consequence of each.
fn stalled_disks(group: &GroupStatus) -> Vec<String> {
    let disks = [
        (
            (group.log_stalled_ms, &group.log_stalled_directory),
            "this replica takes no commands, and does not lead while another can",
        ),
        (
            (group.snapshots_stalled_ms, &group.snapshots_stalled_directory),
            "until it answers, no snapshot is taken, and the log grows",
        ),
    ];
    let stalled = disks.iter().filter(|((ms, _), _)| *ms > 0);
    let note = |((ms, directory), so): &((u64, &String), &str)| {
        let time = span(Duration::from_millis(*ms));
        format!("the disk of {directory} has not answered for {time}: {so}")
    };
    stalled.map(note).collect()
}

/// What a leader reports of the other replicas.
fn peer_notes(group: &GroupStatus) -> Vec<String> {
    if group.role != Role::Leader as i32 {
        return Vec::new();
    }
    let sending = group.peers.iter().filter(|peer| peer.sending_snapshot);
    let outrun = group.peers.iter().filter(|peer| peer.snapshots_in_a_row > 1).map(outrun_note);
    let inactive = group.peers.iter().filter(|peer| !peer.active);
    let silent = inactive.map(|peer| {
        format!(
            "has not heard from node {} (replica {}) lately",
            peer.node,
            ReplicaId(peer.replica)
        )
    });
    sending.map(sending_note).chain(outrun).chain(silent).collect()
}

/// A follower that still lags after several snapshots in a row.
fn outrun_note(peer: &Peer) -> String {
    format!(
        "sent node {} {} snapshots in a row, and that node has not caught up: while one is sent \
         and restored, more is written than the {} of log that are kept for that node; raise \
         `snapshot-log-bytes` (four times its value is kept), or write less until it has caught up",
        peer.node,
        peer.snapshots_in_a_row,
        size(peer.log_kept_bytes)
    )
}

fn stranger_note(group: &GroupStatus, stranger: &Stranger) -> String {
    let (theirs, ours) = (hex(&stranger.lineage), hex(&group.lineage));
    format!(
        "node {} ({}) speaks for another group {:?}: its lineage is {theirs}, not {ours}; \
         correct [nodes] where it is wrong, or give the node that does not belong here an empty \
         data-dir",
        stranger.node, stranger.address, group.name
    )
}

fn damage_note(group: &GroupStatus) -> String {
    let note =
        "its log is damaged: do not stop it until a snapshot replaces the damaged part".to_owned();
    match group.log_pinned_by.as_str() {
        other if other.is_empty() || other == group.name => note,
        other => format!(
            "{note}; if group {other}, whose entries are the oldest, does not run on this node, \
             the damage stays: once the other nodes are healthy, start this one with --rejoin"
        ),
    }
}

fn memory_note(group: &GroupStatus) -> String {
    format!(
        "its state machine uses {} of its {} of memory; from {} on, commands are refused",
        size(group.guest_memory_bytes),
        size(group.guest_memory_most),
        size(group.memory_soft_bytes)
    )
}

/// The timers that are set, one a group: as the replica has it that applied most. The log's time
/// stands still between entries, so what is left until then is told by this machine's clock.
fn timers<'a>(all: impl Iterator<Item = &'a GroupStatus>, now_ms: u64) -> Vec<String> {
    let mut furthest: BTreeMap<&str, &GroupStatus> = BTreeMap::new();
    for group in all {
        let known = furthest.entry(&group.name).or_insert(group);
        if known.applied < group.applied {
            *known = group;
        }
    }
    let told = furthest.into_iter().filter_map(|(name, group)| {
        let at_ms = group.wakes_at_ms?;
        let now_ms = now_ms.max(group.log_time_ms);
        let left = Duration::from_millis(at_ms.saturating_sub(now_ms));
        let left = if left.is_zero() { "now".to_owned() } else { format!("in {}", span(left)) };
        Some(format!("{name} has a timer set, to {at_ms} ms of log time: it is due {left}"))
    });
    told.collect()
}

/// Shows a span of time in its two largest units.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let first = units.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(3);
    let mut left = seconds;
    let parts = units[first..].iter().take(2).map(|(name, unit)| {
        let count = left / unit;
        left %= unit;
        format!("{count} {name}")
    });
    parts.collect::<Vec<_>>().join(" ")
}

fn sending_note(peer: &Peer) -> String {
    let Peer { node, snapshot_sent_bytes: sent, snapshot_bytes: all, .. } = peer;
    match sent.saturating_mul(100).checked_div(*all) {
        None => format!("is sending a snapshot to node {node}"),
        Some(share) => format!(
            "is sending a snapshot to node {node}: {} of {}, {share} %",
            size(*sent),
            size(*all)
        ),
    }
}

fn role_name(group: &GroupStatus) -> &'static str {
    match group.role() {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::None | Role::Unspecified => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_how_the_cluster_is() {
        let group = |state: &str, leader_node| GroupStatus {
            name: "g".to_owned(),
            state: state.to_owned(),
            leader_node,
            ..GroupStatus::default()
        };
        let node = |group| StatusResponse { groups: vec![group], ..StatusResponse::default() };
        let (leads, alone) = (|| node(group("serving", 1)), || node(group("serving", 0)));
        assert_eq!(health(&[leads(), leads()], false), 0);
        assert_eq!(health(&[leads(), alone()], false), 0, "somebody knows the leader");
        assert_eq!(health(&[leads()], true), 4, "a node is silent");
        assert_eq!(health(&[leads(), node(group("halted", 1))], false), 4);
        assert_eq!(health(&[alone(), alone()], true), 3);
        assert_eq!(health(&[node(group("failed", 1))], false), 3, "what it knew is old");
        let other = GroupStatus { name: "h".to_owned(), ..group("serving", 0) };
        let two = StatusResponse { groups: vec![group("serving", 1), other], ..leads() };
        assert_eq!(health(&[two], false), 3, "every group counts");
    }

    #[test]
    fn the_timer_is_that_of_the_replica_which_is_ahead() {
        let group = |name: &str, applied, wakes_at_ms| GroupStatus {
            name: name.to_owned(),
            applied,
            log_time_ms: 1_000,
            wakes_at_ms,
            ..GroupStatus::default()
        };
        let all = [
            group("kv", 7, None),
            group("lock", 7, Some(62_000)),
            group("lock", 9, Some(63_500)),
            group("lock", 8, None),
            group("queue", 3, Some(900)),
        ];
        let said = [
            "lock has a timer set, to 63500 ms of log time: it is due in 1 min 2 s",
            "queue has a timer set, to 900 ms of log time: it is due now",
        ];
        assert_eq!(timers(all.iter(), 900), said, "a clock that is behind the log");
        let said = [
            "lock has a timer set, to 63500 ms of log time: it is due in 2 s",
            "queue has a timer set, to 900 ms of log time: it is due now",
        ];
        assert_eq!(timers(all.iter(), 61_500), said, "the log's time stands still");
    }

    #[test]
    fn spans_have_two_units() {
        let rows = [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7_200, "2 h 0 min")];
        let days = [(86_399, "23 h 59 min"), (90_000_061, "1041 d 16 h")];
        for (seconds, said) in rows.into_iter().chain(days) {
            assert_eq!(span(Duration::from_secs(seconds)), said);
        }
    }

    #[test]
    fn a_transfer_says_how_far_it_is() {
        let peer = Peer { node: 2, sending_snapshot: true, ..Peer::default() };
        assert_eq!(sending_note(&peer), "is sending a snapshot to node 2");
        let peer = Peer { snapshot_sent_bytes: 3 << 20, snapshot_bytes: 12 << 20, ..peer };
        let said = "is sending a snapshot to node 2: 3.0 MiB of 12 MiB, 25 %";
        assert_eq!(sending_note(&peer), said);
    }
}

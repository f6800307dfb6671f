//! `forge A->B WHAT [KEY=NUMBER]...`: a frame to B that seems to come from A, which never sent it.

use lockstep_core::group::{Body, Event, Frame, Inbound};
use lockstep_core::ids::{GroupId, ReplicaId};
use raft::eraftpb::{Entry, Message, MessageType};

use super::cluster::Cluster;

pub(crate) fn forge(cluster: &mut Cluster, link: &str, what: &str, options: &[&str]) {
    let (from, to) = link.split_once("->").expect("forge A->B WHAT");
    let number = |key: &str| {
        let option = |option: &&str| option.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        options.iter().find_map(option).map(|text| match text.as_str() {
            "max" => u64::MAX,
            number => number.parse().expect("KEY=NUMBER"),
        })
    };
    let state = |name: &str| {
        let group = cluster.processes[name].group.as_ref().expect("it runs");
        group.recovery_state().clone()
    };
    let (sender, receiver) = (state(from), state(to).replica);
    let node = sender.replica.node();
    let stranger = number("stranger").map(|random| ReplicaId::new(node, random << 20));
    let replica = stranger.unwrap_or(sender.replica);
    let or_zero = |key: &str| number(key).unwrap_or(0);
    let message = |kind| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to) = (replica.0, receiver.0);
        message.term = number("term").unwrap_or(sender.term);
        (message.index, message.log_term) = (or_zero("index"), or_zero("log_term"));
        message.commit = or_zero("commit");
        (message.reject, message.reject_hint) = (number("hint").is_some(), or_zero("hint"));
        for place in 1..=or_zero("entries") {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (message.index + place, message.term);
            message.entries.push(entry);
        }
        Body::Raft(message)
    };
    let body = match what {
        "probe" => Body::Probe,
        "non-member" => Body::NotMember { configuration_index: or_zero("index") },
        "heartbeat" => message(MessageType::MsgHeartbeat),
        "append" => message(MessageType::MsgAppend),
        "appended" => message(MessageType::MsgAppendResponse),
        "vote" => message(MessageType::MsgRequestVote),
        "pre-vote" => message(MessageType::MsgRequestPreVote),
        other => panic!("forge {other}"),
    };
    let frame = Frame {
        lineage: sender.lineage,
        to: Some(receiver),
        boot: number("boot").unwrap_or(sender.boot),
        nonce: number("nonce").unwrap_or(cluster.processes[from].config.nonce),
        wall_ms: number("wall").unwrap_or(cluster.time_ms),
        ..Frame::plain(GroupId::of_name("g"), replica, body)
    };
    cluster.event(to, Event::Frame(Inbound { frame, via: "forged".into() }));
}

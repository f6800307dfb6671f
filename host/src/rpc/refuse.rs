//! [`Refused`]: what a client is told when its call has no answer, as a status or within a stream.
//!
//! The table of words, codes and ways out is at the head of `client.proto`; a test checks this file
//! against it. Every refusal says whether the command may have been applied. If this node cannot
//! know, it says "unknown", with a code on which no proxy and no library retries by itself.

use lockstep_core::apply::Position;
use lockstep_core::fault::{Refusal, Rejection};
use lockstep_core::ids::NodeId;
use lockstep_core::limits;
use lockstep_core::memory::MemoryUse;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::router::Router;
use crate::rpc::proto::client as wire;

/// Metadata keys; see `client.proto`.
pub(super) const REFUSAL: &str = "lockstep-refusal";
const OUTCOME: &str = "lockstep-outcome";
pub(super) const LEADER: &str = "lockstep-leader";
const LEADER_NODE: &str = "lockstep-leader-node";
const BEGIN: &str = "lockstep-begin";
/// Metadata of a forwarded call: how often it was forwarded.
pub(super) const HOP: &str = "lockstep-hop";

/// A call that has no answer, and what its client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    code: Code,
    /// `lockstep-refusal`.
    word: &'static str,
    message: String,
    /// The command may have been applied, or may still be.
    unknown: bool,
    /// The leader, and its address, unless that is not known or wrong.
    leader: Option<(NodeId, Option<String>)>,
    /// From here on events are kept, if that is why.
    begin: Option<Position>,
}

impl Refused {
    /// The refusal of a group.
    pub(super) fn by_group(refusal: &Refusal, group: &str, router: &Router) -> Self {
        let (code, word) = match refusal {
            Refusal::NotLeader { .. } => (Code::FailedPrecondition, "not-leader"),
            Refusal::Overloaded => (Code::ResourceExhausted, "overloaded"),
            Refusal::Lost => (Code::Aborted, "lost"),
            Refusal::Unknown { .. } => (Code::Unknown, "unknown"),
            Refusal::DiskFull { .. } => (Code::ResourceExhausted, "disk-full"),
            Refusal::LogFull { .. } => (Code::ResourceExhausted, "log-full"),
            Refusal::MemoryHigh { .. } => (Code::ResourceExhausted, "memory-high"),
            Refusal::CheckpointTooSoon { .. } => (Code::ResourceExhausted, "checkpoint-too-soon"),
            Refusal::ReadTimeout => (Code::Unavailable, "read-timeout"),
            Refusal::NotServing { .. } => (Code::Unavailable, "not-serving"),
            Refusal::Halted { .. } => (Code::Unavailable, "halted"),
            Refusal::Frozen => (Code::Unavailable, "frozen"),
            Refusal::NotNow { .. } => (Code::FailedPrecondition, "not-now"),
            Refusal::QueriesRefused { .. } => (Code::Unavailable, "queries-refused"),
            Refusal::QueryFaulted { .. } => (Code::Internal, "query-faulted"),
            Refusal::QueryTooMuch { .. } => (Code::InvalidArgument, "query-too-much"),
            Refusal::ShuttingDown => (Code::Unavailable, "shutting-down"),
        };
        let leader = refusal.leader();
        let leader = leader.map(|node| (node, router.hint(node).map(str::to_owned)));
        let unknown = matches!(refusal, Refusal::Unknown { .. });
        let mut message = format!("group \"{group}\": {refusal}{}", way_out(refusal));
        if let Some((_, Some(address))) = &leader {
            message += &format!(
                "; ask it at {address}; if clients reach it at another address, set `[advertise]` \
                 in each node.toml"
            );
        } else if let Some((node, None)) = &leader
            && let Some(why) = router.wrong_address(*node)
        {
            message += &format!("; its address here is wrong: {why}; ask another node");
        }
        Self { code, word, message, unknown, leader, begin: None }
    }

    /// The group's actor ended while it had the command.
    pub(super) fn cut_off(group: &str, router: &Router) -> Self {
        let why = "the group stopped".to_owned();
        Self::by_group(&Refusal::Unknown { why }, group, router)
    }

    /// The node is starting and has no groups yet.
    pub(super) fn starting() -> Self {
        let message = "this node is starting: it is reading its modules and its log; try another \
            node, or this one in a moment";
        Self::nothing(Code::Unavailable, "starting", message.to_owned())
    }

    pub(super) fn unknown_group(name: &str, router: &Router) -> Self {
        let known: Vec<&str> = router.groups().map(|group| group.name()).collect();
        let message = if name.is_empty() {
            format!("name a group: this node has {}", known.join(", "))
        } else {
            format!("unknown group \"{name}\": this node has {}", known.join(", "))
        };
        Self::nothing(Code::NotFound, "unknown-group", message)
    }

    pub(super) fn too_large(what: &str, have: usize, limit: usize) -> Self {
        let message =
            format!("{what} of {have} bytes is over the limit of {limit} bytes; split it");
        Self::nothing(Code::InvalidArgument, "too-large", message)
    }

    pub(super) fn malformed(why: impl Into<String>) -> Self {
        Self::nothing(Code::InvalidArgument, "malformed", why.into())
    }

    /// Events from the position `from` on are no longer kept, but those from `begin` on are.
    pub(super) fn compacted(group: &str, from: Position, begin: Position) -> Self {
        let message = format!(
            "group \"{group}\": events at {from} are no longer kept; begin at {begin} and miss \
             those in between, or query and watch from what the answer shows"
        );
        let refused = Self::nothing(Code::OutOfRange, "compacted", message);
        Self { begin: Some(begin), ..refused }
    }

    /// The position is after what the replica can say something about.
    pub(super) fn from_future(group: &str, from: Position, applied: u64) -> Self {
        let message = format!(
            "group \"{group}\": this replica has applied entry {applied}, and {from} is after the \
             next one; watch from the applied index of a query, or at a replica that lags less"
        );
        Self::nothing(Code::OutOfRange, "from-future", message)
    }

    /// The node, or the connection, has as many watches as it may.
    pub(super) fn too_many_watches(whose: &str, most: usize) -> Self {
        let message = format!(
            "overloaded: {whose} has {most} watches, which is the limit; end one, or watch at \
             another node"
        );
        Self::nothing(Code::ResourceExhausted, "overloaded", message)
    }

    pub(super) fn deadline(group: &str) -> Self {
        let message = format!(
            "group \"{group}\": the call's deadline passed before the answer came; \
             a command may or may not have been applied, so only a retry under the same session \
             and sequence is safe"
        );
        Self { unknown: true, ..Self::nothing(Code::DeadlineExceeded, "deadline", message) }
    }

    /// Another node forwarded the call here, but does not mean this node or this group.
    pub(super) fn misdirected(group: &str, why: &str) -> Self {
        let message = format!("group \"{group}\": a node forwarded this call here, but {why}");
        Self::nothing(Code::Unavailable, "leader-unreachable", message)
    }

    /// Clients, or this connection, hold all the memory that they may; the call needs `bytes` more.
    pub(super) fn no_memory(bytes: usize) -> Self {
        let message = format!(
            "overloaded: calls hold all the memory that they may, and this one needs {bytes} bytes \
             more; wait a little and try again"
        );
        Self::nothing(Code::ResourceExhausted, "overloaded", message)
    }

    /// The group has as many sessions as it may, and none can be evicted.
    pub(super) fn sessions_full(group: &str, rejection: &Rejection) -> Self {
        let message = format!("group \"{group}\": {rejection}");
        Self::nothing(Code::ResourceExhausted, "sessions-full", message)
    }

    /// Clients have as many connections as they may, and none can be closed.
    pub(super) fn no_place(connections: usize) -> Self {
        let message = format!(
            "overloaded: {connections} connections are open, all of them busy; try another node, \
             or raise `connections`"
        );
        Self::nothing(Code::ResourceExhausted, "overloaded", message)
    }

    /// A message did not begin, or did not arrive whole, in time.
    pub(super) fn half_sent() -> Self {
        let message = "a message did not arrive whole in time and was not processed; send it again";
        Self::nothing(Code::DeadlineExceeded, "deadline", message.to_owned())
    }

    /// The client does not read the answers that wait on its connection, and one more would hold
    /// too much memory.
    pub(super) fn unread() -> Self {
        let message = "the answer was dropped because earlier answers on this connection were not \
             read; a command may or may not have been applied, so only a retry under the same \
             session and sequence is safe";
        Self { unknown: true, ..Self::nothing(Code::Unknown, "unread", message.to_owned()) }
    }

    /// The call could not be forwarded to the leader; `unknown` if it may have arrived
    /// nevertheless.
    pub(super) fn unreachable(leader: NodeId, group: &str, why: &str, unknown: bool) -> Self {
        if unknown {
            let message = format!(
                "group \"{group}\": the call was forwarded to the leader, node {leader}, and no \
                 answer came: {why}; a command may or may not have been applied, so only a retry \
                 under the same session and sequence is safe"
            );
            return Self { unknown, ..Self::nothing(Code::Unknown, "unknown", message) };
        }
        let message = format!(
            "group \"{group}\": the call could not be forwarded to the leader, node {leader}: \
             {why}; ask that node, or try again"
        );
        Self::nothing(Code::Unavailable, "leader-unreachable", message)
    }

    fn nothing(code: Code, word: &'static str, message: String) -> Self {
        Self { code, word, message, unknown: false, leader: None, begin: None }
    }

    pub(super) fn into_status(self) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(REFUSAL, AsciiMetadataValue::from_static(self.word));
        let outcome = if self.unknown { "unknown" } else { "nothing" };
        metadata.insert(OUTCOME, AsciiMetadataValue::from_static(outcome));
        if let Some(begin) = self.begin {
            let begin = AsciiMetadataValue::try_from(begin.to_string());
            metadata.insert(BEGIN, begin.expect("digits and a dot"));
        }
        if let Some((node, address)) = self.leader {
            metadata.insert(LEADER_NODE, AsciiMetadataValue::from(u64::from(node.0)));
            // An address that cannot be a header value is left out; the text has it.
            if let Some(Ok(address)) = address.map(AsciiMetadataValue::try_from) {
                metadata.insert(LEADER, address);
            }
        }
        Status::with_metadata(self.code, self.message, metadata)
    }

    pub(super) fn into_stream(self) -> wire::StreamRefusal {
        wire::StreamRefusal {
            code: self.code as u32,
            refusal: self.word.to_owned(),
            message: self.message,
            outcome_unknown: self.unknown,
            leader: self.leader.and_then(|(_, address)| address).unwrap_or_default(),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        refused.into_status()
    }
}

/// Passes the leader's refusal of a forwarded call on to this node's client.
pub(super) fn pass_on(status: &Status) -> Status {
    let mut metadata = MetadataMap::new();
    for key in [REFUSAL, OUTCOME, LEADER, LEADER_NODE] {
        if let Some(value) = status.metadata().get(key) {
            metadata.insert(key, value.clone());
        }
    }
    Status::with_metadata(status.code(), status.message(), metadata)
}

/// Refuses a command that is too large for any group.
pub(super) fn check_command(command: &[u8]) -> Result<(), Refused> {
    if command.len() > limits::COMMAND_BYTES_MAX {
        return Err(Refused::too_large("command", command.len(), limits::COMMAND_BYTES_MAX));
    }
    Ok(())
}

/// Refuses a call of a session without a sequence: all calls with sequence 0 would be one call.
pub(super) fn check_sequence(session: u64, sequence: u64) -> Result<(), Refused> {
    if session != 0 && sequence == 0 {
        return Err(Refused::malformed("calls of a session are numbered from 1, not 0"));
    }
    Ok(())
}

fn way_out(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Overloaded => "; wait a little and try again",
        Refusal::Unknown { .. } => "; only a retry under the same session and sequence is safe",
        Refusal::Lost | Refusal::ReadTimeout => "; try again",
        Refusal::NotServing { .. } | Refusal::Halted { .. } | Refusal::ShuttingDown => {
            "; try another node"
        }
        Refusal::QueriesRefused { .. } => "; ask again in a minute; commands are still taken",
        Refusal::QueryTooMuch { .. } => "; ask for less at a time",
        Refusal::QueryFaulted { .. } => "; do not repeat it: the state machine cannot answer it",
        Refusal::Frozen => "; `lockstep unfreeze` lets commands go on",
        Refusal::NotLeader { .. }
        | Refusal::NotNow { .. }
        | Refusal::DiskFull { .. }
        | Refusal::CheckpointTooSoon { .. } => "",
        Refusal::LogFull { .. } => "; `lockstep status` says why",
        Refusal::MemoryHigh { bytes, bound, most }
            if (MemoryUse { bytes: *bytes, most: *most }).refuses_all_from(*bound) =>
        {
            "; if no rebuild releases memory, only a group with more `memory` can take the state"
        }
        Refusal::MemoryHigh { .. } => "; `lockstep apply --relief` sends one that frees memory",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::router::{Addresses, WrongAddresses};

    /// The code of each word in the table at the head of `client.proto`.
    fn table() -> BTreeMap<&'static str, &'static str> {
        let proto = include_str!("../../proto/client.proto");
        let rows =
            proto.lines().skip_while(|line| !line.starts_with("//   lockstep-refusal    code"));
        let rows = rows.skip(1).take_while(|line| line.starts_with("//   "));
        let rows = rows.filter(|line| !line.starts_with("//     "));
        let words = |row: &'static str| {
            let mut words = row.trim_start_matches("//").split_whitespace();
            Some((words.next()?, words.next()?))
        };
        rows.filter_map(words).collect()
    }

    fn all() -> Vec<Refused> {
        let router = Router::new(NodeId(1), [], Addresses::default());
        let why = String::new;
        let groups = [
            Refusal::NotLeader { leader: None },
            Refusal::Overloaded,
            Refusal::Lost,
            Refusal::Unknown { why: why() },
            Refusal::DiskFull { need: 1, have: 0 },
            Refusal::LogFull { bytes: 1, bound: 0 },
            Refusal::MemoryHigh { bytes: 1, bound: 0, most: 2 },
            Refusal::CheckpointTooSoon { wait_ms: 1 },
            Refusal::ReadTimeout,
            Refusal::NotServing { state: "restoring", cause: why() },
            Refusal::Halted { cause: why() },
            Refusal::Frozen,
            Refusal::NotNow { why: why() },
            Refusal::QueriesRefused { cause: why() },
            Refusal::QueryFaulted { cause: why() },
            Refusal::QueryTooMuch { cause: why() },
            Refusal::ShuttingDown,
        ];
        let groups = groups.iter().map(|refusal| Refused::by_group(refusal, "g", &router));
        groups
            .chain([
                Refused::cut_off("g", &router),
                Refused::unknown_group("g", &router),
                Refused::too_large("command", 2, 1),
                Refused::malformed("so"),
                Refused::compacted("g", Position::of_entry(1), Position::of_entry(2)),
                Refused::from_future("g", Position::of_entry(9), 2),
                Refused::too_many_watches("this node", 1),
                Refused::deadline("g"),
                Refused::no_memory(1),
                Refused::no_place(1),
                Refused::half_sent(),
                Refused::starting(),
                Refused::sessions_full("g", &Rejection::TooManySessions),
                Refused::unread(),
                Refused::unreachable(NodeId(2), "g", "why", true),
                Refused::unreachable(NodeId(2), "g", "why", false),
            ])
            .collect()
    }

    /// The table has every word with the code that this file sends, and no other row.
    #[test]
    fn every_refusal_stands_in_the_table() {
        let table = table();
        for refused in all() {
            let code = format!("{:?}", refused.code).to_uppercase();
            let told = table.get(refused.word).map(|code| code.replace('_', ""));
            assert_eq!(told, Some(code), "{refused:?}");
        }
        let said: BTreeSet<&str> = all().iter().map(|refused| refused.word).collect();
        assert_eq!(said, table.into_keys().collect());
    }

    /// The leader is named, and its address only while no other node answers there.
    #[test]
    fn a_wrong_address_is_told_to_nobody() {
        let peers = BTreeMap::from([(NodeId(2), "two:7102".to_owned())]);
        let addresses = Addresses { peers, ..Addresses::default() };
        let wrong = WrongAddresses::default();
        let router = Router::new(NodeId(1), [], addresses).knowing(wrong.clone());
        let refusal = Refusal::NotLeader { leader: Some(NodeId(2)) };
        let told = || Refused::by_group(&refusal, "g", &router);
        assert_eq!(told().leader, Some((NodeId(2), Some("two:7102".to_owned()))));
        wrong.add(NodeId(2), "this is another");
        assert_eq!(told().leader, Some((NodeId(2), None)));
        let said = told().message;
        assert!(said.contains("wrong: this is another; ask another node"), "{said}");
        assert!(!said.contains("two:7102"), "{said}");
        let status = told().into_status();
        assert!(status.metadata().get(LEADER).is_none());
        assert!(status.metadata().get(LEADER_NODE).is_some());
        wrong.remove(NodeId(2));
        assert_eq!(told().leader, Some((NodeId(2), Some("two:7102".to_owned()))));
    }

    /// A command that may have been applied is not repeated by software that knows only gRPC's
    /// codes.
    #[test]
    fn what_may_have_happened_has_a_code_that_nobody_repeats() {
        for refused in all().into_iter().filter(|refused| refused.unknown) {
            assert!(matches!(refused.code, Code::Unknown | Code::DeadlineExceeded), "{refused:?}");
        }
    }
}

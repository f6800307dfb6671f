//! What a message promises is durable before it is sent. Planted: `acknowledge_before_sync`,
//! `forget_vote`.

use lockstep_core::group::{Body, Frame};
use lockstep_host::wal::WalReader;
use raft::eraftpb::{Message, MessageType};

use super::{Checked, violated};

/// Checks a frame that a node with this durable log sends.
pub fn sends(frame: &Frame, log: &WalReader) -> Checked {
    let Some(state) = log.state(frame.group) else {
        return violated("promises", "a frame is sent before the replica's id is durable");
    };
    let message = match &frame.body {
        Body::Raft(message) => message,
        Body::Superseded { .. } => return Ok(()),
        Body::Probe
        | Body::Nothing
        | Body::Have
        | Body::Join
        | Body::NotMember { .. }
        | Body::Stranger
        | Body::Want(_) => return booted(frame, state.boot),
    };
    booted(frame, state.boot)?;
    let broken = |what: &str| {
        let kind = message.get_msg_type();
        violated("promises", format!("{kind:?} of term {} is sent: {what}", message.term))
    };
    let voted =
        |vote: u64| state.term > message.term || (state.term == message.term && state.vote == vote);
    match message.get_msg_type() {
        MessageType::MsgAppendResponse if !message.reject => {
            let last = log.last_index(frame.group).unwrap_or(0);
            // The same batch may have overwritten the entry with one of a later leader. That leader
            // was elected with this replica's vote, or without needing it, so this breaks nothing.
            if state.term > message.term || (state.term == message.term && last >= message.index) {
                Ok(())
            } else {
                broken("the entries that it acknowledges are not durable")
            }
        }
        MessageType::MsgRequestVoteResponse if !message.reject && !voted(message.to) => {
            broken("the vote is not durable")
        }
        MessageType::MsgRequestVote if !voted(message.from) => {
            broken("the candidate's own vote is not durable")
        }
        MessageType::MsgAppend | MessageType::MsgHeartbeat if state.term < message.term => {
            broken("the leader's term is not durable")
        }
        _other => Ok(()),
    }
}

fn booted(frame: &Frame, boot: u64) -> Checked {
    if frame.boot == boot { Ok(()) } else { violated("promises", "the boot count is not durable") }
}

/// Whether only a leader sends such a message.
pub fn is_leaders(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat)
}

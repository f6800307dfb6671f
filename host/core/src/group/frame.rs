//! What replicas of a group say to each other.

use std::sync::Arc;

use raft::eraftpb::Message;

use crate::fault::Shortage;
use crate::ids::{GroupId, Lineage, ReplicaId};
use crate::memory::MemoryUse;
use crate::snapshot::chunk::Want;

/// One message between two replicas, with what is needed to judge its sender.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    pub group: GroupId,
    /// Which founding of the group the sender belongs to, or was told to join; `None` while any
    /// will do.
    pub lineage: Option<Lineage>,
    pub from: ReplicaId,
    /// Whom it is for; `None` while the sender does not know who lives there.
    pub to: Option<ReplicaId>,
    /// Starts of the sender: a lower one comes from a copied data directory.
    pub boot: u64,
    /// Drawn at each start: tells two processes of one boot apart.
    pub nonce: u64,
    /// Boot and nonce of whom it is for, as the sender heard last; `None` if it did not.
    pub known: Option<(u64, u64)>,
    /// The sender's wall clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// The sender's log has too little room: it takes no commands and does not want to lead.
    pub short: Option<Shortage>,
    /// The last entry that the sender's guest applied.
    pub applied: u64,
    /// The sender applies nothing more.
    pub halted: bool,
    /// The disk of the sender's log hangs: it does not want to lead.
    pub stalled: bool,
    /// What the sender's guest has of its memory, once it has one.
    pub memory: Option<MemoryUse>,
    /// The index of the newest good snapshot that the sender lists; 0 if it lists none.
    pub snapshot: u64,
    /// How it stands with the sender's guest.
    pub guest: GuestIs,
    /// The sender, a leader, lets whom it is for rebuild its guest.
    pub grants: bool,
    pub body: Body,
}

impl Frame {
    /// A frame that says nothing beside its body, of a replica that was started once.
    pub fn plain(group: GroupId, from: ReplicaId, body: Body) -> Self {
        Self {
            group,
            lineage: None,
            from,
            to: None,
            boot: 1,
            nonce: 0,
            known: None,
            wall_ms: 0,
            short: None,
            applied: 0,
            halted: false,
            stalled: false,
            memory: None,
            snapshot: 0,
            guest: GuestIs::Live,
            grants: false,
            body,
        }
    }

    /// Bytes that the frame holds in memory, about.
    pub fn bytes(&self) -> usize {
        let entries = match &self.body {
            Body::Raft(message) => message.entries.iter().map(crate::entry::footprint).sum(),
            Body::Probe
            | Body::Nothing
            | Body::Have
            | Body::Join
            | Body::NotMember { .. }
            | Body::Want(_)
            | Body::Stranger
            | Body::Superseded { .. } => 0,
        };
        size_of::<Self>() + entries
    }
}

/// How it stands with a replica's guest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum GuestIs {
    /// It applies what is committed.
    #[default]
    Live,
    /// It does, and a rebuild of it would give memory back: the replica waits for its turn.
    ToBeRebuilt,
    /// There is none that applies: it is being built, lacks a snapshot to be built from, or halted.
    Absent,
}

/// The payload of a [`Frame`].
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    Raft(Message),
    /// "Who are you to this group?" Asked by a replica in no configuration.
    Probe,
    /// "I have met this group and know nothing of it": an answer to a probe.
    Nothing,
    /// "This group exists": an answer to a probe.
    Have,
    /// "Take me in": asked by a replica in no configuration.
    Join,
    /// "You are not in the configuration that I know, made by the entry at this index."
    NotMember {
        configuration_index: u64,
    },
    /// "Send me such an object": asked by a replica whose own is rotten, or that has none.
    Want(Want),
    /// "Yours is another group of this name": the frame's lineage is not the one of the replica
    /// that is told.
    Stranger,
    /// "Another process runs as you, and it started later." The frame's `boot` and `nonce` are
    /// those of the process that is told: whoever lives at the node's address by now may be
    /// somebody else.
    Superseded {
        address: String,
    },
}

/// A frame as it came in, with the address it came from.
#[derive(Clone, PartialEq, Debug)]
pub struct Inbound {
    pub frame: Frame,
    pub via: Arc<str>,
}

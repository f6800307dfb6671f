//! The frames that the replicas of a group exchange.

use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use crate::fault::Shortage;
use crate::group::trial::TrialStatus;
use crate::ids::{GroupId, Lineage, ReplicaId};
use crate::memory::MemoryUse;
use crate::snapshot::chunk::{ObjectRef, Want};

/// One message between two replicas, with what the receiver needs to judge its sender.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    pub group: GroupId,
    /// The lineage of the group that the sender belongs to or was configured to join; `None` while
    /// the sender accepts any.
    pub lineage: Option<Lineage>,
    pub from: ReplicaId,
    /// The addressee; `None` while the sender does not know which replica is on that node.
    pub to: Option<ReplicaId>,
    /// How often the sender was started. A count lower than the known one comes from a copied data
    /// directory.
    pub boot: u64,
    /// Drawn at each start: tells two processes with the same boot count apart.
    pub nonce: u64,
    /// The addressee's boot count and nonce as the sender last heard them; `None` if it never did.
    pub known: Option<(u64, u64)>,
    /// The sender's wall clock, milliseconds since 1970.
    pub wall_ms: u64,
    /// The sender's log is short of space, or its next snapshot is overdue: it accepts no commands
    /// and does not want to lead.
    pub short: Option<Shortage>,
    /// The last entry that the sender's guest applied.
    pub applied: u64,
    /// The sender applies no further entry: it is halted at this one, which it has never applied,
    /// or at 0 if no entry is to blame or it may have applied it before it was started.
    pub halted: Option<u64>,
    /// The sender has diverged and waits for an operator: it takes no snapshot.
    pub diverged: bool,
    /// The disk of the sender's log hangs: it does not want to lead.
    pub stalled: bool,
    /// The memory use of the sender's guest; `None` before it has a guest.
    pub memory: Option<MemoryUse>,
    /// The index of the newest good snapshot that the sender lists; 0 if it lists none, or could
    /// not start from any.
    pub snapshot: u64,
    /// The newest snapshot that the sender's own guest wrote; `None` if it wrote none since it was
    /// started, or its state was replaced.
    pub taken: Option<ObjectRef>,
    /// The condition of the sender's guest.
    pub guest: GuestIs,
    /// The sender leads, and allows the addressee to rebuild its guest.
    pub grants: bool,
    /// The trial that the sender leads or takes part in; `None` if there is none.
    pub trial: Option<Box<TrialStatus>>,
    pub body: Body,
}

impl Frame {
    /// A frame that carries nothing besides its body, from a replica in its first start.
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
            halted: None,
            diverged: false,
            stalled: false,
            memory: None,
            snapshot: 0,
            taken: None,
            guest: GuestIs::Live,
            grants: false,
            trial: None,
            body,
        }
    }

    /// Whether the frame is an append. Appends of one sender keep their order; frames of all other
    /// kinds may overtake them.
    pub fn is_append(&self) -> bool {
        self.body.raft().is_some_and(|message| message.get_msg_type() == MessageType::MsgAppend)
    }

    /// About how many bytes of memory the frame takes.
    pub fn bytes(&self) -> usize {
        let entries = self.body.raft().into_iter().flat_map(|message| &message.entries);
        size_of::<Self>() + entries.map(crate::entry::footprint).sum::<usize>()
    }
}

/// The condition of a replica's guest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum GuestIs {
    /// It applies committed entries.
    #[default]
    Live,
    /// It applies entries, and a rebuild would release memory: the replica waits for its turn.
    ToBeRebuilt,
    /// No guest applies entries: it is being built, has no snapshot to be built from, or is halted.
    Absent,
}

/// The payload of a [`Frame`].
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    Raft(Message),
    /// "Do you know this group, and am I in it?" Asked by a replica without a log, or by one that
    /// was told that it is no member.
    Probe,
    /// "I have met this group and know nothing of it": an answer to a probe.
    Nothing,
    /// "This group exists": an answer to a probe.
    Have,
    /// "Add me": asked by a replica that is in no configuration.
    Join,
    /// "You are not in the configuration that I know, made by the entry at this index."
    NotMember {
        configuration_index: u64,
    },
    /// "Send me such an object": asked by a replica whose own is corrupt, that has none, or
    /// that halted at an entry which others applied.
    Want(Want),
    /// "Yours is another group of this name": the addressee's lineage is not the one of this frame.
    Stranger,
    /// "Another process runs as you, and it started later." The frame's `boot` and `nonce` are
    /// those of the process it is meant for: by now a different process may run at the node's
    /// address.
    Superseded {
        address: String,
    },
}

impl Body {
    /// Raft's message, if the body is one.
    pub fn raft(&self) -> Option<&Message> {
        match self {
            Self::Raft(message) => Some(message),
            Self::Probe
            | Self::Nothing
            | Self::Have
            | Self::Join
            | Self::NotMember { .. }
            | Self::Want(_)
            | Self::Stranger
            | Self::Superseded { .. } => None,
        }
    }
}

/// A frame as it arrived, with the address it came from.
#[derive(Clone, PartialEq, Debug)]
pub struct Inbound {
    pub frame: Frame,
    pub via: Arc<str>,
}

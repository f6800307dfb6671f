//! Snapshot transfers: the production state machines of both ends, and the channel between them.
//!
//! A channel keeps all frames and their order until it breaks. It may stall for longer than either
//! end waits.

use std::collections::VecDeque;

use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Purpose};
use lockstep_host::bulk::{Receiving, Sending};
use lockstep_host::store::DiskPlace;

pub struct Transfer {
    pub group: GroupId,
    pub from: (NodeId, u64),
    pub to: (NodeId, u64),
    pub receiver: ReplicaId,
    pub purpose: Purpose,
    pub desc: SnapshotDesc,
    pub sending: Option<Sending>,
    pub receiving: Option<Receiving>,
    pub _slot: DiskPlace,
    pub requests: VecDeque<BulkRequest>,
    pub replies: VecDeque<BulkReply>,
    /// The receiver's process or its transfer has ended: frames on their way to it are lost.
    pub receiver_broken: bool,
    /// The sender's process or its transfer has ended: replies on their way to it are lost.
    pub sender_broken: bool,
    /// The time until which no frame passes.
    pub stalled_until: u64,
}

//! Snapshot transfers: the production machines of both ends, and the channel between them.
//!
//! A channel is in order and lossless until it breaks; it may stall for longer than either end
//! waits.

use std::collections::VecDeque;

use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
use lockstep_core::snapshot::SnapshotDesc;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, Purpose};
use lockstep_host::bulk::{Receiving, Sending};
use lockstep_host::store::OutboundSlot;

pub struct Transfer {
    pub group: GroupId,
    pub from: (NodeId, u64),
    pub to: (NodeId, u64),
    pub receiver: ReplicaId,
    pub purpose: Purpose,
    pub desc: SnapshotDesc,
    pub sending: Option<Sending>,
    pub receiving: Option<Receiving>,
    pub _slot: OutboundSlot,
    /// Some of the payload went out.
    pub moved: bool,
    pub requests: VecDeque<BulkRequest>,
    pub replies: VecDeque<BulkReply>,
    /// The receiver is gone or refuses to go on: what is under way to it is lost.
    pub receiver_broken: bool,
    pub sender_broken: bool,
    /// Nothing passes until then.
    pub stalled_until: u64,
}

//! The frames that wait to be sent to one peer.
//!
//! Raft's appends carry entries and keep their order among themselves. Everything else (heartbeats,
//! votes, answers) is small and passes them, so that a group whose follower catches up over a slow
//! link does not delay other groups' heartbeats, without which they would lose their leaders. Raft
//! tolerates this reordering.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_core::group::Frame;
use lockstep_core::limits;
use lockstep_core::mutant::planted;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::rpc::convert::frame_weight;

/// Frames that may wait in each of the two queues.
const FRAMES_MAX: usize = 4_096;
/// Bytes of appends that may wait: what raft may have in flight to a peer in one group.
const APPENDS_BYTES_MAX: usize = limits::APPEND_INFLIGHT_MAX * limits::APPEND_BYTES_MAX as usize;

/// The end that frames are sent to.
pub(super) struct FrameSender {
    appends: mpsc::Sender<Box<Frame>>,
    others: mpsc::Sender<Box<Frame>>,
    /// Bytes of the appends that wait.
    queued: Arc<AtomicUsize>,
}

/// The end that the link receives them from.
pub(super) struct FrameReceiver {
    appends: mpsc::Receiver<Box<Frame>>,
    others: mpsc::Receiver<Box<Frame>>,
    queued: Arc<AtomicUsize>,
}

/// The queue has no space for the frame, or nobody takes frames any more.
#[derive(Debug)]
pub(super) struct QueueFull;

pub(super) fn peer_queue() -> (FrameSender, FrameReceiver) {
    let (appends_in, appends) = mpsc::channel(FRAMES_MAX);
    let (others_in, others) = mpsc::channel(FRAMES_MAX);
    let queued = Arc::new(AtomicUsize::new(0));
    let sender =
        FrameSender { appends: appends_in, others: others_in, queued: Arc::clone(&queued) };
    (sender, FrameReceiver { appends, others, queued })
}

impl FrameSender {
    pub(super) fn try_send(&self, frame: Box<Frame>) -> Result<(), QueueFull> {
        if !frame.is_append() && !planted("heartbeats_wait") {
            return self.others.try_send(frame).map_err(|_| QueueFull);
        }
        let weight = frame_weight(&frame);
        let fits = self.queued.fetch_add(weight, Ordering::Relaxed) + weight <= APPENDS_BYTES_MAX;
        if fits && self.appends.try_send(frame).is_ok() {
            return Ok(());
        }
        self.queued.fetch_sub(weight, Ordering::Relaxed);
        Err(QueueFull)
    }
}

impl FrameReceiver {
    /// The next frame, after waiting for one; `None` once the sender is gone. May be cancelled.
    pub(super) async fn recv(&mut self) -> Option<Box<Frame>> {
        // Both senders are dropped together, so `None` from either queue is the end.
        tokio::select! {
            biased;
            frame = self.others.recv() => frame,
            frame = self.appends.recv() => frame.inspect(|frame| self.left(frame)),
        }
    }

    /// The next frame, if there is one.
    pub(super) fn try_recv(&mut self) -> Result<Box<Frame>, TryRecvError> {
        self.others
            .try_recv()
            .or_else(|_| self.appends.try_recv().inspect(|frame| self.left(frame)))
    }

    fn left(&self, frame: &Frame) {
        self.queued.fetch_sub(frame_weight(frame), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use lockstep_core::group::Body;
    use lockstep_core::ids::{GroupId, NodeId, ReplicaId};
    use raft::eraftpb::{Entry, Message, MessageType};

    use super::*;

    fn frame(kind: MessageType, index: u64, bytes: usize) -> Box<Frame> {
        let mut message = Message { index, ..Message::default() };
        message.set_msg_type(kind);
        if bytes > 0 {
            message.entries =
                vec![Entry { data: vec![0; bytes].into(), ..Entry::default() }].into();
        }
        let from = ReplicaId::new(NodeId(1), 0);
        Box::new(Frame::plain(GroupId::of_name("g"), from, Body::Raft(message)))
    }

    fn index(frame: &Frame) -> u64 {
        match &frame.body {
            Body::Raft(message) => message.index,
            other => panic!("{other:?}"),
        }
    }

    /// Appends of one group fill the queue. The heartbeats of another pass them, and the appends
    /// keep their order.
    #[tokio::test]
    async fn heartbeats_pass_appends() {
        let (sender, mut receiver) = peer_queue();
        let mut put = 0;
        while sender.try_send(frame(MessageType::MsgAppend, put, 1 << 20)).is_ok() {
            put += 1;
        }
        assert_eq!(put, 63, "64 MiB, less what frames weigh besides their entries");
        sender
            .try_send(frame(MessageType::MsgHeartbeat, 1_000, 0))
            .expect("it needs no space of theirs");
        sender.try_send(frame(MessageType::MsgRequestVote, 1_001, 0)).expect("likewise");
        let first = receiver.recv().await.expect("a frame");
        assert_eq!(index(&first), 1_000);
        assert_eq!(index(&receiver.try_recv().expect("a frame")), 1_001);
        for expected in 0..put {
            assert_eq!(index(&receiver.try_recv().expect("a frame")), expected);
        }
        assert_eq!(receiver.queued.load(Ordering::Relaxed), 0);
        drop(sender);
        assert_eq!(receiver.recv().await, None);
    }
}

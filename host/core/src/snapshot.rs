//! Snapshots as the core sees them: their descriptor, and the protocol that moves them.

pub mod chunk;
pub mod desc;
pub mod receive;
pub mod send;

use crate::fault::Shortage;

pub use desc::{Configuration, SnapshotDesc};

/// A sealed and read-back snapshot object that the host holds for the core.
///
/// The core never looks inside. Dropping it before [`Hold::disarm`] tells the host to discard the
/// object.
pub trait Hold: Send + std::fmt::Debug {
    /// From now on a drop discards nothing: the object is in a batch on its way to the log, and the
    /// log alone decides whether it is listed.
    fn disarm(&mut self);

    /// A list is durable that holds the object, or a later list. If the durable list lacks the
    /// object, it may be deleted.
    fn listed(&mut self) {}
}

/// The space that disk, budget and cap have for the next snapshot beside the newest one, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotSpace {
    /// The size of the next snapshot.
    pub need: u64,
    /// The space that the disk has for it once all older snapshots are deleted.
    pub have: u64,
    /// The space that budget and cap leave for it in that case.
    pub quota: u64,
    /// The space that the log may still take before it is stopped.
    pub margin: u64,
}

impl SnapshotSpace {
    pub fn fits(self) -> bool {
        self.have.min(self.quota) >= self.need
    }

    /// The disk's shortage, if the log has to stop growing now to leave space for the snapshot.
    pub fn shortage(self) -> Option<Shortage> {
        let Self { need, have, margin, quota: _ } = self;
        let need = need.saturating_add(margin);
        (have < need).then_some(Shortage::Disk { need, have })
    }
}

/// A verified object on its way into the list of recovery points.
#[derive(Debug)]
pub struct Verified {
    pub desc: SnapshotDesc,
    pub hold: Box<dyn Hold>,
}

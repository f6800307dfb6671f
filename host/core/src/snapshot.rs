//! Snapshots as the core sees them: what denotes one, and the protocol that moves one.

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
    /// From now on the drop does nothing: the object is in a batch on its way to the log, and only
    /// the log decides whether it is listed.
    fn disarm(&mut self);

    /// The list that it entered is durable, or one behind it: what is not listed now may go.
    fn listed(&mut self) {}
}

/// How disk, budget and cap stand with the next snapshot beside the newest one, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// What the next one takes.
    pub need: u64,
    /// What the disk has for it once all older ones are gone.
    pub have: u64,
    /// What budget and cap have for it then.
    pub quota: u64,
    /// What the log may still take while it is told to stop.
    pub margin: u64,
}

impl Room {
    pub fn fits(self) -> bool {
        self.have.min(self.quota) >= self.need
    }

    /// What the disk lacks if the log is to take no more.
    pub fn shortage(self) -> Option<Shortage> {
        let Self { need, have, margin, quota: _ } = self;
        let need = need.saturating_add(margin);
        (have < need).then_some(Shortage::Disk { need, have })
    }
}

/// A verified object on its way into the log's list.
#[derive(Debug)]
pub struct Verified {
    pub desc: SnapshotDesc,
    pub hold: Box<dyn Hold>,
}

//! Snapshots as the core sees them: what denotes one, and the protocol that moves one.

pub mod chunk;
pub mod desc;
pub mod receive;
pub mod send;

pub use desc::{Configuration, SnapshotDesc};

/// A sealed and read-back snapshot object that the host holds for the core.
///
/// The core never looks inside. Dropping it before [`Hold::disarm`] tells the host to discard the
/// object.
pub trait Hold: Send + std::fmt::Debug {
    /// From now on the drop does nothing: the object is in a batch on its way to the log, and only
    /// the log decides whether it is listed.
    fn disarm(&mut self);
}

/// A verified object on its way into the log's list.
#[derive(Debug)]
pub struct Verified {
    pub desc: SnapshotDesc,
    pub hold: Box<dyn Hold>,
}

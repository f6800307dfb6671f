//! The door `Guest`: one state machine, hosted.
//!
//! [`component`] runs WebAssembly components under wasmtime; [`native`] runs Rust ones behind the
//! same door, for tests and for measuring. A guest is entered by one thread at a time.
//!
//! - An `Err(GuestFault)` leaves the guest unusable, unless it says otherwise: the caller drops it
//!   and rebuilds. After `query` and `snapshot` it mostly says otherwise.
//! - Nothing node-local ever becomes an outcome: `Outcome` is what the guest said, or there is
//!   none.

pub mod check;
pub mod component;
mod copy;
#[cfg(test)]
mod documented;
pub mod engine;
mod imports;
mod instance;
#[expect(unsafe_code, reason = "wasmtime's traits for what a guest hands over are unsafe")]
mod lift;
mod limits;
mod log;
#[expect(unsafe_code, reason = "memories are mapped here; each block has its SAFETY note")]
mod memory;
pub mod native;
mod shape;
mod trap;
mod world;

pub use self::log::GuestLog;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::apply;
use lockstep_core::entry::{Install, Profile};
use lockstep_core::fault::GuestFault;
use lockstep_core::ids::ModuleId;

/// All a guest may know about "now"; derived from the log only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    pub index: u64,
    pub time_ms: u64,
    pub seed: (u64, u64),
}

/// A replicated answer to one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Ok(Bytes),
    Rejected(Bytes),
    /// The command was executed; its answer is longer than one may be, and nobody has its bytes.
    TooLong {
        bytes: u64,
    },
}

/// Why a query that did not fault has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// The guest's own "no", in its words.
    Rejected(Bytes),
    /// What it answered, or its "no", is longer than one may be, and nobody has its bytes.
    TooLong { bytes: u64 },
}

impl From<Outcome> for apply::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok(bytes) => Self::Ok(bytes),
            Outcome::Rejected(bytes) => Self::Rejected(bytes),
            Outcome::TooLong { bytes } => Self::TooLong { bytes },
        }
    }
}

/// What a guest says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestInfo {
    pub name: String,
    pub version: String,
    pub snapshot_format: u32,
    pub oldest_readable_format: u32,
}

/// Accompanies a snapshot stream into `restore`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    pub writer_name: String,
    pub writer_version: String,
    pub format: u32,
    pub index: u64,
    pub time_ms: u64,
}

/// One live state machine.
pub trait Guest: Send {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<(), GuestFault>;
    /// Exactly one call per raft entry; as many outcomes as commands.
    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Vec<Outcome>, GuestFault>;
    /// A query that is not answered leaves the guest as it was.
    fn query(
        &mut self,
        ctx: Context,
        request: &[u8],
    ) -> Result<Result<Bytes, NoAnswer>, GuestFault>;
    /// Streams the state. An error of `out` fails the snapshot, never the guest, and is returned as
    /// `Ok(Err(_))`.
    fn snapshot(&mut self, out: &mut dyn io::Write) -> Result<io::Result<()>, GuestFault>;
    /// Into a fresh guest, instead of `init`. An error of `input` fails the restore.
    fn restore(
        &mut self,
        header: &SnapshotHeader,
        config: &[u8],
        input: &mut dyn io::Read,
    ) -> Result<(), GuestFault>;
    /// Bytes of linear memory in use.
    fn memory_bytes(&self) -> u64;
    /// Whether it may be entered again: no fault took it with it.
    fn is_usable(&self) -> bool;
}

/// Makes fresh guests of one module.
pub trait GuestModule: Send + Sync {
    fn id(&self) -> ModuleId;
    fn info(&self) -> &GuestInfo;
    /// What a group that is founded with it records; 0 for native guests.
    fn engine_major(&self) -> u32;
    /// Whether it does in a group of this profile what it does in others of it; if not, why.
    fn check_profile(&self, profile: &Profile) -> Result<(), String> {
        match (self.engine_major(), profile.engine_major) {
            (ours, theirs) if ours == theirs => Ok(()),
            (ours, theirs) => Err(format!(
                "the group was founded on engine {theirs}, and this module runs on {ours}: \
                 configure the module that it was founded with"
            )),
        }
    }
    /// A fresh guest under the limits of the group's profile; `log` takes what it says.
    fn instantiate(
        &self,
        install: &Install,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault>;
}

/// A module that many groups may share.
pub type Module = Arc<dyn GuestModule>;

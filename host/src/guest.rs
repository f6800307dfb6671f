//! The door `Guest`: the host's interface to one live state machine.
//!
//! [`component`] runs WebAssembly components under wasmtime; [`native`] runs state machines in Rust
//! behind the same door, for tests and measurements. Only one thread at a time enters a guest.
//!
//! - After an `Err(GuestFault)` the guest is unusable, unless [`Guest::is_usable`] says otherwise:
//!   the caller drops it and builds another one. A guest mostly survives a fault in `query` and
//!   `snapshot`.
//! - What a call emits, events and a setting of the timer, is returned with its result: a call that
//!   faults has emitted nothing.
//! - A problem of this node alone never becomes an outcome: an [`Outcome`] is always what the guest
//!   returned.

mod advice;
#[expect(unsafe_code, reason = "compiled code is loaded here; the block has its SAFETY note")]
mod cache;
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
mod self_test;
mod shape;
mod text;
mod trap;
mod world;

pub use self::cache::CodeCache;
pub use self::log::GuestLog;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::apply::{self, Emitted, Ledger, Moment};
use lockstep_core::entry::{Bootstrap, Profile};
use lockstep_core::fault::GuestFault;
use lockstep_core::ids::ModuleId;

/// All that a guest may know about "now". It is derived from the log alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    pub index: u64,
    pub time_ms: u64,
    pub seed: (u64, u64),
}

impl From<Moment> for Context {
    fn from(Moment { index, time_ms, seed }: Moment) -> Self {
        Self { index, time_ms, seed }
    }
}

/// A replicated answer to one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Ok(Bytes),
    Rejected(Bytes),
    /// The command was executed, but its answer is longer than the limit, and its bytes are lost.
    TooLong {
        bytes: u64,
    },
}

/// Why a query has no answer although it did not fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// The guest rejected the query, with this reason.
    Rejected(Bytes),
    /// The guest's answer or reason is longer than the limit, and its bytes are lost.
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

/// What `restore` is told about the snapshot that it reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    pub writer_name: String,
    pub writer_version: String,
    pub format: u32,
    /// This, and the time, are 0 if the state moves into another module.
    pub index: u64,
    pub time_ms: u64,
}

impl SnapshotHeader {
    /// The header for a module that reads what it wrote itself, in this format.
    pub fn of(info: &GuestInfo, format: u32, ledger: &Ledger) -> Self {
        Self {
            writer_name: info.name.clone(),
            writer_version: info.version.clone(),
            format,
            index: ledger.applied(),
            time_ms: ledger.log_time_ms(),
        }
    }
}

/// What `apply` returned, and what it emitted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// As many as there were commands, in their order.
    pub outcomes: Vec<Outcome>,
    pub emitted: Emitted,
}

/// One live state machine.
pub trait Guest: Send {
    fn init(&mut self, ctx: Context, config: &[u8]) -> Result<Emitted, GuestFault>;
    /// Applies the commands of one raft entry, in exactly one call.
    fn apply(&mut self, ctx: Context, commands: &[Bytes]) -> Result<Applied, GuestFault>;
    /// The time to which the guest set its timer has come.
    fn wake(&mut self, ctx: Context) -> Result<Emitted, GuestFault>;
    /// Runs a query. The guest's state stays as it was, whether or not the query is answered.
    fn query(
        &mut self,
        ctx: Context,
        request: &[u8],
    ) -> Result<Result<Bytes, NoAnswer>, GuestFault>;
    /// Streams the state to `out`. An error of `out` fails the snapshot but not the guest, and is
    /// returned as `Ok(Err(_))`.
    fn snapshot(&mut self, out: &mut dyn io::Write) -> Result<io::Result<()>, GuestFault>;
    /// Restores the state into a fresh guest, instead of `init`. An error of `input` fails the
    /// restore.
    fn restore(
        &mut self,
        header: &SnapshotHeader,
        config: &[u8],
        input: &mut dyn io::Read,
    ) -> Result<(), GuestFault>;
    /// The guest's own digest of its state, if it has one. The state stays as it was.
    fn digest(&mut self) -> Result<Option<Bytes>, GuestFault>;
    /// The group has the limits of this profile from now on.
    fn limit(&mut self, profile: &Profile);
    /// Bytes of linear memory in use.
    fn memory_bytes(&self) -> u64;
    /// Whether the guest may be entered again: no fault has made it unusable.
    fn is_usable(&self) -> bool;
    /// Fuel used by all calls so far; 0 if nobody counts it.
    fn fuel_used(&self) -> u64 {
        0
    }
}

/// What the author of a module claims beyond the contract, to be tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    /// It does not matter how commands are packed into entries.
    pub independent_of_packing: bool,
}

/// A module's own tests: it makes up commands and queries that are worth trying. Every number
/// gives another one, and always the same one.
pub trait SelfTest: Send {
    fn claims(&mut self) -> Result<Claims, GuestFault>;
    fn command(&mut self, number: u64) -> Result<Bytes, GuestFault>;
    fn query(&mut self, number: u64) -> Result<Bytes, GuestFault>;
}

/// Makes fresh guests of one module.
pub trait GuestModule: Send + Sync {
    fn id(&self) -> ModuleId;
    fn info(&self) -> &GuestInfo;
    /// The engine version that a group bootstrapped with this module records; 0 = native.
    fn engine_major(&self) -> u32;
    /// Checks that this module behaves in a group of this profile as on every other replica; `Err`
    /// says why not.
    fn check_profile(&self, profile: &Profile) -> Result<(), String> {
        match (self.engine_major(), profile.engine_major) {
            (ours, theirs) if ours == theirs => Ok(()),
            (ours, theirs) => Err(format!(
                "the group was bootstrapped on engine {theirs}, and this module runs on {ours}: \
                 configure the module that it was bootstrapped with"
            )),
        }
    }
    /// Makes a fresh guest under the limits of the group's profile; its log messages go to `log`.
    fn instantiate(
        &self,
        bootstrap: &Bootstrap,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault>;
    /// Makes a fresh guest that runs queries, snapshots and digests on itself, even if it could
    /// have a copy: so a test sees whether they change the state.
    fn instantiate_without_copy(
        &self,
        bootstrap: &Bootstrap,
        log: &Arc<GuestLog>,
    ) -> Result<Box<dyn Guest>, GuestFault> {
        self.instantiate(bootstrap, log)
    }
    /// The module's own tests, on an instance that is neither initialised nor restored; `None` if
    /// it offers none.
    fn self_test(&self) -> Result<Option<Box<dyn SelfTest>>, GuestFault> {
        Ok(None)
    }
}

/// A module, which many groups may share.
pub type Module = Arc<dyn GuestModule>;

/// The modules that a node can run.
pub trait Modules: Send + Sync {
    /// The module of this id. May compile it.
    fn find(&self, id: ModuleId) -> Result<Module, Lack>;
}

/// Why a module cannot be run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lack {
    /// It is not on this node. `asked` counts how often all other nodes were asked for it and none
    /// had it.
    #[error(
        "it is not on this node; the others are asked for it, and `lockstep upgrade stage` brings \
         it"
    )]
    Absent { asked: u32 },
    #[error("{0}")]
    Unusable(String),
}

/// One module, which no other one ever follows.
#[cfg(test)]
pub(crate) struct OneModule(Module);

#[cfg(test)]
impl OneModule {
    pub(crate) fn of(module: Module) -> Arc<dyn Modules> {
        Arc::new(Self(module))
    }
}

#[cfg(test)]
impl Modules for OneModule {
    fn find(&self, id: ModuleId) -> Result<Module, Lack> {
        Some(&self.0).filter(|module| module.id() == id).cloned().ok_or(Lack::Absent { asked: 0 })
    }
}

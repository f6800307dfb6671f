//! Async client of Lockstep: finds the leader, keeps deadlines, and retries only what is safe to
//! retry.
//!
//! - [`Client::apply`] applies a command outside of any session. It is sent again only if the
//!   failed attempt certainly had no effect; otherwise the call ends with [`Error::Unknown`].
//! - [`Session::apply`] applies a command once, however often it has to be sent: every attempt
//!   carries the same session and sequence, and the first outcome is the one returned.
//! - [`Pipeline`] sends many commands over one stream without waiting for each outcome, inside or
//!   outside of a session.
//! - [`Client::watch`] streams the events of the state machine, in order and each once, and goes on
//!   at another node when one is lost.
//! - Every [`Reply`] says how many attempts it took and whether the leader changed between them.
//!
//! ```no_run
//! # async fn example() -> Result<(), lockstep_client::Error> {
//! use lockstep_client::{Client, Options, Outcome};
//!
//! let client = Client::connect(["127.0.0.1:7101", "127.0.0.1:7102"], Options::default())?;
//! let session = client.open_session().await?;
//! let reply = session.apply("set city Basel").await?;
//! assert!(matches!(reply.outcome, Outcome::Ok(_)));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod attempt;
pub mod cause;
mod client;
mod connector;
mod driver;
mod error;
mod pace;
mod pipeline;
mod routes;
mod session;
mod watch;
mod window;

/// The wire types, as `client.proto` describes them.
#[expect(clippy::allow_attributes_without_reason, reason = "the code generator writes them")]
pub mod v1 {
    include!("generated/lockstep.v1.rs");
}

pub use client::{Client, Consistency, DEADLINE_MAX, Options, Outcome, QueryReply, Reply};
pub use error::Error;
pub use pipeline::{Pending, Pipeline};
pub use session::Session;
pub use watch::{Batch, Event, Position, Watch};

/// Largest command and largest query that a node takes, bytes.
pub const COMMAND_BYTES_MAX: usize = (1 << 20) - (4 << 10);
/// Most commands in flight in one session: nodes keep no more answers for retries.
pub const SESSION_OPEN_CALLS_MAX: u64 = 1024;
/// Most commands in flight on one stream: beyond that, nodes stop reading.
pub const STREAM_INFLIGHT_MAX: usize = 4096;
/// Bytes of commands in flight on one stream: nodes read somewhat more.
pub const STREAM_INFLIGHT_BYTES_MAX: usize = 4 << 20;

//! Why a call has no outcome.

use crate::{Position, Reply};

/// Why a call has no outcome. Only [`Error::Unknown`] and [`Error::SessionExpired`] leave open
/// whether the command was applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("endpoint \"{endpoint}\" is not a host:port: {why}")]
    BadEndpoint { endpoint: String, why: String },
    /// The call had no effect, and the deadline passed or a repetition would not help.
    #[error("{message} ({refusal}, {attempts} attempts)")]
    Refused {
        /// The `lockstep-refusal` of the node; the gRPC code's name if no node refused the call.
        refusal: String,
        message: String,
        attempts: u32,
    },
    /// The command may have been applied, or may still be: no answer came, or none that this client
    /// can read.
    #[error("outcome unknown after {attempts} attempts: {message}")]
    Unknown { message: String, attempts: u32 },
    /// The session was evicted: the outcomes of its unanswered calls are unknown. Open a new one.
    #[error("the session expired: {message}")]
    SessionExpired { message: String },
    /// The command was applied, but its answer is over the limit or was not kept for retries.
    #[error("{message}")]
    AnswerTooLarge { message: String },
    /// Not applied: the session has more unanswered calls, or longer answers, than nodes keep.
    #[error("{message}")]
    SessionFull { message: String },
    /// Not applied: the state machine failed on the command, or on another of its entry, and an
    /// operator, or the group's policy, had the entry skipped.
    #[error("{message}")]
    Skipped { message: String },
    /// The answer of a node to a query or a watch does not conform to the protocol.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// Events at the position to watch from are no longer kept: this client was slower than they
    /// came, or away for too long. Query and watch from what the answer shows
    /// ([`Client::query_then_watch`](crate::Client::query_then_watch)); a watch from `begin` would
    /// miss those in between.
    #[error("{message}")]
    Compacted {
        /// Every event from here on was kept when the node said so.
        begin: Position,
        message: String,
    },
    /// No node that was asked has applied what precedes the position to watch from.
    #[error("{message}")]
    FromFuture { message: String },
    /// The pipeline ended before the command was sent.
    #[error("the pipeline is closed; this command was not sent")]
    Closed,
}

/// The result of a call.
pub(crate) type Result<T = Reply> = std::result::Result<T, Error>;

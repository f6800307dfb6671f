//! Why a call has no outcome.

use crate::Reply;

/// What a caller can tell apart. Only [`Error::Unknown`] and [`Error::SessionExpired`] leave open
/// whether the command was applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("endpoint \"{endpoint}\" is no host:port: {why}")]
    BadEndpoint { endpoint: String, why: String },
    /// Nothing happened, and the deadline passed or repeating it would not help.
    #[error("{message} ({refusal}, {attempts} attempts)")]
    Refused {
        /// `lockstep-refusal`, or the gRPC code's name where a node did not say.
        refusal: String,
        message: String,
        attempts: u32,
    },
    /// It may or may not have been applied, or may yet be.
    #[error("outcome unknown after {attempts} attempts: {message}")]
    Unknown { message: String, attempts: u32 },
    /// The session was evicted; outcomes of its unanswered calls are unknown. Open a new one.
    #[error("the session expired: {message}")]
    SessionExpired { message: String },
    /// The command was applied, but its answer is over the limit, or was not kept for a repetition.
    #[error("{message}")]
    AnswerTooLarge { message: String },
    /// More calls are open in the session, or longer answers, than a server keeps. Not applied.
    #[error("{message}")]
    SessionFull { message: String },
    /// A node answered what no version of the protocol says.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// The pipeline ended before the command was sent.
    #[error("the pipeline is closed; nothing was sent")]
    Closed,
}

/// How calls end.
pub(crate) type Result<T = Reply> = std::result::Result<T, Error>;

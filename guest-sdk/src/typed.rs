//! State machines whose commands, answers, queries and replies are values instead of bytes.
//!
//! A [`Typed`] machine is a [`StateMachine`]; nothing else has to be written, and `export!` takes
//! it as it is.

use std::fmt;

use crate::codec::{Decode, Encode};
use crate::{
    Answers, Commands, Context, Failure, Info, Outcome, SnapshotHeader, SnapshotReader,
    SnapshotWriter, StateMachine,
};

/// A replicated state machine of typed commands.
///
/// What [`StateMachine`] promises, this promises too. A command that the codec cannot read is
/// rejected with a sentence and never reaches `apply`.
pub trait Typed: Sized + 'static {
    /// What this state machine is.
    const INFO: Info;

    /// How commands, answers, queries and replies become bytes: `Json`, `Postcard`, `Prost`, or one
    /// of your own.
    type Codec: Decode<Self::Command>
        + Encode<Self::Answer>
        + Decode<Self::Query>
        + Encode<Self::Reply>;
    /// What changes the state.
    type Command;
    /// What a command is answered with.
    type Answer;
    /// What asks about the state.
    type Query;
    /// What a query is answered with.
    type Reply;

    /// Builds the initial state for this configuration. `ctx.time_ms` is 0: no entry
    /// has had a time yet.
    fn init(ctx: &Context, config: &[u8]) -> Result<Self, Failure>;

    /// Executes one command, or refuses it. `?` makes a rejection of every error that can be
    /// printed; check before you change anything.
    fn apply(&mut self, ctx: &Context, command: Self::Command) -> Result<Self::Answer, Rejection>;

    /// Answers a query; `ctx` is that of the last applied entry.
    fn query(&self, ctx: &Context, query: Self::Query) -> Result<Self::Reply, Rejection>;

    /// Writes the whole state. Equal states must write equal bytes.
    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure>;

    /// Reads the state that `snapshot` wrote. If it leaves bytes unread, the snapshot is reported
    /// as corrupt.
    fn restore(
        header: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure>;
}

/// Why a command or a query is refused: a sentence for the client.
///
/// Made from anything that can be printed: `Err("no such lock".into())`, `text.parse()?`. For that
/// reason it cannot be printed itself; see [`reason`](Rejection::reason).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection(String);

impl Rejection {
    /// The sentence.
    pub fn reason(&self) -> &str {
        &self.0
    }
}

impl<E: fmt::Display> From<E> for Rejection {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl<M: Typed> StateMachine for M {
    const INFO: Info = <M as Typed>::INFO;

    fn init(ctx: &Context, config: &[u8]) -> Result<Self, Failure> {
        <M as Typed>::init(ctx, config)
    }

    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome {
        let mut answer = Vec::new();
        match answer_into(self, ctx, command, &mut answer) {
            Ok(()) => Outcome::Ok(answer),
            Err(reason) => Outcome::rejected(reason),
        }
    }

    fn apply_batch(&mut self, ctx: &Context, commands: Commands<'_>, answers: &mut Answers) {
        for (ctx, command) in commands.with_contexts(ctx) {
            answers.append(|into| answer_into(self, &ctx, command, into));
        }
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let query =
            M::Codec::decode(request).map_err(|why| format!("the query cannot be read: {why}"))?;
        let reply = <M as Typed>::query(self, ctx, query).map_err(|refused| refused.0)?;
        let mut bytes = Vec::new();
        M::Codec::encode(&reply, &mut bytes)
            .map_err(|why| format!("the reply cannot be written: {why}"))?;
        Ok(bytes)
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        <M as Typed>::snapshot(self, out)
    }

    fn restore(
        header: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        <M as Typed>::restore(header, config, from)
    }
}

/// Executes a command and appends its answer.
fn answer_into<M: Typed>(
    machine: &mut M,
    ctx: &Context,
    command: &[u8],
    into: &mut Vec<u8>,
) -> Result<(), String> {
    let command = M::Codec::decode(command)
        .map_err(|why: String| format!("the command cannot be read: {why}"))?;
    let answer = Typed::apply(machine, ctx, command).map_err(|refused| refused.0)?;
    M::Codec::encode(&answer, into)
        .map_err(|why| format!("executed, but its answer cannot be written: {why}"))
}

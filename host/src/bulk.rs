//! Bulk workers: the threads that move snapshot payload between the store and a peer.
//!
//! [`send`] and [`receive`] drive the core's pure machines against a store and a channel that is
//! lossless or broken. They block; each runs on a thread of its own.
//!
//! - At most a window of blocks is in memory at either end; the payload never is.
//! - Names are the store lane's: reserving, creating and sealing go through a [`StoreHandle`].
//! - Every transfer tells raft its result exactly once: [`OutboundReport`] (N16).
//! - A transfer that ends in any way but acceptance leaves nothing: what was staged is dropped
//!   here.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use lockstep_core::limits;
use lockstep_core::snapshot::Verified;
use lockstep_core::snapshot::chunk::{
    Block, BulkReply, BulkRequest, Expected, Offer, ValidatedHeader,
};
use lockstep_core::snapshot::receive::{ReceiveCommand, ReceiveEnd, ReceiveInput, Receiver};
use lockstep_core::snapshot::send::{Report, SendCommand, SendInput, SendOutcome, Sender};

use crate::store::{SnapshotReader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane};

#[cfg(test)]
mod tests;

/// How long one wait for a frame lasts: the tick of the machines.
pub const TICK: Duration = Duration::from_millis(limits::TICK_MS);

/// One end of a channel that sends `Out` and receives `In`, in order, lossless or broken.
pub trait BulkChannel<Out, In> {
    /// Waits for room as long as the peer takes frames.
    fn send(&mut self, frame: Out) -> io::Result<()>;
    /// The next frame; `None` after `timeout` without one; an error once the channel is broken or
    /// closed.
    fn recv(&mut self, timeout: Duration) -> io::Result<Option<In>>;
}

/// The sender's end.
pub type SendChannel<'a> = dyn BulkChannel<BulkRequest, BulkReply> + 'a;
/// The receiver's end.
pub type ReceiveChannel<'a> = dyn BulkChannel<BulkReply, BulkRequest> + 'a;

/// The promise that raft hears of one outbound transfer: reported or dropped, it is told exactly
/// once.
pub struct OutboundReport(Option<Box<dyn FnOnce(Report) + Send>>);

impl OutboundReport {
    /// `tell` must not drop the report: its queue waits (I6).
    pub fn new(tell: impl FnOnce(Report) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    pub fn report(mut self, report: Report) {
        self.tell(report);
    }

    fn tell(&mut self, report: Report) {
        if let Some(tell) = self.0.take() {
            tell(report);
        }
    }
}

impl Drop for OutboundReport {
    fn drop(&mut self) {
        self.tell(Report::Failure);
    }
}

impl std::fmt::Debug for OutboundReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutboundReport")
    }
}

/// Sends the object that `reader` leases, as `offer` names it. Whoever called reports the outcome
/// to raft, at once or after the wait it asks for.
pub fn send(reader: &mut SnapshotReader, offer: Offer, channel: &mut SendChannel) -> SendOutcome {
    assert_eq!(reader.desc(), &offer.desc, "the object that is offered is the one that is read");
    let (group, index, length) = (offer.group, offer.desc.index, offer.desc.length);
    let (mut machine, commands) = Sender::begin(offer);
    let mut commands = VecDeque::from(commands);
    let outcome = loop {
        let input = match commands.pop_front() {
            Some(SendCommand::Finish(outcome)) => break outcome,
            Some(SendCommand::Send(frame)) => match channel.send(frame) {
                Ok(()) => continue,
                Err(error) => last_reply(channel, &error),
            },
            Some(SendCommand::Read { offset }) => {
                match reader.read_block(offset / limits::SNAPSHOT_BLOCK_BYTES as u64) {
                    Ok(block) => SendInput::Read(block),
                    Err(error) => SendInput::SourceBad(error.to_string()),
                }
            }
            None => match channel.recv(TICK) {
                Ok(Some(reply)) => SendInput::Reply(reply),
                Ok(None) => SendInput::Tick,
                Err(error) => SendInput::Broken(error.to_string()),
            },
        };
        commands.extend(machine.step(input));
    };
    tracing::info!(%group, index, length, outcome = ?outcome.next, end = %outcome.end,
        "snapshot transfer ended");
    outcome
}

/// The channel takes no more frames: perhaps because the receiver refused, which its last reply
/// says.
fn last_reply(channel: &mut SendChannel, error: &io::Error) -> SendInput {
    while let Ok(Some(reply)) = channel.recv(TICK) {
        if reply.is_final() {
            return SendInput::Reply(reply);
        }
    }
    SendInput::Broken(error.to_string())
}

/// How an inbound transfer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub end: ReceiveEnd,
    /// What the store said, where it was the store that refused: `NeedsUnlist` is for the core to
    /// act on.
    pub refusal: Option<SnapshotRefusal>,
}

/// Receives what `offer` names into the store. `deliver` hands the verified object to the raft side
/// and waits for its answer, which becomes the transfer's last reply.
pub fn receive(
    offer: &Offer,
    expected: &Expected,
    store: &dyn StoreHandle,
    channel: &mut ReceiveChannel,
    deliver: &mut dyn FnMut(Verified) -> BulkReply,
) -> Received {
    let (mut machine, commands) = Receiver::begin(offer, expected);
    let mut commands = VecDeque::from(commands);
    let mut inbound = Inbound { store, stage: Stage::Empty, refusal: None };
    let end = loop {
        let input = match commands.pop_front() {
            Some(ReceiveCommand::Finish(end)) => break end,
            Some(ReceiveCommand::Reply(reply)) => match channel.send(reply) {
                Ok(()) => continue,
                Err(error) => ReceiveInput::Broken(error.to_string()),
            },
            Some(ReceiveCommand::Admit(header)) => inbound.admit(header),
            Some(ReceiveCommand::Write(block)) => inbound.write(&block),
            Some(ReceiveCommand::Store) => inbound.seal(&mut || {
                let _ = send_all(channel, machine.step(ReceiveInput::Working));
            }),
            Some(ReceiveCommand::Deliver) => inbound.deliver(deliver),
            None => match channel.recv(TICK) {
                Ok(Some(frame)) => ReceiveInput::Frame(frame),
                Ok(None) => ReceiveInput::Tick,
                Err(error) => ReceiveInput::Broken(error.to_string()),
            },
        };
        commands.extend(machine.step(input));
    };
    let desc = &offer.desc;
    tracing::info!(group = %offer.group, from = %offer.from, index = desc.index,
        length = desc.length, %end, "snapshot reception ended");
    Received { end, refusal: inbound.refusal.take() }
}

/// Replies that only say "still working"; a broken channel is noticed by the next real one.
fn send_all(channel: &mut ReceiveChannel, commands: Vec<ReceiveCommand>) -> io::Result<()> {
    for command in commands {
        if let ReceiveCommand::Reply(reply) = command {
            channel.send(reply)?;
        }
    }
    Ok(())
}

/// What one inbound transfer has in the store.
struct Inbound<'a> {
    store: &'a dyn StoreHandle,
    stage: Stage,
    refusal: Option<SnapshotRefusal>,
}

enum Stage {
    Empty,
    Writing(Box<StagedWriter>),
    Verified(Box<Verified>),
}

impl Inbound<'_> {
    fn admit(&mut self, header: ValidatedHeader) -> ReceiveInput {
        let job = move |store: &mut crate::store::SnapshotStore| {
            let reservation = store.reserve(&header)?;
            store.create(reservation)
        };
        match ask_lane(self.store, job) {
            Ok(writer) => {
                self.stage = Stage::Writing(Box::new(writer));
                // Resuming what a broken transfer left is issue 3; until then every one starts
                // anew.
                ReceiveInput::Admitted { offset: 0 }
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn write(&mut self, block: &Block) -> ReceiveInput {
        let Stage::Writing(writer) = &mut self.stage else {
            unreachable!("blocks come after admission")
        };
        match writer.write_block(block) {
            Ok(()) => ReceiveInput::Written,
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Finishes, seals and reads back.
    fn seal(&mut self, progress: &mut dyn FnMut()) -> ReceiveInput {
        let Stage::Writing(writer) = std::mem::replace(&mut self.stage, Stage::Empty) else {
            unreachable!("the end comes after admission")
        };
        let finished = writer.finish();
        let sealed =
            finished.and_then(|finished| ask_lane(self.store, move |store| store.seal(finished)));
        // What was sent is right, or it would not have been finished: a bad read-back is our
        // disk's.
        let verified = sealed.and_then(|staged| {
            staged.verify(progress).map_err(|e| SnapshotRefusal::Disk(e.to_string()))
        });
        match verified {
            Ok(verified) => {
                self.stage = Stage::Verified(Box::new(verified));
                ReceiveInput::Stored
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn deliver(&mut self, deliver: &mut dyn FnMut(Verified) -> BulkReply) -> ReceiveInput {
        let Stage::Verified(verified) = std::mem::replace(&mut self.stage, Stage::Empty) else {
            unreachable!("only a verified object is delivered")
        };
        ReceiveInput::Answered(deliver(*verified))
    }

    fn refuse(&mut self, refusal: SnapshotRefusal) -> ReceiveInput {
        let reply = refusal.to_reply();
        self.refusal = Some(refusal);
        ReceiveInput::Refused(reply)
    }
}

impl Drop for Inbound<'_> {
    /// Lets go of what is staged and has the lane return the space now, not at its next transfer.
    fn drop(&mut self) {
        self.stage = Stage::Empty;
        let _ = on_lane(self.store, |store| store.collect());
    }
}

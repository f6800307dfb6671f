//! Bulk workers move snapshot payload between the store and a peer.
//!
//! [`Sending`] and [`Receiving`] drive the core's pure state machines against a store, a step at a
//! time: they read and write files, and never wait for the peer. [`send`] and [`receive`] connect
//! them to a channel, which is lossless or broken; both block, each on a thread of its own.
//!
//! - At most a window of blocks is in memory at either end, never the whole payload.
//! - Names belong to the store lane: reserving, creating and sealing go through a [`StoreHandle`].
//! - Every transfer reports its result to raft exactly once: [`OutboundReport`].
//! - A transfer that is not accepted leaves nothing behind, except that the received part of a
//!   broken transfer may be suspended for a later one to resume.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use lockstep_core::limits;
use lockstep_core::mutant::plant;
use lockstep_core::snapshot::Verified;
use lockstep_core::snapshot::chunk::{
    BUSY_RETRY_MS, Block, BulkReply, BulkRequest, Expected, ObjectRef, Offer, STALL_TICKS,
    ValidatedHeader,
};
use lockstep_core::snapshot::receive::{ReceiveCommand, ReceiveEnd, ReceiveInput, Receiver};
use lockstep_core::snapshot::send::{Report, SendCommand, SendInput, SendOutcome, Sender};

use crate::store::{SnapshotReader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane};

/// The longest wait for a frame; if none comes, the state machine gets a tick as its input.
pub const TICK: Duration = Duration::from_millis(limits::TICK_MS);

/// One end of a channel that sends `Out` and receives `In` in order, and is lossless or broken.
pub trait BulkChannel<Out, In> {
    /// Sends a frame, after waiting for space in the channel as long as the peer takes frames.
    fn send(&mut self, frame: Out) -> io::Result<()>;
    /// The next frame; `None` after `timeout` without one; an error once the channel is broken or
    /// closed.
    fn recv(&mut self, timeout: Duration) -> io::Result<Option<In>>;
}

/// The sender's end.
pub type SendChannel<'a> = dyn BulkChannel<BulkRequest, BulkReply> + 'a;
/// The receiver's end.
pub type ReceiveChannel<'a> = dyn BulkChannel<BulkReply, BulkRequest> + 'a;

/// Tells raft the result of one outbound transfer exactly once. Dropping it without a report
/// reports a failure.
pub struct OutboundReport(Option<Box<Teller>>);

/// Takes a report, and the object that the receiver would rather have.
type Teller = dyn FnOnce(Report, Option<ObjectRef>) + Send;

impl OutboundReport {
    /// `tell` must deliver the report even if it has to wait for a queue.
    pub fn new(tell: impl FnOnce(Report, Option<ObjectRef>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    pub fn report(mut self, report: Report, prefers: Option<ObjectRef>) {
        self.tell(report, prefers);
    }

    fn tell(&mut self, report: Report, prefers: Option<ObjectRef>) {
        if let Some(tell) = self.0.take() {
            tell(report, prefers);
        }
    }
}

impl Drop for OutboundReport {
    fn drop(&mut self) {
        plant!("lose_the_unbegun" skips self.tell(Report::Failure, None));
    }
}

impl std::fmt::Debug for OutboundReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutboundReport")
    }
}

/// The sending end: the state machine and the object it reads.
pub struct Sending {
    machine: Sender,
    reader: SnapshotReader,
}

/// What a step of the sending end led to.
#[derive(Debug)]
pub struct Sent {
    /// Frames to send, in this order.
    pub frames: Vec<BulkRequest>,
    /// How the transfer ended, if it did.
    pub outcome: Option<SendOutcome>,
}

impl Sending {
    /// Begins to send the object that `reader` holds and `offer` names.
    pub fn begin(reader: SnapshotReader, offer: Offer) -> (Self, Sent) {
        assert_eq!(reader.desc(), &offer.desc, "the object offered is the one that is read");
        let (machine, commands) = Sender::begin(offer);
        let mut sending = Self { machine, reader };
        let sent = sending.carry_out(commands);
        (sending, sent)
    }

    /// Takes one input.
    pub fn step(&mut self, input: SendInput) -> Sent {
        let commands = self.machine.step(input);
        self.carry_out(commands)
    }

    fn carry_out(&mut self, commands: Vec<SendCommand>) -> Sent {
        let mut sent = Sent { frames: Vec::new(), outcome: None };
        let mut commands = VecDeque::from(commands);
        while let Some(command) = commands.pop_front() {
            match command {
                SendCommand::Send(frame) => sent.frames.push(frame),
                SendCommand::Finish(outcome) => sent.outcome = Some(outcome),
                SendCommand::Read { offset } => {
                    let number = offset / limits::SNAPSHOT_BLOCK_BYTES as u64;
                    let input = match self.reader.read_block(number) {
                        Ok(block) => SendInput::Read(block),
                        Err(error) if error.is_short() => SendInput::Broken(error.to_string()),
                        Err(error) => SendInput::SourceBad(error.to_string()),
                    };
                    commands.extend(self.machine.step(input));
                }
            }
        }
        sent
    }
}

/// Sends the object that `reader` holds and `offer` names. The caller reports the outcome to raft,
/// at once or after the wait that the outcome asks for.
pub fn send(reader: SnapshotReader, offer: Offer, channel: &mut SendChannel) -> SendOutcome {
    let (group, to) = (offer.group, offer.to);
    let (index, length) = (offer.desc.index, offer.desc.length);
    let (mut sending, mut sent) = Sending::begin(reader, offer);
    let outcome = loop {
        let mut broken = None;
        for frame in std::mem::take(&mut sent.frames) {
            if let Err(error) = channel.send(frame) {
                broken = Some(last_reply(channel, &error));
                break;
            }
        }
        let input = match (broken, sent.outcome.take()) {
            (Some(input), None) => input,
            (_, Some(outcome)) => break outcome,
            (None, None) => match channel.recv(TICK) {
                Ok(Some(reply)) => SendInput::Reply(reply),
                Ok(None) => SendInput::Tick,
                Err(error) => SendInput::Broken(error.to_string()),
            },
        };
        sent = sending.step(input);
    };
    tracing::info!(%group, %to, index, length, outcome = ?outcome.next, end = %outcome.end,
        "snapshot transfer ended");
    outcome
}

/// Called when the channel takes no more frames, perhaps because the receiver refused the transfer:
/// returns the receiver's final reply if it sent one, else the broken channel.
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
    /// Why it ended.
    pub end: ReceiveEnd,
    /// The store's refusal, if the store refused; the core acts on `NeedsUnlist`.
    pub refusal: Option<SnapshotRefusal>,
    /// Bytes of payload that this transfer received.
    pub bytes: u64,
    /// Bytes of payload that an earlier transfer had left.
    pub resumed_bytes: u64,
}

/// What the receiving end needs next.
#[derive(Debug)]
pub enum Step {
    /// Another input.
    More,
    /// The raft side's answer to this object.
    Deliver(Verified),
    /// Nothing: the transfer ended.
    Ended(Received),
}

/// The receiving end: the state machine and what it has in the store.
pub struct Receiving {
    machine: Receiver,
    commands: VecDeque<ReceiveCommand>,
    stage: Stage,
    refusal: Option<SnapshotRefusal>,
    bytes: u64,
    resumed_bytes: u64,
}

enum Stage {
    Empty,
    Writing(Box<StagedWriter>),
    Verified(Box<Verified>),
}

/// Sends a reply; an error means that the channel is broken.
pub type ReplySink<'a> = dyn FnMut(BulkReply) -> io::Result<()> + 'a;

impl Receiving {
    /// Begins with an offer. [`Receiving::advance`] then carries out what follows from it.
    pub fn begin(offer: &Offer, expected: &Expected) -> Self {
        let (machine, commands) = Receiver::begin(offer, expected);
        Self {
            machine,
            commands: commands.into(),
            stage: Stage::Empty,
            refusal: None,
            bytes: 0,
            resumed_bytes: 0,
        }
    }

    /// Bytes of payload received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes one input.
    pub fn step(
        &mut self,
        input: ReceiveInput,
        store: &dyn StoreHandle,
        reply: &mut ReplySink,
    ) -> Step {
        self.commands.extend(self.machine.step(input));
        self.advance(store, reply)
    }

    /// Carries out the state machine's commands until it needs an input.
    pub fn advance(&mut self, store: &dyn StoreHandle, reply: &mut ReplySink) -> Step {
        while let Some(command) = self.commands.pop_front() {
            let input = match command {
                ReceiveCommand::Finish(end) => return Step::Ended(self.end(end, store)),
                ReceiveCommand::Reply(frame) => match reply(frame) {
                    Ok(()) => continue,
                    Err(error) => ReceiveInput::Broken(error.to_string()),
                },
                ReceiveCommand::Admit(header) => self.admit(header, store, reply),
                ReceiveCommand::Write(block) => self.write(&block),
                ReceiveCommand::Store => self.seal(store, reply),
                ReceiveCommand::Deliver => {
                    let verified = std::mem::replace(&mut self.stage, Stage::Empty);
                    let Stage::Verified(verified) = verified else {
                        unreachable!("only a verified object is delivered")
                    };
                    return Step::Deliver(*verified);
                }
            };
            self.commands.extend(self.machine.step(input));
        }
        Step::More
    }

    fn admit(
        &mut self,
        header: ValidatedHeader,
        store: &dyn StoreHandle,
        reply: &mut ReplySink,
    ) -> ReceiveInput {
        match ask_lane(store, move |store| store.receive(&header)) {
            Ok(mut writer) => {
                let machine = &mut self.machine;
                let offset = writer.look_through(&mut || tell_working(machine, reply));
                self.resumed_bytes = offset;
                self.stage = Stage::Writing(Box::new(writer));
                ReceiveInput::Admitted { offset }
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn write(&mut self, block: &Block) -> ReceiveInput {
        let Stage::Writing(writer) = &mut self.stage else {
            unreachable!("blocks come after admission")
        };
        match writer.write_block(block) {
            Ok(()) => {
                self.bytes += block.data.len() as u64;
                ReceiveInput::Written
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Finishes the staged object, seals it and reads it back.
    fn seal(&mut self, store: &dyn StoreHandle, reply: &mut ReplySink) -> ReceiveInput {
        let Stage::Writing(writer) = std::mem::replace(&mut self.stage, Stage::Empty) else {
            unreachable!("the end comes after admission")
        };
        let finished = writer.finish();
        let sealed =
            finished.and_then(|finished| ask_lane(store, move |store| store.seal(finished)));
        let machine = &mut self.machine;
        // Finishing checked the payload that was sent, so a bad read-back is this disk's fault.
        let verified = sealed.and_then(|staged| {
            let progress = &mut || tell_working(machine, reply);
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

    fn refuse(&mut self, refusal: SnapshotRefusal) -> ReceiveInput {
        let reply = refusal.to_reply();
        self.refusal = Some(refusal);
        ReceiveInput::Refused(reply)
    }

    /// Suspends what a broken transfer received. What any other transfer left is dropped, and the
    /// lane frees its space now instead of at its next call.
    fn end(&mut self, end: ReceiveEnd, store: &dyn StoreHandle) -> Received {
        // A writer that is not suspended must be dropped before the lane collects, or its space is
        // not freed yet.
        let suspended = match std::mem::replace(&mut self.stage, Stage::Empty) {
            Stage::Writing(writer) if end.suspends() => writer.suspend(),
            Stage::Writing(writer) => {
                drop(writer);
                None
            }
            Stage::Verified(_) | Stage::Empty => None,
        };
        let _ = on_lane(store, move |store| match suspended {
            Some(suspended) => store.suspend(suspended),
            None => drop(store.collect()),
        });
        let refusal = self.refusal.take();
        Received { end, refusal, bytes: self.bytes, resumed_bytes: self.resumed_bytes }
    }
}

/// Tells the sender "still working". A broken channel is ignored: the next real reply notices it.
fn tell_working(machine: &mut Receiver, reply: &mut ReplySink) {
    for command in machine.step(ReceiveInput::Working) {
        if let ReceiveCommand::Reply(frame) = command {
            let _ = reply(frame);
        }
    }
}

/// The raft side, which decides whether to take a received object.
pub trait Judge {
    /// Hands the object to the raft side.
    fn deliver(&mut self, verified: Verified);
    /// The raft side's answer, if it comes within `wait`.
    fn answer(&mut self, wait: Duration) -> Option<BulkReply>;
}

/// Receives the object that `offer` names into the store. `judge` hands the verified object to the
/// raft side, whose answer is the transfer's last reply.
pub fn receive(
    offer: &Offer,
    expected: &Expected,
    store: &dyn StoreHandle,
    channel: &mut ReceiveChannel,
    judge: &mut dyn Judge,
) -> Received {
    let mut receiving = Receiving::begin(offer, expected);
    let mut step = receiving.advance(store, &mut |reply| channel.send(reply));
    let received = loop {
        let input = match step {
            Step::Ended(received) => break received,
            Step::Deliver(verified) => {
                judge.deliver(verified);
                wait_for(judge, channel)
            }
            Step::More => match channel.recv(TICK) {
                Ok(Some(frame)) => ReceiveInput::Frame(frame),
                Ok(None) => ReceiveInput::Tick,
                Err(error) => ReceiveInput::Broken(error.to_string()),
            },
        };
        step = receiving.step(input, store, &mut |reply| channel.send(reply));
    };
    let desc = &offer.desc;
    tracing::info!(group = %offer.group, from = %offer.from, index = desc.index,
        length = desc.length, bytes = received.bytes, resumed = received.resumed_bytes,
        end = %received.end, "snapshot reception ended");
    received
}

/// Waits for the raft side's answer, which may have to wait for a known leader. Meanwhile tells the
/// sender that the receiver is alive.
fn wait_for(judge: &mut dyn Judge, channel: &mut ReceiveChannel) -> ReceiveInput {
    for _ in 0..STALL_TICKS {
        if let Some(answer) = judge.answer(TICK) {
            return ReceiveInput::Answered(answer);
        }
        if let Err(error) = channel.send(BulkReply::Credit { blocks: 0 }) {
            return ReceiveInput::Broken(error.to_string());
        }
    }
    ReceiveInput::Answered(BulkReply::Busy { retry_after_ms: BUSY_RETRY_MS })
}

#[cfg(test)]
mod tests;

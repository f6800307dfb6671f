//! Bulk workers: what moves snapshot payload between the store and a peer.
//!
//! [`Sending`] and [`Receiving`] drive the core's pure machines against a store, a step at a time:
//! they read and write files, and wait for nothing. [`send`] and [`receive`] move them along a
//! channel that is lossless or broken; they block, each on a thread of its own.
//!
//! - At most a window of blocks is in memory at either end; the payload never is.
//! - Names are the store lane's: reserving, creating and sealing go through a [`StoreHandle`].
//! - Every transfer tells raft its result exactly once: [`OutboundReport`].
//! - A transfer that ends in any way but acceptance leaves nothing, or what was received so far,
//!   parked for another try.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use lockstep_core::limits;
use lockstep_core::mutant::planted;
use lockstep_core::snapshot::Verified;
use lockstep_core::snapshot::chunk::{
    BUSY_RETRY_MS, Block, BulkReply, BulkRequest, Expected, ObjectRef, Offer, STALL_TICKS,
    ValidatedHeader,
};
use lockstep_core::snapshot::receive::{ReceiveCommand, ReceiveEnd, ReceiveInput, Receiver};
use lockstep_core::snapshot::send::{Report, SendCommand, SendInput, SendOutcome, Sender};

use crate::store::{SnapshotReader, SnapshotRefusal, StagedWriter, StoreHandle, ask_lane, on_lane};

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
pub struct OutboundReport(Option<Box<Teller>>);

/// Takes a report, and the object that the receiver would rather have.
type Teller = dyn FnOnce(Report, Option<ObjectRef>) + Send;

impl OutboundReport {
    /// `tell` must not drop the report: its queue waits.
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
        if !planted("lose_the_unbegun") {
            self.tell(Report::Failure, None);
        }
    }
}

impl std::fmt::Debug for OutboundReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutboundReport")
    }
}

/// The sending end: the machine and the object it reads.
pub struct Sending {
    machine: Sender,
    reader: SnapshotReader,
}

/// What a step led to.
#[derive(Debug)]
pub struct Sent {
    pub frames: Vec<BulkRequest>,
    pub outcome: Option<SendOutcome>,
}

impl Sending {
    /// Begins to send the object that `reader` leases, as `offer` names it.
    pub fn begin(reader: SnapshotReader, offer: Offer) -> (Self, Sent) {
        assert_eq!(
            reader.desc(),
            &offer.desc,
            "the object that is offered is the one that is read"
        );
        let (machine, commands) = Sender::begin(offer);
        let mut sending = Self { machine, reader };
        let sent = sending.carry_out(commands);
        (sending, sent)
    }

    /// Takes one input; frames leave in this order.
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

/// Sends the object that `reader` leases, as `offer` names it. Whoever called reports the outcome
/// to raft, at once or after the wait it asks for.
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
    /// Bytes of payload that came, and that an earlier transfer had left.
    pub bytes: u64,
    pub resumed_bytes: u64,
}

/// What the receiving end wants next.
#[derive(Debug)]
pub enum Step {
    /// Another input.
    More,
    /// The raft side's answer to this object.
    Deliver(Verified),
    Ended(Received),
}

/// The receiving end: the machine and what it has in the store.
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

/// Where replies leave; an error says that the channel is broken.
pub type ReplySink<'a> = dyn FnMut(BulkReply) -> io::Result<()> + 'a;

impl Receiving {
    /// Begins with an offer; [`Receiving::advance`] carries out what follows from it.
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

    /// Bytes of payload that came so far.
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

    /// Carries out what the machine wants, until it needs an input.
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

    /// Finishes, seals and reads back.
    fn seal(&mut self, store: &dyn StoreHandle, reply: &mut ReplySink) -> ReceiveInput {
        let Stage::Writing(writer) = std::mem::replace(&mut self.stage, Stage::Empty) else {
            unreachable!("the end comes after admission")
        };
        let finished = writer.finish();
        let sealed =
            finished.and_then(|finished| ask_lane(store, move |store| store.seal(finished)));
        let machine = &mut self.machine;
        // What was sent is right, or it would not have been finished: a bad read-back is our
        // disk's.
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

    /// Parks what a broken transfer left, or lets go of it and has the lane return the space now,
    /// not at its next transfer.
    fn end(&mut self, end: ReceiveEnd, store: &dyn StoreHandle) -> Received {
        // What is not parked is dropped before the lane looks for what it may collect.
        let parked = match std::mem::replace(&mut self.stage, Stage::Empty) {
            Stage::Writing(writer) if end.parks() => writer.park(),
            Stage::Writing(writer) => {
                drop(writer);
                None
            }
            Stage::Verified(_) | Stage::Empty => None,
        };
        let _ = on_lane(store, move |store| match parked {
            Some(parked) => store.park(parked),
            None => drop(store.collect()),
        });
        let refusal = self.refusal.take();
        Received { end, refusal, bytes: self.bytes, resumed_bytes: self.resumed_bytes }
    }
}

/// A reply that only says "still working"; a broken channel is noticed by the next real one.
fn tell_working(machine: &mut Receiver, reply: &mut ReplySink) {
    for command in machine.step(ReceiveInput::Working) {
        if let ReceiveCommand::Reply(frame) = command {
            let _ = reply(frame);
        }
    }
}

/// What the raft side says to an object that was delivered, or that it still thinks.
pub trait Judge {
    /// Hands the object over.
    fn deliver(&mut self, verified: Verified);
    /// The answer, if it comes within `wait`.
    fn answer(&mut self, wait: Duration) -> Option<BulkReply>;
}

/// Receives what `offer` names into the store. `judge` hands the verified object to the raft side;
/// its answer becomes the transfer's last reply.
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

/// The raft side's answer. A leader may have to be known first: the sender hears that there is
/// life.
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

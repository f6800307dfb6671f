//! [`Receiver`]: the receiving end of a transfer, without IO.
//!
//! A receiver is created from an offer, so that payload before metadata cannot be expressed. Inputs
//! are frames and what the store did; commands are what the store has to do and replies to send.
//!
//! - Nothing is reserved before the offer is validated; nothing is written before it is admitted.
//! - A block is written only at the expected offset, with the expected size and a correct checksum.
//! - `End` is mandatory: a transfer that ends in any other way leaves nothing, or a suspended file
//!   ([`ReceiveEnd::suspends`]).
//! - At most one final reply is sent. When the transfer ends, the driver drops or suspends the
//!   staged file.

use crate::mutant::planted;
use crate::snapshot::chunk::{
    self, Block, BulkReply, BulkRequest, Expected, Offer, STALL_TICKS, ValidatedHeader,
    WINDOW_BLOCKS, incompatible,
};

#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value at a time, moved once; a box would only add an allocation to every frame"
)]
pub enum ReceiveInput {
    Frame(BulkRequest),
    /// [`ReceiveCommand::Admit`] is done: the payload is needed from `offset` on.
    Admitted {
        offset: u64,
    },
    /// The block of [`ReceiveCommand::Write`] is written.
    Written,
    /// [`ReceiveCommand::Admit`] or [`ReceiveCommand::Store`] made progress.
    Working,
    /// The object is sealed and read back.
    Stored,
    /// The raft side's answer to [`ReceiveCommand::Deliver`].
    Answered(BulkReply),
    /// The store refused the transfer, at whatever stage.
    Refused(BulkReply),
    Tick,
    Broken(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiveCommand {
    /// Reserve space and create the staging file, or take up the suspended one and check its
    /// blocks.
    Admit(ValidatedHeader),
    Write(Block),
    /// Finish the staged file, seal it and read it back.
    Store,
    /// Hand the verified object to the raft side.
    Deliver,
    Reply(BulkReply),
    Finish(ReceiveEnd),
}

/// Why a transfer ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiveEnd {
    #[error("the raft side answered {0:?}")]
    Answered(BulkReply),
    #[error("refused: {0:?}")]
    Refused(BulkReply),
    #[error("no progress for {STALL_TICKS} ticks")]
    Stalled,
    #[error("the channel broke: {0}")]
    Broken(String),
}

impl ReceiveEnd {
    /// Whether to keep the part that was received for another try: it is correct, and neither side
    /// refused to go on.
    pub fn suspends(&self) -> bool {
        match self {
            Self::Stalled | Self::Broken(_) => true,
            Self::Answered(_) | Self::Refused(_) => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The store reserves space.
    Admitting,
    /// The receiver waits for blocks.
    Streaming,
    /// A block is being written.
    Writing,
    /// `End` arrived; the object is being sealed and read back.
    Storing,
    /// The raft side decides about the object.
    Delivering,
    Finished,
}

/// One inbound transfer.
#[derive(Debug)]
pub struct Receiver {
    stage: Stage,
    header: Option<ValidatedHeader>,
    /// The offset of the next block.
    next: u64,
    /// How many more blocks the sender may send.
    credit: u32,
    idle_ticks: u32,
}

impl Receiver {
    /// Begins a transfer with its offer.
    pub fn begin(offer: &Offer, expected: &Expected) -> (Self, Vec<ReceiveCommand>) {
        let mut receiver =
            Self { stage: Stage::Admitting, header: None, next: 0, credit: 0, idle_ticks: 0 };
        let commands = match offer.validate(expected) {
            Ok(header) => {
                receiver.header = Some(header.clone());
                vec![ReceiveCommand::Admit(header)]
            }
            Err(reply) => receiver.refuse(reply),
        };
        (receiver, commands)
    }

    pub fn step(&mut self, input: ReceiveInput) -> Vec<ReceiveCommand> {
        if self.stage == Stage::Finished {
            return Vec::new();
        }
        match input {
            ReceiveInput::Frame(frame) => self.on_frame(frame),
            ReceiveInput::Admitted { offset } => {
                self.expect(Stage::Admitting);
                self.stage = Stage::Streaming;
                self.next = offset;
                self.credit = WINDOW_BLOCKS;
                vec![ReceiveCommand::Reply(BulkReply::Proceed { offset })]
            }
            ReceiveInput::Written => {
                self.expect(Stage::Writing);
                self.stage = Stage::Streaming;
                self.credit += 1;
                vec![ReceiveCommand::Reply(BulkReply::Credit { blocks: 1 })]
            }
            ReceiveInput::Working => {
                let works = matches!(self.stage, Stage::Admitting | Stage::Storing);
                assert!(works, "the driver works only when it was told to");
                vec![ReceiveCommand::Reply(BulkReply::Credit { blocks: 0 })]
            }
            ReceiveInput::Stored => {
                self.expect(Stage::Storing);
                self.stage = Stage::Delivering;
                vec![ReceiveCommand::Deliver]
            }
            ReceiveInput::Answered(reply) => {
                self.expect(Stage::Delivering);
                assert!(reply.is_final(), "the raft side gives a final answer");
                let end = ReceiveEnd::Answered(reply.clone());
                self.finish(Some(reply), end)
            }
            ReceiveInput::Refused(reply) => self.refuse(reply),
            ReceiveInput::Tick => self.on_tick(),
            ReceiveInput::Broken(why) => self.finish(None, ReceiveEnd::Broken(why)),
        }
    }

    fn on_frame(&mut self, frame: BulkRequest) -> Vec<ReceiveCommand> {
        self.idle_ticks = 0;
        if matches!(frame, BulkRequest::Offer(_)) {
            return self.refuse(incompatible("a second offer in one transfer"));
        }
        let early = self.stage == Stage::Admitting && planted("take_early_blocks");
        if self.stage != Stage::Streaming && !early {
            return self.refuse(incompatible("a frame that was not requested"));
        }
        match frame {
            BulkRequest::Offer(_) => unreachable!("refused above"),
            BulkRequest::Block(block) => self.on_block(block),
            BulkRequest::End { length, digest } => {
                let header = self.header.as_ref().expect("streaming follows a valid offer");
                let desc = header.desc();
                if (length, digest) != (desc.length, desc.digest) || self.next != length {
                    return self.refuse(BulkReply::Corrupt);
                }
                self.stage = Stage::Storing;
                vec![ReceiveCommand::Store]
            }
        }
    }

    fn on_block(&mut self, block: Block) -> Vec<ReceiveCommand> {
        let length = self.header.as_ref().expect("streaming follows a valid offer").desc().length;
        if self.credit == 0 && !planted("take_early_blocks") {
            return self.refuse(incompatible("a block beyond the credit"));
        }
        if block.offset != self.next {
            return self.refuse(incompatible(format!(
                "a block at offset {} where {} was expected",
                block.offset, self.next
            )));
        }
        let size = chunk::block_bytes(length, self.next);
        if size == 0 || block.data.len() as u64 != size {
            return self.refuse(incompatible(format!(
                "a block of {} bytes at offset {} of a payload of {length}, where {size} were \
                 expected",
                block.data.len(),
                block.offset
            )));
        }
        if crc32c::crc32c(&block.data) != block.crc {
            return self.refuse(BulkReply::Corrupt);
        }
        self.stage = Stage::Writing;
        self.next += size;
        self.credit -= 1;
        vec![ReceiveCommand::Write(block)]
    }

    fn on_tick(&mut self) -> Vec<ReceiveCommand> {
        self.idle_ticks += 1;
        if self.idle_ticks < STALL_TICKS {
            return Vec::new();
        }
        self.finish(None, ReceiveEnd::Stalled)
    }

    fn refuse(&mut self, reply: BulkReply) -> Vec<ReceiveCommand> {
        assert!(reply.is_final(), "a refusal ends the transfer");
        let end = ReceiveEnd::Refused(reply.clone());
        self.finish(Some(reply), end)
    }

    fn finish(&mut self, reply: Option<BulkReply>, end: ReceiveEnd) -> Vec<ReceiveCommand> {
        self.stage = Stage::Finished;
        let reply = reply.map(ReceiveCommand::Reply);
        reply.into_iter().chain([ReceiveCommand::Finish(end)]).collect()
    }

    fn expect(&self, stage: Stage) {
        assert_eq!(self.stage, stage, "the driver reports only what it was told to do");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::snapshot::chunk::tests::{block, expected, offer};

    const BLOCK: u64 = limits::SNAPSHOT_BLOCK_BYTES as u64;

    fn admitted(length: u64, offset: u64) -> Receiver {
        let (mut receiver, commands) = Receiver::begin(&offer(length), &expected());
        assert!(matches!(&commands[..], [ReceiveCommand::Admit(_)]), "{commands:?}");
        let commands = receiver.step(ReceiveInput::Admitted { offset });
        assert_eq!(commands, [ReceiveCommand::Reply(BulkReply::Proceed { offset })]);
        receiver
    }

    /// Space is requested once, for the offered object, and before any byte is accepted.
    /// Covers P6 P8.
    #[test]
    fn space_is_asked_for_once_and_before_any_byte() {
        let length = 2 * BLOCK;
        let (mut receiver, commands) = Receiver::begin(&offer(length), &expected());
        let [ReceiveCommand::Admit(header)] = &commands[..] else { panic!("{commands:?}") };
        assert_eq!(header.desc(), &offer(length).desc);
        let early = receiver.step(frame(block(length, 0)));
        let refused = ReceiveCommand::Reply(incompatible("a frame that was not requested"));
        assert_eq!(early[0], refused, "no space is reserved yet");

        let mut receiver = admitted(length, 0);
        let inputs = [
            frame(block(length, 0)),
            ReceiveInput::Written,
            frame(block(length, BLOCK)),
            ReceiveInput::Written,
            end(length),
            ReceiveInput::Stored,
        ];
        let told: Vec<_> = inputs.into_iter().flat_map(|input| receiver.step(input)).collect();
        assert_eq!(told.last(), Some(&ReceiveCommand::Deliver));
        assert!(!told.iter().any(|command| matches!(command, ReceiveCommand::Admit(_))));
    }

    fn frame(block: Block) -> ReceiveInput {
        ReceiveInput::Frame(BulkRequest::Block(block))
    }

    fn end(length: u64) -> ReceiveInput {
        let digest = offer(length).desc.digest;
        ReceiveInput::Frame(BulkRequest::End { length, digest })
    }

    /// Covers P14.
    #[test]
    fn each_block_is_written_and_credited_and_the_answer_is_rafts() {
        let length = 2 * BLOCK + 7;
        let mut receiver = admitted(length, 0);
        for offset in [0, BLOCK, 2 * BLOCK] {
            let commands = receiver.step(frame(block(length, offset)));
            assert_eq!(commands, [ReceiveCommand::Write(block(length, offset))]);
            let commands = receiver.step(ReceiveInput::Written);
            assert_eq!(commands, [ReceiveCommand::Reply(BulkReply::Credit { blocks: 1 })]);
        }
        assert_eq!(receiver.step(end(length)), [ReceiveCommand::Store]);
        let working = [ReceiveCommand::Reply(BulkReply::Credit { blocks: 0 })];
        assert_eq!(receiver.step(ReceiveInput::Working), working);
        assert_eq!(receiver.step(ReceiveInput::Stored), [ReceiveCommand::Deliver]);
        let reply = BulkReply::Accepted;
        let last = [
            ReceiveCommand::Reply(reply.clone()),
            ReceiveCommand::Finish(ReceiveEnd::Answered(reply.clone())),
        ];
        assert_eq!(receiver.step(ReceiveInput::Answered(reply)), last);
        assert_eq!(receiver.step(end(length)), [], "nothing happens after the end");
    }

    /// Covers P14.
    #[test]
    fn what_a_resumed_transfer_has_is_not_sent_again() {
        let length = BLOCK + 7;
        let mut receiver = admitted(length, BLOCK);
        let commands = receiver.step(frame(block(length, BLOCK)));
        assert_eq!(commands, [ReceiveCommand::Write(block(length, BLOCK))]);
        let mut complete = admitted(length, length);
        assert_eq!(complete.step(end(length)), [ReceiveCommand::Store]);
    }

    /// A refusal is exactly one reply, followed by the end of the transfer.
    fn check_refused(mut receiver: Receiver, input: ReceiveInput, is_corrupt: bool) {
        let commands = receiver.step(input.clone());
        let [ReceiveCommand::Reply(reply), ReceiveCommand::Finish(end)] = &commands[..] else {
            panic!("{input:?}: {commands:?}")
        };
        assert_eq!(matches!(reply, BulkReply::Corrupt), is_corrupt, "{input:?}: {reply:?}");
        assert_eq!(end, &ReceiveEnd::Refused(reply.clone()));
        assert_eq!(receiver.step(input), [], "the transfer is over");
    }

    /// Covers P3 P13 P17.
    #[test]
    fn every_frame_against_the_rules_ends_the_transfer() {
        let length = 2 * BLOCK + 7;
        let mut flipped = block(length, 0);
        flipped.crc ^= 1;
        let mut short = block(length, 0);
        short.data = short.data.slice(1..);
        let offered = ReceiveInput::Frame(BulkRequest::Offer(offer(length)));
        check_refused(admitted(length, 0), offered, false);
        check_refused(admitted(length, 0), frame(block(length, BLOCK)), false);
        check_refused(admitted(length, 0), frame(short), false);
        check_refused(admitted(length, length), frame(block(length, length)), false);
        check_refused(admitted(length, 0), frame(flipped), true);
        check_refused(admitted(length, 0), end(length), true);
        check_refused(admitted(length, length), end(length - 1), true);
        let digest = crate::ids::Digest([1; 32]);
        let other = ReceiveInput::Frame(BulkRequest::End { length, digest });
        check_refused(admitted(length, length), other, true);
        let corrupt = ReceiveInput::Refused(BulkReply::Corrupt);
        check_refused(admitted(length, 0), corrupt, true);
    }

    /// Covers P4 C5.
    #[test]
    fn silence_and_breakage_end_without_a_reply() {
        let mut receiver = admitted(BLOCK, 0);
        let gone = receiver.step(ReceiveInput::Broken("gone".into()));
        assert_eq!(gone, [ReceiveCommand::Finish(ReceiveEnd::Broken("gone".into()))]);
        let mut receiver = admitted(2 * BLOCK, 0);
        let quiet = |receiver: &mut Receiver| {
            let ticks = (1..STALL_TICKS).map(|_| receiver.step(ReceiveInput::Tick));
            assert_eq!(ticks.flatten().collect::<Vec<_>>(), []);
        };
        quiet(&mut receiver);
        receiver.step(frame(block(2 * BLOCK, 0)));
        receiver.step(ReceiveInput::Written);
        quiet(&mut receiver);
        let last = receiver.step(ReceiveInput::Tick);
        assert_eq!(last, [ReceiveCommand::Finish(ReceiveEnd::Stalled)]);
    }
}

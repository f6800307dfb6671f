//! [`Sender`]: the sending end of a transfer, without IO.
//!
//! Inputs are replies, blocks that were read, ticks and breakages; commands are frames to send and
//! blocks to read. A transfer ends with exactly one [`SendOutcome`], which says what to report to
//! raft and what to do next.
//!
//! - Before `Proceed`, only the offer leaves; after it, blocks leave within the credit.
//! - One block is read at a time, so the state machine itself keeps none.
//! - Only ticks without progress count: a large snapshot may take any time as long as it moves.

use crate::mutant::{plant, planted};
use crate::snapshot::chunk::{
    self, BROKEN_RETRY_MS, BUSY_RETRY_MS, Block, BulkReply, BulkRequest, ObjectRef, Offer,
    RETRY_MAX_MS, STALL_TICKS, WINDOW_BLOCKS,
};

/// What is reported to the group about a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    Finish,
    /// The transfer broke off after some of the payload had been sent: the receiver may hold a part
    /// of it and resume.
    Interrupted,
    /// The transfer is not resumed: the receiver refused it, no payload was sent, or one of the
    /// ends or the object is bad.
    Failure,
}

/// What the sender does next for this receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Done,
    /// Report, and offer again after this time.
    Wait {
        ms: u64,
    },
    /// Report, and offer this object if the sender has it; otherwise insist on its own.
    Prefer(ObjectRef),
    /// Offering this object again is of no use now: the receiver refuses it, or it is corrupt here.
    GiveUp,
}

/// Why a transfer ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendEnd {
    #[error("the receiver answered {0:?}")]
    Replied(BulkReply),
    #[error("no progress for {STALL_TICKS} ticks")]
    Stalled,
    /// The channel broke, or the object cannot be read for now.
    #[error("the transfer broke off: {0}")]
    Broken(String),
    #[error("the sender's own object is bad: {0}")]
    SourceBad(String),
    #[error("the receiver broke the protocol: {0}")]
    Protocol(&'static str),
}

/// How a transfer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendOutcome {
    pub report: Report,
    pub next: Next,
    pub end: SendEnd,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendInput {
    Reply(BulkReply),
    /// The block that [`SendCommand::Read`] asked for.
    Read(Block),
    /// The block could not be read, or is not what it was.
    SourceBad(String),
    Tick,
    Broken(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendCommand {
    Send(BulkRequest),
    /// Read the block that begins at this offset.
    Read {
        offset: u64,
    },
    Finish(SendOutcome),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The offer was sent; the sender waits for `Proceed`.
    Offered,
    /// Blocks leave within the credit.
    Streaming,
    /// `End` was sent; the sender waits for the final reply.
    Ended,
    /// The outcome was returned.
    Finished,
}

/// One outbound transfer.
#[derive(Debug)]
pub struct Sender {
    stage: Stage,
    offer: Offer,
    /// The offset of the next byte to read.
    next: u64,
    /// A block was requested and has not been read yet.
    reading: bool,
    /// Some of the payload was sent.
    moved: bool,
    credit: u32,
    idle_ticks: u32,
}

impl Sender {
    /// Begins a transfer.
    pub fn begin(offer: Offer) -> (Self, Vec<SendCommand>) {
        let frame = BulkRequest::Offer(offer.clone());
        let stage = Stage::Offered;
        let (reading, moved) = (false, false);
        let sender = Self { stage, offer, next: 0, reading, moved, credit: 0, idle_ticks: 0 };
        (sender, vec![SendCommand::Send(frame)])
    }

    pub fn step(&mut self, input: SendInput) -> Vec<SendCommand> {
        let again = planted("report_twice") && matches!(input, SendInput::Broken(_));
        if self.stage == Stage::Finished && !again {
            return Vec::new();
        }
        match input {
            SendInput::Reply(reply) => self.on_reply(reply),
            SendInput::Read(block) => self.on_block(block),
            SendInput::SourceBad(why) => self.finish(SendEnd::SourceBad(why)),
            SendInput::Tick => self.on_tick(),
            SendInput::Broken(why) => self.finish(SendEnd::Broken(why)),
        }
    }

    fn on_reply(&mut self, reply: BulkReply) -> Vec<SendCommand> {
        self.idle_ticks = 0;
        match (reply, self.stage) {
            (BulkReply::Proceed { offset }, Stage::Offered) => self.on_proceed(offset),
            (BulkReply::Proceed { .. }, _) => self.finish(SendEnd::Protocol("a second proceed")),
            (BulkReply::Credit { blocks }, Stage::Streaming | Stage::Ended) => {
                self.on_credit(blocks)
            }
            // The receiver checks the part that an earlier transfer left.
            (BulkReply::Credit { blocks: 0 }, Stage::Offered) => Vec::new(),
            (BulkReply::Credit { .. }, _) => {
                self.finish(SendEnd::Protocol("credit before proceed"))
            }
            (BulkReply::Accepted, Stage::Offered | Stage::Streaming) => {
                self.finish(SendEnd::Protocol("accepted before the end"))
            }
            (reply, _) => self.finish(SendEnd::Replied(reply)),
        }
    }

    fn on_proceed(&mut self, offset: u64) -> Vec<SendCommand> {
        let length = self.offer.desc.length;
        if offset > length || chunk::block_count(offset) * BLOCK != offset && offset != length {
            return self.finish(SendEnd::Protocol("proceed at an offset that is no block's"));
        }
        self.stage = Stage::Streaming;
        self.next = offset;
        self.credit = WINDOW_BLOCKS;
        self.advance()
    }

    fn on_credit(&mut self, blocks: u32) -> Vec<SendCommand> {
        if self.credit.checked_add(blocks).is_none_or(|credit| credit > WINDOW_BLOCKS) {
            return self.finish(SendEnd::Protocol("more credit than the window"));
        }
        self.credit += blocks;
        self.advance()
    }

    fn on_block(&mut self, block: Block) -> Vec<SendCommand> {
        assert!(self.reading, "a block arrives only when it was requested");
        assert_eq!(block.offset, self.next, "the block that was requested");
        (self.reading, self.moved) = (false, true);
        self.credit -= 1;
        self.next += block.data.len() as u64;
        let mut commands = vec![SendCommand::Send(BulkRequest::Block(block))];
        commands.extend(self.advance());
        commands
    }

    /// Requests the next block if the credit allows it, or sends the end.
    fn advance(&mut self) -> Vec<SendCommand> {
        if self.stage != Stage::Streaming || self.reading {
            return Vec::new();
        }
        let desc = &self.offer.desc;
        if self.next == desc.length {
            self.stage = Stage::Ended;
            let end = BulkRequest::End { length: desc.length, digest: desc.digest };
            return vec![SendCommand::Send(end)];
        }
        if self.credit == 0 {
            return Vec::new();
        }
        self.reading = true;
        vec![SendCommand::Read { offset: self.next }]
    }

    fn on_tick(&mut self) -> Vec<SendCommand> {
        self.idle_ticks += 1;
        if self.idle_ticks < STALL_TICKS {
            return Vec::new();
        }
        self.finish(SendEnd::Stalled)
    }

    fn finish(&mut self, end: SendEnd) -> Vec<SendCommand> {
        self.stage = Stage::Finished;
        plant!("never_report" does return Vec::new());
        vec![SendCommand::Finish(SendOutcome::of(end, self.moved))]
    }
}

const BLOCK: u64 = crate::limits::SNAPSHOT_BLOCK_BYTES as u64;

impl SendOutcome {
    /// What an end means for the group and for the next attempt; `moved` says whether some of the
    /// payload was sent.
    pub fn of(end: SendEnd, moved: bool) -> Self {
        let (report, next) = match &end {
            SendEnd::Replied(reply) => after_reply(reply),
            SendEnd::Stalled | SendEnd::Broken(_) => {
                let report = if moved { Report::Interrupted } else { Report::Failure };
                (report, Next::Wait { ms: BROKEN_RETRY_MS })
            }
            SendEnd::SourceBad(_) | SendEnd::Protocol(_) => (Report::Failure, Next::GiveUp),
        };
        Self { report, next, end }
    }
}

fn after_reply(reply: &BulkReply) -> (Report, Next) {
    match reply {
        BulkReply::Accepted | BulkReply::Stale => (Report::Finish, Next::Done),
        BulkReply::Busy { retry_after_ms } | BulkReply::NoSpace { retry_after_ms, .. } => {
            // A receiver that names an absurd time is asked again all the same.
            let ms = (*retry_after_ms).clamp(BUSY_RETRY_MS, RETRY_MAX_MS);
            (Report::Failure, Next::Wait { ms })
        }
        BulkReply::Prefer(object) => (Report::Failure, Next::Prefer(*object)),
        BulkReply::Corrupt | BulkReply::Incompatible { .. } | BulkReply::WrongGroup => {
            (Report::Failure, Next::GiveUp)
        }
        BulkReply::Proceed { .. } | BulkReply::Credit { .. } => {
            unreachable!("only a final reply ends a transfer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::chunk::tests::{block, offer};

    /// Runs a sender against the replies of its receiver, and reads every block that it requests.
    /// Returns what happened, a line for each step.
    fn run(length: u64, replies: &[BulkReply]) -> Vec<String> {
        let (mut sender, commands) = Sender::begin(offer(length));
        let mut lines = settle(&mut sender, commands, length);
        for reply in replies {
            let commands = sender.step(SendInput::Reply(reply.clone()));
            lines.extend(settle(&mut sender, commands, length));
        }
        lines
    }

    fn settle(sender: &mut Sender, commands: Vec<SendCommand>, length: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut commands = std::collections::VecDeque::from(commands);
        while let Some(command) = commands.pop_front() {
            lines.push(match command {
                SendCommand::Send(BulkRequest::Offer(_)) => "offer".into(),
                SendCommand::Send(BulkRequest::Block(block)) => format!("block {}", block.offset),
                SendCommand::Send(BulkRequest::End { length, .. }) => format!("end {length}"),
                SendCommand::Read { offset } => {
                    commands.extend(sender.step(SendInput::Read(block(length, offset))));
                    continue;
                }
                SendCommand::Finish(outcome) => {
                    format!("{:?}, {:?}: {}", outcome.report, outcome.next, outcome.end)
                }
            });
        }
        lines
    }

    const PROCEED: BulkReply = BulkReply::Proceed { offset: 0 };

    /// Covers P14.
    #[test]
    fn blocks_leave_in_order_within_the_credit_and_then_the_end() {
        let length = 5 * BLOCK + 1;
        let credit = |blocks| BulkReply::Credit { blocks };
        let lines = run(length, &[PROCEED, credit(1), credit(1), credit(0), BulkReply::Accepted]);
        let blocks = (0..6).map(|number| format!("block {}", number * BLOCK));
        let end = ["end 5242881".into(), "Finish, Done: the receiver answered Accepted".into()];
        assert_eq!(
            lines,
            ["offer".into()].into_iter().chain(blocks).chain(end).collect::<Vec<_>>()
        );
        assert_eq!(
            run(length, &[PROCEED]).len(),
            1 + WINDOW_BLOCKS as usize,
            "no credit, no block"
        );
        assert_eq!(run(0, &[PROCEED])[1..], ["end 0"], "an empty payload has no block");
        assert_eq!(run(BLOCK, &[PROCEED])[1..], ["block 0", "end 1048576"]);
        let resumed = run(length, &[BulkReply::Proceed { offset: 5 * BLOCK }]);
        assert_eq!(resumed[1..], ["block 5242880", "end 5242881"]);
        let complete = run(length, &[BulkReply::Proceed { offset: length }]);
        assert_eq!(complete[1..], ["end 5242881"]);
    }

    /// Covers I5.
    #[test]
    fn a_receiver_that_breaks_the_protocol_is_given_up() {
        let credit = BulkReply::Credit { blocks: 1 };
        for replies in [
            vec![BulkReply::Accepted],
            vec![credit.clone()],
            vec![PROCEED, PROCEED],
            vec![BulkReply::Proceed { offset: 1 }],
            vec![BulkReply::Proceed { offset: 9 * BLOCK }],
            vec![PROCEED, BulkReply::Credit { blocks: WINDOW_BLOCKS + 1 }],
            vec![PROCEED, BulkReply::Credit { blocks: u32::MAX }],
            vec![PROCEED, BulkReply::Accepted],
        ] {
            let lines = run(8 * BLOCK, &replies);
            let last = lines.last().expect("something happened");
            assert!(last.starts_with("Failure, GiveUp: the receiver broke"), "{replies:?}: {last}");
        }
    }

    /// Covers I6.
    #[test]
    fn one_outcome_and_nothing_behind_it() {
        let (mut sender, _) = Sender::begin(offer(BLOCK));
        let last = sender.step(SendInput::SourceBad("rot".into()));
        assert!(matches!(&last[..], [SendCommand::Finish(_)]), "{last:?}");
        for input in [
            SendInput::Reply(BulkReply::Accepted),
            SendInput::Tick,
            SendInput::Broken("gone".into()),
            SendInput::SourceBad("rot".into()),
        ] {
            assert_eq!(sender.step(input), []);
        }
    }

    /// Ticks count only while nothing moves.
    /// Covers C5.
    #[test]
    fn only_silence_stalls_a_transfer() {
        let (mut sender, _) = Sender::begin(offer(BLOCK));
        let quiet = |sender: &mut Sender| {
            let ticks = (1..STALL_TICKS).map(|_| sender.step(SendInput::Tick));
            ticks.flatten().collect::<Vec<_>>()
        };
        assert_eq!(quiet(&mut sender), []);
        sender.step(SendInput::Reply(PROCEED));
        sender.step(SendInput::Read(block(BLOCK, 0)));
        for _ in 0..3 {
            assert_eq!(quiet(&mut sender), []);
            sender.step(SendInput::Reply(BulkReply::Credit { blocks: 0 }));
        }
        assert_eq!(quiet(&mut sender), []);
        let last = sender.step(SendInput::Tick);
        assert_eq!(last, [SendCommand::Finish(SendOutcome::of(SendEnd::Stalled, true))]);
    }
}

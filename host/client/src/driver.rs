//! [`Driver`]: the task of a pipeline. It owns every unanswered command and the stream over which
//! they are sent.
//!
//! - Commands are sent in the order in which they were submitted, over one stream after the other.
//!   A node takes them in that order, and takes none after one that it refused. Over the next
//!   stream the driver sends all commands without an outcome, the oldest first.
//! - A command is *waiting* (not sent over the current stream) or *under way* (sent, not answered).
//! - Once a node has refused a command, the driver sends that node no more commands. When the
//!   commands under way there are answered, it opens the next stream, at the leader if another node
//!   leads.
//! - Every command ends with an outcome or an error, at the latest at its deadline.
//! - The driver leaves a node that owes answers and has been silent for too long, even if the
//!   commands have ended at their deadlines meanwhile.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::attempt::{Failed, Verdict};
use crate::client::{Client, Outcome, Reply, lost_sight, refused, settle, unreadable};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::routes::Target;
use crate::session::OpenCall;
use crate::v1;
use crate::v1::stream_answer::Answer;
use crate::window::{Job, Permit};

/// Most commands, and about the most bytes of commands, in one message.
const MESSAGE_COMMANDS_MAX: usize = 512;
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages that wait between this task and the connection.
const MESSAGES_WAITING_MAX: usize = 2;
/// How often deadlines are checked.
const TICK: Duration = Duration::from_millis(20);

/// The state of a pipeline.
pub(crate) struct Driver {
    client: Client,
    /// The session's id; 0 outside of any session.
    session: u64,
    jobs: mpsc::Receiver<Job>,
    /// Every command without an outcome, by tag: the oldest first.
    commands: BTreeMap<u64, Command>,
    /// The commands from this tag on are waiting.
    next_to_send: u64,
    under_way: usize,
    next_tag: u64,
    /// Why the last stream was left; `None` once the next one brought an outcome.
    last_failure: Option<Failed>,
}

struct Command {
    bytes: Bytes,
    call: Option<OpenCall>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Reply>>,
    _permit: Permit,
    attempts: u32,
    /// The command was sent over the current stream and is not answered.
    under_way: bool,
    /// After an earlier attempt it is unknown whether the command was applied.
    unknown: bool,
    /// The first node to which the command was sent while that node was known to lead.
    first: Option<String>,
}

/// A stream to a node, and its state as far as the driver knows.
struct Stream {
    target: Target,
    answers: Streaming<v1::ApplyStreamResponse>,
    /// The reason why the driver is leaving the node, if it is.
    leaving: Option<Failed>,
    /// When the last answer arrived, or when a command was sent while the node owed none.
    heard: Instant,
    /// The deadline of a command under way has passed, and no answer arrived since.
    overdue: bool,
    /// The stream brought the outcome of a command.
    useful: bool,
}

/// How a stream ended.
enum Ended {
    /// All handles were dropped and every command has ended.
    Done,
    Left {
        failed: Failed,
        useful: bool,
        by: Side,
    },
}

/// The side that ended a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The node, or a proxy on the way: `Failed` tells them apart.
    Node,
    /// This client, perhaps before all answers arrived.
    Client,
}

impl Driver {
    pub(crate) fn new(client: Client, session: u64, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            client,
            session,
            jobs,
            commands: BTreeMap::new(),
            next_to_send: 0,
            under_way: 0,
            next_tag: 1,
            last_failure: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let (mut pace, mut rested) = (Pace::of_streams(), Instant::now());
        loop {
            if self.commands.is_empty() {
                match self.jobs.recv().await {
                    Some(job) => self.admit(job),
                    None => return,
                }
            }
            // The pause after a failed stream is kept even if all its commands have ended.
            let pause = rested.saturating_duration_since(Instant::now());
            if !pause.is_zero() {
                self.meanwhile(tokio::time::sleep(pause), pause).await;
                continue;
            }
            let target = self.client.routes().target();
            let (address, is_leader) = (target.address.clone(), target.is_leader);
            let (failed, useful, by) = match self.stream(target).await {
                Ended::Done => return,
                Ended::Left { failed, useful, by } => (failed, useful, by),
            };
            if useful {
                pace = Pace::of_streams();
            }
            let led = is_leader || useful;
            let pause = pace.after(self.client.routes(), &address, led, &failed);
            self.leave(failed, by);
            rested = Instant::now() + pause;
        }
    }

    /// Waits for `work`, for `most` at the longest and only while there are commands; ends commands
    /// at their deadlines meanwhile.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>, most: Duration) -> Option<T> {
        let end = Instant::now() + most;
        let mut work = pin!(work);
        let (mut tick, mut open) = (ticks(), true);
        while !self.commands.is_empty() && Instant::now() < end {
            tokio::select! {
                done = &mut work => return Some(done),
                job = self.jobs.recv(), if open => match job {
                    Some(job) => self.admit(job),
                    None => open = false,
                },
                _ = tick.tick() => {
                    self.expire();
                }
            }
        }
        None
    }

    /// How long a node that owes answers may be silent.
    fn silence_max(&self) -> Duration {
        let options = self.client.options();
        options.attempt.min(options.deadline)
    }

    /// Opens a stream to `target` and uses it until it is lost or left.
    async fn stream(&mut self, target: Target) -> Ended {
        let (outgoing, body) = mpsc::channel(MESSAGES_WAITING_MAX);
        let mut client = target.client.clone();
        let opening = client.apply_stream(ReceiverStream::new(body));
        let opened = match self.meanwhile(opening, self.silence_max()).await {
            Some(opened) => opened.map_err(|status| Failed::of_status(&status)),
            None => Err(Failed::timed_out()),
        };
        let mut stream = match opened {
            Ok(response) => Stream::new(target, response.into_inner()),
            Err(failed) => return Ended::Left { failed, useful: false, by: Side::Client },
        };
        let ended = self.work(&mut stream, &outgoing).await;
        match ended {
            None => Ended::Done,
            Some((failed, by)) => Ended::Left { failed, useful: stream.useful, by },
        }
    }

    /// Moves commands and answers; returns how the stream ended, or `None` if the pipeline is done.
    async fn work(
        &mut self,
        stream: &mut Stream,
        outgoing: &mpsc::Sender<v1::ApplyStreamRequest>,
    ) -> Option<(Failed, Side)> {
        let mut tick = ticks();
        let mut taken = Vec::new();
        let mut closed = false;
        loop {
            let waits = self.commands.range(self.next_to_send..).next().is_some();
            let may_send = waits && stream.leaving.is_none();
            tokio::select! {
                answers = stream.answers.message() => match answers {
                    Ok(Some(message)) => self.answered(stream, message),
                    Ok(None) => {
                        return Some((stream.left("the node ended the stream"), Side::Client));
                    }
                    Err(status) => return Some((Failed::of_status(&status), Side::Node)),
                },
                slot = outgoing.reserve(), if may_send => match slot {
                    Ok(slot) => {
                        stream.before_sending(self.under_way);
                        if let Some(message) = self.message(stream) {
                            slot.send(message);
                        }
                    }
                    // The end of the stream of answers says why.
                    Err(_closed) => stream.leave(Failed::timed_out()),
                },
                count = self.jobs.recv_many(&mut taken, MESSAGE_COMMANDS_MAX), if !closed => {
                    closed = count == 0;
                    taken.drain(..).for_each(|job| self.admit(job));
                }
                _ = tick.tick() => stream.overdue |= self.expire(),
            }
            if closed && self.commands.is_empty() {
                return None;
            }
            if let Some(failed) = self.is_over(stream) {
                return Some((failed, Side::Client));
            }
        }
    }

    /// The reason to give up the stream now; `None` if there is none.
    fn is_over(&self, stream: &Stream) -> Option<Failed> {
        let owes = self.under_way > 0 || stream.overdue;
        let silent = owes && stream.heard.elapsed() > self.silence_max();
        match &stream.leaving {
            Some(failed) => (silent || self.under_way == 0).then(|| failed.clone()),
            None => silent.then(Failed::timed_out),
        }
    }

    fn admit(&mut self, job: Job) {
        let Job { command, call, deadline, answer, permit } = job;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.commands.insert(
            tag,
            Command {
                bytes: command,
                call,
                deadline,
                answer,
                _permit: permit,
                attempts: 0,
                under_way: false,
                unknown: false,
                first: None,
            },
        );
    }

    /// The next message: waiting commands, the oldest first.
    fn message(&mut self, stream: &Stream) -> Option<v1::ApplyStreamRequest> {
        let (mut commands, mut bytes, mut lowest) = (Vec::new(), 0, 0);
        for (&tag, command) in self.commands.range_mut(self.next_to_send..) {
            if commands.len() >= MESSAGE_COMMANDS_MAX || bytes >= MESSAGE_BYTES_MAX {
                break;
            }
            self.next_to_send = tag + 1;
            bytes += command.bytes.len();
            command.attempts += 1;
            command.under_way = true;
            self.under_way += 1;
            if stream.useful || stream.target.is_leader {
                command.first.get_or_insert_with(|| stream.target.address.clone());
            }
            if lowest == 0 {
                lowest = command.call.as_ref().map_or(0, OpenCall::lowest_unanswered);
            }
            let sequence = command.call.as_ref().map_or(0, OpenCall::sequence);
            commands.push(v1::StreamCommand { tag, sequence, command: command.bytes.clone() });
        }
        (!commands.is_empty()).then(|| v1::ApplyStreamRequest {
            group: self.client.group(),
            session: self.session,
            lowest_unanswered: lowest,
            commands,
            relief: self.client.options().relief,
        })
    }

    fn answered(&mut self, stream: &mut Stream, message: v1::ApplyStreamResponse) {
        (stream.heard, stream.overdue) = (Instant::now(), false);
        for v1::StreamAnswer { tag, answer } in message.answers {
            // A command whose deadline passed has ended already.
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            if std::mem::take(&mut command.under_way) {
                self.under_way -= 1;
            }
            let attempts = command.attempts;
            let outcome = match answer {
                Some(Answer::Ok(bytes)) => Ok(Outcome::Ok(bytes)),
                Some(Answer::Rejected(rejection)) => settle(rejection, attempts),
                Some(Answer::Refused(refused)) => {
                    self.refused(stream, tag, Failed::of_stream(refused));
                    continue;
                }
                None => Err(unreadable("it has no outcome", attempts)),
            };
            if !std::mem::replace(&mut stream.useful, true) {
                self.last_failure = None;
                self.client.routes().answered(&stream.target.address);
            }
            self.finish(tag, outcome, Some(&stream.target));
        }
    }

    /// Handles the refusal of a command. Unless it concerns this command alone, the node takes no
    /// later command of the stream either.
    fn refused(&mut self, stream: &mut Stream, tag: u64, failed: Failed) {
        let Some(command) = self.commands.get_mut(&tag) else { return };
        let hopeless = command.attempts as usize > self.client.endpoints().len();
        let goes_again = match failed.verdict {
            Verdict::Nothing | Verdict::Overloaded | Verdict::Slowly => true,
            Verdict::Once => !hopeless,
            Verdict::Unknown => {
                command.unknown = true;
                command.call.is_some()
            }
            Verdict::Final | Verdict::Foreign => false,
        };
        if !goes_again {
            let error = command.error(failed.clone());
            self.finish(tag, Err(error), None);
        }
        match failed.verdict {
            // Only this command cannot be taken: the node goes on with the next one.
            Verdict::Final | Verdict::Foreign => {}
            Verdict::Nothing
            | Verdict::Overloaded
            | Verdict::Slowly
            | Verdict::Once
            | Verdict::Unknown => stream.leave(failed),
        }
    }

    /// Leaves the stream: commands under way wait again, or end with an unknown outcome.
    fn leave(&mut self, failed: Failed, by: Side) {
        (self.under_way, self.next_to_send) = (0, 0);
        let tags: Vec<u64> = self.commands.keys().copied().collect();
        for tag in tags {
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            let sent = std::mem::take(&mut command.under_way);
            let goes_again = match failed.verdict {
                Verdict::Final => false,
                Verdict::Foreign => {
                    command.unknown |= sent;
                    false
                }
                // A node ends a stream only after its answers, and took no command that has no
                // answer. If a proxy or this client ended the stream, such a command may have been
                // taken.
                Verdict::Nothing | Verdict::Overloaded | Verdict::Slowly | Verdict::Once
                    if by == Side::Node =>
                {
                    true
                }
                Verdict::Nothing
                | Verdict::Overloaded
                | Verdict::Slowly
                | Verdict::Once
                | Verdict::Unknown => {
                    command.unknown |= sent;
                    !sent || command.call.is_some()
                }
            };
            if !goes_again {
                let error = command.error(failed.clone());
                self.finish(tag, Err(error), None);
            }
        }
        self.last_failure = Some(failed);
    }

    /// Ends the commands whose deadline has passed; returns whether one of them was under way.
    fn expire(&mut self) -> bool {
        let (now, mut overdue) = (Instant::now(), false);
        // Callers set their deadlines before they wait for space, so deadlines need not ascend with
        // tags.
        let commands = self.commands.iter();
        let late: Vec<u64> = commands.filter(|(_, c)| c.deadline <= now).map(|(t, _)| *t).collect();
        for tag in late {
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            if std::mem::take(&mut command.under_way) {
                (command.unknown, overdue) = (true, true);
                self.under_way -= 1;
            }
            let failed = self.last_failure.clone().unwrap_or_else(Failed::timed_out);
            let error = command.error(failed);
            self.finish(tag, Err(error), None);
        }
        overdue
    }

    /// Ends a command with this outcome.
    fn finish(&mut self, tag: u64, outcome: Result<Outcome>, answered: Option<&Target>) {
        let Some(command) = self.commands.remove(&tag) else { return };
        let attempts = command.attempts;
        let reply = outcome.map(|outcome| {
            let last = answered.map(|target| &target.address);
            let changed = command.first.is_some_and(|first| Some(&first) != last);
            Reply { outcome, attempts, leader_changed: attempts > 1 && changed }
        });
        // The caller may have dropped its `Pending`.
        let _ = command.answer.send(reply);
    }
}

impl Command {
    /// The command's error if it is not sent again.
    fn error(&self, failed: Failed) -> Error {
        if self.unknown {
            lost_sight(failed, self.attempts)
        } else {
            refused(failed, self.attempts)
        }
    }
}

/// When deadlines are checked.
fn ticks() -> Interval {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

impl Stream {
    fn new(target: Target, answers: Streaming<v1::ApplyStreamResponse>) -> Self {
        let heard = Instant::now();
        Self { target, answers, leaving: None, heard, overdue: false, useful: false }
    }

    /// Silence counts from here on, unless the node owes answers already.
    fn before_sending(&mut self, under_way: usize) {
        if under_way == 0 && !self.overdue {
            self.heard = Instant::now();
        }
    }

    fn leave(&mut self, failed: Failed) {
        self.leaving.get_or_insert(failed);
    }

    /// The failure of a stream that the node ended without a reason: an earlier refusal, or `why`.
    fn left(&self, why: &str) -> Failed {
        match &self.leaving {
            Some(failed) => failed.clone(),
            None => Failed { refusal: "stream-ended".to_owned(), ..Failed::broken(why) },
        }
    }
}

#[cfg(test)]
mod tests;

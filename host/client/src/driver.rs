//! [`Driver`]: the task behind a pipeline. It owns every unanswered command and the stream they go
//! over.
//!
//! - A command is *queued* (not on the current stream) or *under way* (sent, no answer yet).
//! - A node that refuses because another one leads is not sent more; once what is under way there
//!   has its answers, the stream is opened at the leader.
//! - Nothing is forgotten: every command ends with an outcome or an error, at the latest by its
//!   deadline.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::attempt::{Failed, Verdict};
use crate::client::{Client, Outcome, Reply, jittered, longer, lost_sight, refused, settle, steer};
use crate::error::{Error, Result};
use crate::pipeline::Job;
use crate::routes::Target;
use crate::session::OpenCall;
use crate::v1;
use crate::v1::stream_answer::Answer;

/// Commands, and bytes of commands, of one message.
const MESSAGE_COMMANDS_MAX: usize = 512;
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages between this task and the connection.
const MESSAGES_WAITING_MAX: usize = 2;
/// How often deadlines are looked at, and refused commands sent again.
const TICK: Duration = Duration::from_millis(20);
/// How long answers are waited for at a node that is being left.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// First pause between streams.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// All of a pipeline's state.
pub(crate) struct Driver {
    client: Client,
    /// 0: none.
    session: u64,
    jobs: mpsc::Receiver<Job>,
    /// Every command without an outcome, by tag: the oldest first.
    commands: BTreeMap<u64, Command>,
    /// Tags to send. One whose command has ended meanwhile is passed over.
    queued: VecDeque<u64>,
    /// Tags that the node had no room for; queued again at the next tick.
    again: Vec<u64>,
    under_way: usize,
    next_tag: u64,
    /// Why the last stream was left.
    last_failure: Option<Failed>,
}

struct Command {
    bytes: Bytes,
    call: Option<OpenCall>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Reply>>,
    _room: OwnedSemaphorePermit,
    attempts: u32,
    /// Sent over the current stream, unanswered.
    under_way: bool,
    /// An attempt ended without telling whether it was applied.
    unknown: bool,
    /// The leader that the first attempt went to, if it was known to be one.
    first: Option<String>,
}

/// A stream and what was seen of it.
struct Stream {
    target: Target,
    answers: Streaming<v1::ApplyStreamResponse>,
    /// Set once the node is being left: why, and since when.
    leaving: Option<(Failed, Instant)>,
    /// When the last answer came, or the first command went.
    heard: Instant,
    /// Some command had an outcome.
    useful: bool,
}

/// How a stream ended.
enum Ended {
    /// All handles are gone and every command has ended.
    Done,
    Left {
        failed: Failed,
        useful: bool,
    },
}

impl Driver {
    pub(crate) fn new(client: Client, session: u64, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            client,
            session,
            jobs,
            commands: BTreeMap::new(),
            queued: VecDeque::new(),
            again: Vec::new(),
            under_way: 0,
            next_tag: 1,
            last_failure: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            if self.commands.is_empty() {
                match self.jobs.recv().await {
                    Some(job) => self.admit(job),
                    None => return,
                }
            }
            let target = self.client.routes().target();
            let address = target.address.clone();
            let (failed, useful) = match self.stream(target).await {
                Ended::Done => return,
                Ended::Left { failed, useful } => (failed, useful),
            };
            let jump = steer(self.client.routes(), &address, &failed);
            let verdict = failed.verdict;
            self.leave(failed);
            pause = if useful { PAUSE_MIN } else { pause };
            if !jump {
                tokio::time::sleep(jittered(pause)).await;
                pause = longer(pause, verdict);
            }
            self.expire();
        }
    }

    /// Opens a stream to `target` and works it until it is lost or left.
    async fn stream(&mut self, target: Target) -> Ended {
        let (outgoing, body) = mpsc::channel(MESSAGES_WAITING_MAX);
        let mut client = target.client.clone();
        let opening = client.apply_stream(ReceiverStream::new(body));
        let patience = self.client.options().attempt;
        let answers = match tokio::time::timeout(patience, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                return Ended::Left { failed: Failed::of_status(&status), useful: false };
            }
            Err(_elapsed) => return Ended::Left { failed: Failed::timed_out(), useful: false },
        };
        let heard = Instant::now();
        let mut stream = Stream { target, answers, leaving: None, heard, useful: false };
        let ended = self.work(&mut stream, &outgoing).await;
        match ended {
            None => Ended::Done,
            Some(failed) => Ended::Left { failed, useful: stream.useful },
        }
    }

    /// Moves commands and answers; `None` when there is nothing left to do, ever.
    async fn work(
        &mut self,
        stream: &mut Stream,
        outgoing: &mpsc::Sender<v1::ApplyStreamRequest>,
    ) -> Option<Failed> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::new();
        let mut closed = false;
        loop {
            let may_send = !self.queued.is_empty() && stream.leaving.is_none();
            tokio::select! {
                answers = stream.answers.message() => match answers {
                    Ok(Some(message)) => self.answered(stream, message),
                    Ok(None) => return Some(stream.left("the node ended the stream")),
                    Err(status) => return Some(Failed::of_status(&status)),
                },
                room = outgoing.reserve(), if may_send => match room {
                    Ok(room) => {
                        if self.under_way == 0 {
                            stream.heard = Instant::now();
                        }
                        if let Some(message) = self.message(stream) {
                            room.send(message);
                        }
                    }
                    // The answers' end says why.
                    Err(_closed) => stream.leave(Failed::timed_out()),
                },
                count = self.jobs.recv_many(&mut taken, MESSAGE_COMMANDS_MAX), if !closed => {
                    closed = count == 0;
                    taken.drain(..).for_each(|job| self.admit(job));
                }
                _ = tick.tick() => self.tick(),
            }
            if closed && self.commands.is_empty() {
                return None;
            }
            if let Some(failed) = self.is_over(stream) {
                return Some(failed);
            }
        }
    }

    /// Whether the stream is to be given up.
    fn is_over(&self, stream: &mut Stream) -> Option<Failed> {
        if let Some((failed, since)) = &stream.leaving {
            let over = self.under_way == 0 || since.elapsed() > DRAIN_MAX;
            return over.then(|| failed.clone());
        }
        let silent = stream.heard.elapsed() > self.client.options().attempt;
        (self.under_way > 0 && silent).then(Failed::timed_out)
    }

    fn admit(&mut self, job: Job) {
        let Job { command, call, deadline, answer, room } = job;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.queued.push_back(tag);
        self.commands.insert(
            tag,
            Command {
                bytes: command,
                call,
                deadline,
                answer,
                _room: room,
                attempts: 0,
                under_way: false,
                unknown: false,
                first: None,
            },
        );
    }

    /// The next message: commands that are queued, oldest first.
    fn message(&mut self, stream: &Stream) -> Option<v1::ApplyStreamRequest> {
        let (mut commands, mut bytes, mut lowest) = (Vec::new(), 0, 0);
        while commands.len() < MESSAGE_COMMANDS_MAX && bytes < MESSAGE_BYTES_MAX {
            let Some(tag) = self.queued.pop_front() else { break };
            let Some(command) = self.commands.get_mut(&tag) else { continue };
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
        stream.heard = Instant::now();
        for v1::StreamAnswer { tag, answer } in message.answers {
            // One whose deadline passed has ended already.
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            if std::mem::take(&mut command.under_way) {
                self.under_way -= 1;
            }
            let outcome = match answer {
                Some(Answer::Ok(bytes)) => Ok(Outcome::Ok(bytes)),
                Some(Answer::Rejected(rejection)) => settle(rejection),
                Some(Answer::Refused(refused)) => {
                    self.refused(stream, tag, Failed::of_stream(refused));
                    continue;
                }
                None => Err(Error::Malformed("a stream's answer without an answer")),
            };
            if !std::mem::replace(&mut stream.useful, true) {
                self.client.routes().lead(&stream.target.address);
            }
            self.finish(tag, outcome, Some(&stream.target));
        }
    }

    /// The node refused one command.
    fn refused(&mut self, stream: &mut Stream, tag: u64, failed: Failed) {
        let Some(command) = self.commands.get_mut(&tag) else { return };
        match failed.verdict {
            Verdict::Overloaded => self.again.push(tag),
            Verdict::Once if command.attempts as usize > self.client.endpoints().len() => {
                let attempts = command.attempts;
                let error = match command.unknown {
                    true => lost_sight(failed.clone(), attempts),
                    false => refused(failed.clone(), attempts),
                };
                self.finish(tag, Err(error), None);
                stream.leave(failed);
            }
            Verdict::Nothing | Verdict::Slowly | Verdict::Once => {
                self.queued.push_back(tag);
                stream.leave(failed);
            }
            Verdict::Unknown if command.call.is_some() => {
                command.unknown = true;
                self.queued.push_back(tag);
                stream.leave(failed);
            }
            Verdict::Unknown => {
                let attempts = command.attempts;
                self.finish(tag, Err(lost_sight(failed.clone(), attempts)), None);
                stream.leave(failed);
            }
            Verdict::Final | Verdict::Foreign => {
                let attempts = command.attempts;
                let error = match command.unknown {
                    true => lost_sight(failed, attempts),
                    false => refused(failed, attempts),
                };
                self.finish(tag, Err(error), None);
            }
        }
    }

    /// The stream is gone: what was under way is queued again, or has an unknown outcome.
    fn leave(&mut self, failed: Failed) {
        self.under_way = 0;
        self.again.clear();
        let tags: Vec<u64> = self.commands.keys().copied().collect();
        for tag in tags {
            let Some(command) = self.commands.get_mut(&tag) else { continue };
            let was_under_way = std::mem::take(&mut command.under_way);
            let attempts = command.attempts;
            let error = match failed.verdict {
                // A node ends a stream behind its answers: it took nothing that has none. Of
                // anybody else's end that is not known.
                Verdict::Foreign if was_under_way => lost_sight(failed.clone(), attempts),
                Verdict::Final | Verdict::Foreign if command.unknown => {
                    lost_sight(failed.clone(), attempts)
                }
                Verdict::Final | Verdict::Foreign => refused(failed.clone(), attempts),
                Verdict::Nothing
                | Verdict::Overloaded
                | Verdict::Slowly
                | Verdict::Once
                | Verdict::Unknown => {
                    command.unknown |= was_under_way;
                    if !was_under_way || command.call.is_some() {
                        continue;
                    }
                    lost_sight(failed.clone(), attempts)
                }
            };
            self.finish(tag, Err(error), None);
        }
        self.queued = self.commands.keys().copied().collect();
        self.last_failure = Some(failed);
    }

    fn tick(&mut self) {
        self.queued.extend(self.again.drain(..));
        self.expire();
    }

    /// Ends what has run out of time. Deadlines are in the order of tags.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((&tag, command)) = self.commands.first_key_value()
            && command.deadline <= now
        {
            let attempts = command.attempts;
            let failed = self.last_failure.clone().unwrap_or_else(Failed::timed_out);
            let error = match command.unknown || command.under_way {
                true => lost_sight(failed, attempts),
                false => refused(failed, attempts),
            };
            if command.under_way {
                self.under_way -= 1;
            }
            self.finish(tag, Err(error), None);
        }
    }

    /// Gives a command its end.
    fn finish(&mut self, tag: u64, outcome: Result<Outcome>, answered: Option<&Target>) {
        let Some(command) = self.commands.remove(&tag) else { return };
        let attempts = command.attempts;
        let reply = outcome.map(|outcome| {
            let last = answered.map(|target| &target.address);
            let changed = command.first.is_some_and(|first| Some(&first) != last);
            Reply { outcome, attempts, leader_changed: attempts > 1 && changed }
        });
        // Whoever asked may have stopped waiting.
        let _ = command.answer.send(reply);
    }
}

impl Stream {
    fn leave(&mut self, failed: Failed) {
        self.leaving.get_or_insert_with(|| (failed, Instant::now()));
    }

    /// The node ended the stream, and told no reason but perhaps an earlier one.
    fn left(&self, why: &str) -> Failed {
        match &self.leaving {
            Some((failed, _)) => failed.clone(),
            None => Failed {
                verdict: Verdict::Unknown,
                refusal: "stream-ended".to_owned(),
                message: why.to_owned(),
                leader: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::client::Options;

    /// B10: somebody on the way ends the stream with a no that is no node's.
    #[tokio::test]
    async fn what_was_sent_may_have_been_applied_whoever_ends_the_stream() {
        let client = Client::connect(["127.0.0.1:1"], Options::default()).expect("good");
        let (_jobs, queue) = mpsc::channel(1);
        let mut driver = Driver::new(client.clone(), 0, queue);
        let room = Arc::new(Semaphore::new(2));
        let mut answers = Vec::new();
        for _ in 0..2 {
            let (answer, receiver) = oneshot::channel();
            let room = Arc::clone(&room).acquire_owned().await.expect("it is open");
            let deadline = Instant::now() + Duration::from_secs(60);
            let command = Bytes::from_static(b"a");
            driver.admit(Job { command, call: None, deadline, answer, room });
            answers.push(receiver);
        }
        driver.commands.get_mut(&1).expect("the first").under_way = true;
        driver.under_way = 1;
        let status = tonic::Status::permission_denied("the gateway says no");
        driver.leave(Failed::of_status(&status));
        let (sent, kept) = (answers.remove(0).await, answers.remove(0).await);
        assert!(matches!(sent, Ok(Err(Error::Unknown { .. }))), "{sent:?}");
        assert!(matches!(kept, Ok(Err(Error::Refused { .. }))), "{kept:?}");
    }
}

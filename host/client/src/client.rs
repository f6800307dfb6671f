//! [`Client`]: calls with a deadline, sent to the leader and retried where that is safe.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::COMMAND_BYTES_MAX;
use crate::attempt::{Failed, Verdict};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::routes::{Routes, Target};
use crate::v1;
use crate::v1::lockstep_client::LockstepClient;

/// Longest time that a call or an attempt may take; a bound, because adding a long time to a
/// clock's reading would overflow.
pub const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// How a client behaves. Times beyond a year count as a year.
#[derive(Clone, Debug)]
pub struct Options {
    /// The group's name; may be empty for nodes with a single group.
    pub group: String,
    /// How long a call may take, with all its attempts.
    pub deadline: Duration,
    /// How long one attempt may take before another node is tried.
    pub attempt: Duration,
    /// How long connecting may take; at most half of `attempt`, so that an attempt at a node that
    /// cannot be reached is known to have had no effect.
    pub connect: Duration,
    /// The commands free memory of the state machine: while others are refused as
    /// `memory-high`, these are taken up to a second bound.
    pub relief: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group: String::new(),
            deadline: Duration::from_secs(10),
            attempt: Duration::from_secs(3),
            connect: Duration::from_secs(1),
            relief: false,
        }
    }
}

impl Options {
    fn bounded(self) -> Self {
        let attempt = self.attempt.min(DEADLINE_MAX);
        let connect = self.connect.min(attempt / 2);
        Self { deadline: self.deadline.min(DEADLINE_MAX), attempt, connect, ..self }
    }
}

/// Refuses bytes that no node takes, with the refusal that a node would send. In a stream such a
/// command would make the node reject its whole message, with the other commands in it.
pub(crate) fn fits(what: &str, bytes: &Bytes) -> Result<()> {
    let (have, most) = (bytes.len(), COMMAND_BYTES_MAX);
    if have <= most {
        return Ok(());
    }
    Err(Error::Refused {
        refusal: "too-large".to_owned(),
        message: format!("{what} of {have} bytes is over the limit of {most} bytes; split it"),
        attempts: 0,
    })
}

/// A connection to a cluster; cheap to clone, and calls may be made concurrently.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    routes: Routes,
    /// The same nodes, with connections for watches.
    watch_routes: Routes,
    options: Options,
}

/// The state machine's answer to a command or a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Ok(Bytes),
    /// The state machine rejected the call, with this reason; a retry of a command in its session
    /// gets the same answer.
    Rejected(Bytes),
}

/// The outcome of a command, and what it took to get it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub outcome: Outcome,
    /// The number of attempts; 1 if the first one was answered.
    pub attempts: u32,
    /// The outcome came from another leader than the one that was tried first.
    pub leader_changed: bool,
}

/// The answer to a query, and what it reflects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryReply {
    pub outcome: Outcome,
    /// The last entry that was applied when the state machine answered.
    pub applied_index: u64,
    /// Why the replica that answered is halted, if it is: its state no longer changes.
    pub halted: Option<String>,
    pub attempts: u32,
}

/// What a query's answer reflects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// All commands that were acknowledged before the query.
    #[default]
    Linearizable,
    /// The commands that the asked node has applied.
    Local,
}

/// When a failed attempt may be repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Always: the call has no effect, or the same effect however often it is made.
    Always,
    /// Only if the attempt certainly had no effect.
    IfNothing,
    /// Always, and any node may answer, not only the leader.
    Anywhere,
}

/// How an answer was obtained.
struct Course {
    attempts: u32,
    leader_changed: bool,
}

impl Client {
    /// A client of the cluster to which these nodes, each a `host:port`, belong. It connects at the
    /// first call. Must be called within a tokio runtime.
    pub fn connect<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
        options: Options,
    ) -> Result<Self> {
        let options = options.bounded();
        Self::of(endpoints.into_iter().map(Into::into).collect(), options)
    }

    fn of(endpoints: Vec<String>, options: Options) -> Result<Self> {
        let routes = Routes::new(endpoints.clone(), options.connect)?;
        let watch_routes = Routes::new(endpoints, options.connect)?;
        Ok(Self { inner: Arc::new(Inner { routes, watch_routes, options }) })
    }

    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    pub fn endpoints(&self) -> &[String] {
        self.inner.routes.endpoints()
    }

    /// The address of the leader, if this client knows one.
    pub fn leader(&self) -> Option<String> {
        self.inner.routes.leader()
    }

    /// Applies a command outside of any session. It is sent again only if the failed attempt
    /// certainly had no effect.
    pub async fn apply(&self, command: impl Into<Bytes>) -> Result<Reply> {
        let command = command.into();
        fits("command", &command)?;
        let request = v1::ApplyRequest {
            group: self.group(),
            session: 0,
            sequence: 0,
            lowest_unanswered: 0,
            command,
            relief: self.options().relief,
        };
        let (response, course) = self
            .run(Repeat::IfNothing, |mut client, timeout| {
                let request = timed(request.clone(), timeout);
                async move { client.apply(request).await }
            })
            .await?;
        reply(response, &course)
    }

    /// Applies a command within a session. Each attempt sends a new `request`.
    pub(crate) async fn apply_within(
        &self,
        request: impl Fn() -> v1::ApplyRequest,
        until: Instant,
    ) -> Result<Reply> {
        let (response, course) = self
            .run_until(until, Repeat::Always, |mut client, timeout| {
                let request = request();
                async move { client.apply(timed(request, timeout)).await }
            })
            .await?;
        reply(response, &course)
    }

    /// Opens a session and returns its id.
    pub(crate) async fn new_session(&self) -> Result<u64> {
        let mut nonce = [0; 8];
        // The nonce makes the session's id unique; without randomness, index and term have to do.
        let _ = getrandom::fill(&mut nonce);
        let request =
            v1::OpenSessionRequest { group: self.group(), nonce: u64::from_le_bytes(nonce) };
        let (response, _) = self
            .run(Repeat::Always, |mut client, timeout| {
                let request = timed(request.clone(), timeout);
                async move { client.open_session(request).await }
            })
            .await?;
        Ok(response.session)
    }

    /// Closes a session. Closing it again has no effect.
    pub(crate) async fn close_session(&self, session: u64) -> Result<()> {
        let request = v1::CloseSessionRequest { group: self.group(), session };
        self.run(Repeat::Always, |mut client, timeout| {
            let request = timed(request.clone(), timeout);
            async move { client.close_session(request).await }
        })
        .await
        .map(drop)
    }

    /// Queries the state machine.
    pub async fn query(
        &self,
        request: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<QueryReply> {
        use v1::query_response::Answer;
        let request = request.into();
        fits("query", &request)?;
        let request = v1::QueryRequest {
            group: self.group(),
            request,
            local: consistency == Consistency::Local,
        };
        let repeat = match consistency {
            Consistency::Linearizable => Repeat::Always,
            Consistency::Local => Repeat::Anywhere,
        };
        let (response, course) = self
            .run(repeat, |mut client, timeout| {
                let request = timed(request.clone(), timeout);
                async move { client.query(request).await }
            })
            .await?;
        let outcome = match response.answer.ok_or(Error::Malformed("no answer to the query"))? {
            Answer::Ok(bytes) => Outcome::Ok(bytes),
            Answer::Rejected(message) => Outcome::Rejected(message),
        };
        Ok(QueryReply {
            outcome,
            applied_index: response.applied_index,
            halted: response.halted.map(|halted| halted.cause),
            attempts: course.attempts,
        })
    }

    /// Queries the node at `endpoint`, which answers from what it has applied.
    pub async fn query_at(&self, endpoint: &str, request: impl Into<Bytes>) -> Result<QueryReply> {
        let alone = Self::of(vec![endpoint.to_owned()], self.inner.options.clone())?;
        alone.query(request, Consistency::Local).await
    }

    /// The status of the groups of the node at `endpoint`, or only of the client's group if one is
    /// set.
    pub async fn status(&self, endpoint: &str) -> Result<v1::StatusResponse> {
        let mut client = self.inner.routes.at(endpoint)?.client;
        let message = timed(v1::StatusRequest { group: self.group() }, self.inner.options.deadline);
        self.once(client.status(message)).await
    }

    /// Requests a checkpoint, at whose index every replica takes a snapshot; returns that index. If
    /// nothing changed since the last checkpoint, and all replicas have its snapshot, returns the
    /// index of that checkpoint.
    pub async fn checkpoint(&self) -> Result<u64> {
        let request = v1::CheckpointRequest { group: self.group() };
        self.run(Repeat::Always, |mut client, timeout| {
            let request = timed(request.clone(), timeout);
            async move { client.checkpoint(request).await }
        })
        .await
        .map(|(response, _)| response.index)
    }

    /// Gives an operator's order; returns the index of the entry at which every replica obeys it.
    pub async fn order(&self, order: v1::order_request::Order) -> Result<u64> {
        let request = v1::OrderRequest { group: self.group(), order: Some(order) };
        self.run(Repeat::Always, |mut client, timeout| {
            let request = timed(request.clone(), timeout);
            async move { client.order(request).await }
        })
        .await
        .map(|(response, _)| response.index)
    }

    /// Gives a module to the first endpoint that takes it, in pieces of at most `piece_bytes`
    /// bytes; the node checks, compiles and keeps it. `id` is the SHA-256 of its bytes.
    pub async fn stage_module(
        &self,
        id: [u8; 32],
        bytes: &[u8],
        piece_bytes: usize,
    ) -> Result<v1::StagedModule> {
        let mut first = None;
        for endpoint in self.endpoints() {
            match self.stage_module_at(endpoint, id, bytes, piece_bytes).await {
                Ok(staged) => return Ok(staged),
                // Another node would say the same of the module.
                Err(Error::Refused { refusal, message, attempts }) if refusal == "malformed" => {
                    return Err(Error::Refused { refusal, message, attempts });
                }
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.expect("a client has an endpoint"))
    }

    async fn stage_module_at(
        &self,
        endpoint: &str,
        id: [u8; 32],
        bytes: &[u8],
        piece_bytes: usize,
    ) -> Result<v1::StagedModule> {
        let mut client = self.inner.routes.at(endpoint)?.client;
        let mut staged = None;
        for (number, piece) in bytes.chunks(piece_bytes).enumerate() {
            let request = v1::StageModuleRequest {
                module: Bytes::copy_from_slice(&id),
                total: bytes.len() as u64,
                offset: (number * piece_bytes) as u64,
                piece: Bytes::copy_from_slice(piece),
            };
            let asking = client.stage_module(timed(request, self.inner.options.deadline));
            staged = self.once(asking).await?.staged;
        }
        staged.ok_or(Error::Malformed("no answer to the last piece of the module"))
    }

    /// Why the replica on the node at `endpoint` is halted; with the entry's commands, if asked.
    pub async fn fault(&self, endpoint: &str, commands: bool) -> Result<v1::FaultResponse> {
        let mut client = self.inner.routes.at(endpoint)?.client;
        let message = v1::FaultRequest { group: self.group(), commands };
        self.once(client.fault(timed(message, self.inner.options.deadline))).await
    }

    /// Has the replica on the node at `endpoint`, which has diverged, go on from another's
    /// snapshot; returns the least index of that.
    pub async fn repair(&self, endpoint: &str) -> Result<u64> {
        let mut client = self.inner.routes.at(endpoint)?.client;
        let message = timed(v1::RepairRequest { group: self.group() }, self.inner.options.deadline);
        self.once(client.repair(message)).await.map(|response| response.index)
    }

    /// One attempt, at one node.
    async fn once<T>(
        &self,
        asking: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.inner.options.deadline, asking).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refused(Failed::of_status(&status), 1)),
            Err(_elapsed) => Err(refused(Failed::timed_out(), 1)),
        }
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.inner.routes
    }

    pub(crate) fn watch_routes(&self) -> &Routes {
        &self.inner.watch_routes
    }

    pub(crate) fn group(&self) -> String {
        self.inner.options.group.clone()
    }

    async fn run<T, F>(
        &self,
        repeat: Repeat,
        attempt: impl Fn(LockstepClient<Channel>, Duration) -> F,
    ) -> Result<(T, Course)>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.run_until(Instant::now() + self.inner.options.deadline, repeat, attempt).await
    }

    /// Makes attempts until one is answered, the deadline passes, or another one would not help.
    async fn run_until<T, F>(
        &self,
        deadline: Instant,
        repeat: Repeat,
        attempt: impl Fn(LockstepClient<Channel>, Duration) -> F,
    ) -> Result<(T, Course)>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let Inner { routes, options, watch_routes: _ } = &*self.inner;
        let (mut attempts, mut hopeless, mut unknown) = (0, 0, false);
        let mut pace = Pace::of_calls();
        let mut first_leader: Option<String> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(options.attempt);
            if left.is_zero() {
                return Err(ended(unknown, Failed::timed_out(), attempts));
            }
            let target = routes.target();
            attempts += 1;
            if target.is_leader && first_leader.is_none() {
                first_leader = Some(target.address.clone());
            }
            let answer = tokio::time::timeout(left, attempt(target.client.clone(), left)).await;
            let failed = match answer {
                Ok(Ok(response)) => {
                    let answered = answered_by(&response, &target);
                    if repeat != Repeat::Anywhere && answered == target.address {
                        routes.answered(&answered);
                    } else if repeat != Repeat::Anywhere {
                        routes.lead(&answered);
                    }
                    let leader_changed =
                        attempts > 1 && first_leader.is_some_and(|first| first != answered);
                    return Ok((response.into_inner(), Course { attempts, leader_changed }));
                }
                Ok(Err(status)) => Failed::of_status(&status),
                Err(_elapsed) => Failed::timed_out(),
            };
            unknown |= matches!(failed.verdict, Verdict::Unknown | Verdict::Foreign);
            hopeless += usize::from(failed.verdict == Verdict::Once);
            let over = match failed.verdict {
                Verdict::Final | Verdict::Foreign => true,
                // Every endpoint had its attempt, and perhaps also a leader that a node named.
                Verdict::Once => hopeless >= routes.endpoints().len().max(2),
                Verdict::Unknown => repeat == Repeat::IfNothing,
                Verdict::Nothing | Verdict::Overloaded | Verdict::Slowly => false,
            };
            if over {
                if failed.verdict == Verdict::Unknown {
                    routes.avoid(&target.address);
                }
                return Err(ended(unknown, failed, attempts));
            }
            let rest = pace.after(routes, &target.address, target.is_leader, &failed);
            if Instant::now() + rest >= deadline {
                return Err(ended(unknown, failed, attempts));
            }
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
    }
}

/// Converts a rejection into the result of a command: a rejection by the state machine is an
/// outcome, one by the host is an error.
pub(crate) fn settle(rejected: v1::Rejection, attempts: u32) -> Result<Outcome> {
    use v1::rejection::Kind;
    let kind = rejected.kind();
    let text = || String::from_utf8_lossy(&rejected.message).into_owned();
    match kind {
        Kind::Guest => Ok(Outcome::Rejected(rejected.message)),
        Kind::SessionExpired => Err(Error::SessionExpired { message: text() }),
        Kind::AnswerTooLarge => Err(Error::AnswerTooLarge { message: text() }),
        Kind::SessionFull => Err(Error::SessionFull { message: text() }),
        Kind::Skipped => Err(Error::Skipped { message: text() }),
        Kind::Frozen => {
            Err(Error::Refused { refusal: "frozen".to_owned(), message: text(), attempts })
        }
        Kind::Unspecified => Err(unreadable("it has an unknown kind of rejection", attempts)),
    }
}

/// The error of a command whose answer this client cannot interpret; a newer node may send such an
/// answer.
pub(crate) fn unreadable(why: &str, attempts: u32) -> Error {
    let message = format!("the node's answer cannot be read: {why}");
    Error::Unknown { message, attempts }
}

fn ended(unknown: bool, failed: Failed, attempts: u32) -> Error {
    if unknown { lost_sight(failed, attempts) } else { refused(failed, attempts) }
}

pub(crate) fn refused(failed: Failed, attempts: u32) -> Error {
    let Failed { refusal, message, .. } = failed;
    Error::Refused { refusal, message, attempts }
}

pub(crate) fn lost_sight(failed: Failed, attempts: u32) -> Error {
    Error::Unknown { message: failed.message, attempts }
}

/// The address of the node that answered: the one that was asked, or the leader that it forwarded
/// the call to and names.
fn answered_by<T>(response: &Response<T>, target: &Target) -> String {
    let forwarded = response.metadata().get("lockstep-leader").and_then(|v| v.to_str().ok());
    forwarded.unwrap_or(&target.address).to_owned()
}

fn reply(response: v1::ApplyResponse, course: &Course) -> Result<Reply> {
    use v1::apply_response::Outcome as Wire;
    let Course { attempts, leader_changed } = *course;
    let outcome = match response.outcome {
        Some(Wire::Ok(bytes)) => Outcome::Ok(bytes),
        Some(Wire::Rejected(rejection)) => settle(rejection, attempts)?,
        None => return Err(unreadable("it has no outcome", attempts)),
    };
    Ok(Reply { outcome, attempts, leader_changed })
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A newer node may answer what this client does not know. The command may have been applied.
    #[test]
    fn an_answer_that_cannot_be_read_leaves_the_outcome_open() {
        let newer = v1::Rejection { kind: 99, ..Default::default() };
        let settled = settle(newer.clone(), 2);
        assert!(matches!(settled, Err(Error::Unknown { attempts: 2, .. })), "{settled:?}");
        let rejected = Some(v1::apply_response::Outcome::Rejected(newer));
        for outcome in [rejected, None] {
            let course = Course { attempts: 1, leader_changed: false };
            let reply = reply(v1::ApplyResponse { outcome }, &course);
            assert!(matches!(reply, Err(Error::Unknown { attempts: 1, .. })), "{reply:?}");
        }
    }

    #[tokio::test]
    async fn times_of_any_length_can_be_set() {
        let (deadline, attempt, connect) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let options = Options { deadline, attempt, connect, ..Options::default() };
        let client = Client::connect(["127.0.0.1:1"], options).expect("a good endpoint");
        let options = client.options();
        assert_eq!((options.deadline, options.attempt), (DEADLINE_MAX, DEADLINE_MAX));
        assert!(options.connect < options.attempt, "what was not sent is told apart");
    }
}

//! The clients' side of the port: requests become tickets of a group, answers become messages.
//!
//! - Sizes and names are checked here; a request that passes is answered by its group.
//! - A call that only the leader may answer is forwarded to the leader, once ([`Forward`]).
//! - A caller's deadline ends the wait, not the command.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::apply::Answer;
use lockstep_core::entry::Call;
use lockstep_core::fault::{Refusal, Rejection};
use lockstep_core::limits;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::group::{Asker, GroupHandle, HaltedAt, QueryAnswer};
use crate::modules::ModuleStore;
use crate::router::Router;
use crate::rpc::HelloInfo;
use crate::rpc::apply_stream::ApplyStream;
use crate::rpc::call::CALL_BYTES;
use crate::rpc::forward::{self, Forward, Onward, Origin};
use crate::rpc::links::Link;
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::PortState;
use crate::rpc::proto::client as wire;
use crate::rpc::proto::client::lockstep_client::LockstepClient;
use crate::rpc::proto::client::lockstep_server::Lockstep;
use crate::rpc::refuse::{LEADER, Refused, check_command, check_sequence};
use crate::rpc::status::StatusSource;
use crate::rpc::watch::{WatchStream, Watcher};
use crate::rpc::{modules, orders};

/// How long a status call waits for the groups to bring their reports up to date.
const FRESH_MAX: Duration = Duration::from_millis(500);

/// A client of the node that leads.
type Leads = LockstepClient<Channel>;

/// The service `lockstep.v1.Lockstep`.
pub(super) struct ClientApi {
    router: Router,
    modules: Arc<ModuleStore>,
    forward: Forward,
    status: StatusSource,
    hello: HelloInfo,
    port: Arc<PortState>,
    /// True once the node is about to stop: it hands over leadership and takes no more requests.
    closing: watch::Receiver<bool>,
    stopped: watch::Receiver<bool>,
}

impl ClientApi {
    pub(super) fn new(
        router: Router,
        modules: Arc<ModuleStore>,
        hello: &HelloInfo,
        transport: Arc<GrpcTransport>,
        port: Arc<PortState>,
        closing: watch::Receiver<bool>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let router = router.knowing(transport.wrong_addresses());
        let forward = Forward::new(&router, hello, port.forwarded_bytes_max());
        let status = StatusSource::new(hello, transport);
        Self { router, modules, forward, status, hello: hello.clone(), port, closing, stopped }
    }

    /// The group of this name, unless the node is about to stop.
    fn open_group(&self, name: &str) -> Result<&GroupHandle, Refused> {
        let group = self.group(name)?;
        if *self.closing.borrow() {
            Err(Refused::by_group(&Refusal::ShuttingDown, group.name(), &self.router))
        } else {
            Ok(group)
        }
    }

    fn group(&self, name: &str) -> Result<&GroupHandle, Refused> {
        self.router.group(name).ok_or_else(|| Refused::unknown_group(name, &self.router))
    }

    /// The call with the group that is to answer it. `group` is the place of the group's name in
    /// the message, which may be empty on a node with one group; `answer_max` is the longest
    /// answer.
    fn asked<M>(
        &self,
        request: Request<M>,
        group: fn(&mut M) -> &mut String,
        answer_max: usize,
    ) -> Result<Asked<'_, M>, Refused> {
        let connection = request.remote_addr().map(Asker::at).unwrap_or_default();
        let (metadata, extensions, mut message) = request.into_parts();
        let deadline = Deadline::of(&metadata);
        let name = group(&mut message);
        let origin = Origin::of(&metadata);
        if let Some(origin) = &origin {
            origin.check_node(&self.hello, name)?;
        }
        let group = self.open_group(name)?;
        group.name().clone_into(name);
        let link = extensions.get::<Arc<Link>>();
        let caller = match origin {
            Some(origin) => {
                origin.check_lineage(group)?;
                let believed = link.is_some_and(|link| self.believes(link));
                if believed { connection.on_behalf_of(origin.caller) } else { connection }
            }
            None => connection,
        };
        if link.is_some_and(|link| link.is_on_probation()) {
            return Err(Refused::no_place(self.port.links.count().0));
        }
        Ok(Asked { api: self, group, caller, metadata, deadline, message, answer_max })
    }

    /// Whether a node forwards the calls of its clients on this connection. Such a connection gets
    /// the memory share of many callers, so the claim is believed only if a peer is connected from
    /// the same address.
    fn believes(&self, link: &Link) -> bool {
        if !link.is_forwarding() && self.port.links.has_peer_at(link.remote) {
            link.forwards(self.port.forwarded_bytes_max());
        }
        link.is_forwarding()
    }
}

/// A call and its group, which answers it here or refers to the leader, to which it is then
/// forwarded.
struct Asked<'a, M> {
    api: &'a ClientApi,
    group: &'a GroupHandle,
    caller: Asker,
    metadata: MetadataMap,
    deadline: Deadline,
    message: M,
    /// The most bytes that the answer may have.
    answer_max: usize,
}

impl<M: prost::Message> Asked<'_, M> {
    /// Waits for the answer, until the caller's deadline.
    async fn meet<T>(&self, answer: impl Future<Output = T>) -> Result<T, Refused> {
        self.deadline.meet(self.group, answer).await
    }

    /// Handles the group's refusal. If it refused because another node leads, the call is forwarded
    /// there, once; a failure to reach that node, or a wrong address, is reported as this node's
    /// own refusal. If the caller has too many calls under way at that node, the caller is told who
    /// leads instead.
    async fn refused<T, F: Future<Output = Result<Response<T>, Status>>>(
        self,
        refusal: &Refusal,
        send: impl FnOnce(Leads, Request<M>) -> F,
    ) -> Result<Response<T>, Status> {
        let Self { api, group, caller, metadata, deadline, message, answer_max } = self;
        let bytes = CALL_BYTES + message.encoded_len() + answer_max;
        let leader = refusal.leader();
        if let Some(leader) = leader
            && let Some(why) = api.router.wrong_address(leader)
        {
            return Err(Refused::unreachable(leader, group.name(), &why, false).into_status());
        }
        let way = |leader| api.forward.to(leader, &metadata, group, caller, bytes);
        let onward = leader.and_then(way);
        let Some(Onward { client, leader, origin, _place }) = onward else {
            return Err(Refused::by_group(refusal, group.name(), &api.router).into_status());
        };
        let call = send(client, origin.request(message, deadline.left()));
        match deadline.meet(group, call).await? {
            Ok(response) => {
                let mut response = Response::new(response.into_inner());
                response.metadata_mut().insert(LEADER, leader.address);
                Ok(response)
            }
            Err(status) => Err(forward::failed(&status, leader.node, group.name())),
        }
    }
}

#[tonic::async_trait]
impl Lockstep for ClientApi {
    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        let group = asked.group;
        match asked.meet(group.open_session(nonce_of(asked.message.nonce))).await? {
            Ok(Answer::Opened(session)) => Ok(Response::new(wire::OpenSessionResponse { session })),
            Ok(Answer::Rejected(full @ Rejection::TooManySessions)) => {
                Err(Refused::sessions_full(group.name(), &full).into())
            }
            Ok(other) => Err(mismatch(group, &other)),
            Err(refusal) => {
                let send = |mut leader: Leads, call| async move { leader.open_session(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    async fn close_session(
        &self,
        request: Request<wire::CloseSessionRequest>,
    ) -> Result<Response<wire::CloseSessionResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        match asked.meet(asked.group.close_session(asked.message.session)).await? {
            Ok(_closed) => Ok(Response::new(wire::CloseSessionResponse {})),
            Err(refusal) => {
                let send =
                    |mut leader: Leads, call| async move { leader.close_session(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        let (group, message) = (asked.group, &asked.message);
        check_command(&message.command)?;
        check_sequence(message.session, message.sequence)?;
        let call = Call {
            session: message.session,
            sequence: message.sequence,
            lowest_unanswered: message.lowest_unanswered,
            payload: message.command.clone(),
        };
        let answer = group.submit(call, message.relief);
        let answer = match answer {
            Ok(receiver) => asked
                .meet(receiver)
                .await?
                .map_err(|_gone| Refused::cut_off(group.name(), &self.router))?,
            Err(refusal) => Err(refusal),
        };
        match answer {
            Ok(answer) => {
                let outcome = outcome(answer).map_err(|other| mismatch(group, &other))?;
                Ok(Response::new(wire::ApplyResponse { outcome: Some(outcome) }))
            }
            Err(refusal) => {
                let send = |mut leader: Leads, call| async move { leader.apply(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    type ApplyStreamStream = ApplyStream;

    async fn apply_stream(
        &self,
        request: Request<Streaming<wire::ApplyStreamRequest>>,
    ) -> Result<Response<ApplyStream>, Status> {
        let link = request.extensions().get::<Arc<Link>>().expect("every call carries its link");
        let share = Arc::clone(&link.share);
        Ok(Response::new(ApplyStream::new(
            request.into_inner(),
            share,
            self.router.clone(),
            self.closing.clone(),
            self.stopped.clone(),
        )))
    }

    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let link = request.extensions().get::<Arc<Link>>().expect("every call carries its link");
        let link = Arc::clone(link);
        if link.is_on_probation() {
            return Err(Refused::no_place(self.port.links.count().0).into());
        }
        let wire::WatchRequest { group, topic_prefix, start } = request.into_inner();
        let group = self.open_group(&group)?.clone();
        let router = self.router.clone();
        let watcher = Watcher::new(group, router, topic_prefix, start, self.closing.clone())?;
        Ok(Response::new(WatchStream::new(watcher.placed(&self.port, &link)?)))
    }

    async fn query(
        &self,
        request: Request<wire::QueryRequest>,
    ) -> Result<Response<wire::QueryResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::QUERY_ANSWER_BYTES_MAX)?;
        let (group, message) = (asked.group, &asked.message);
        let limit = limits::COMMAND_BYTES_MAX;
        if message.request.len() > limit {
            return Err(Refused::too_large("query", message.request.len(), limit).into());
        }
        let asking = group.query_by(asked.caller, message.request.clone(), !message.local);
        match asked.meet(asking).await? {
            Ok(answer) => Ok(Response::new(query_response(answer))),
            Err(refusal) => {
                let send = |mut leader: Leads, call| async move { leader.query(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let name = request.into_inner().group;
        let groups: Vec<&GroupHandle> =
            if name.is_empty() { self.router.groups().collect() } else { vec![self.group(&name)?] };
        // The status must reflect what clients were answered just before. A group that is too slow
        // shows its last report.
        let freshen = async {
            for group in &groups {
                group.freshen().await;
            }
        };
        let _ = tokio::time::timeout(FRESH_MAX, freshen).await;
        Ok(Response::new(self.status.status(&self.router, groups.into_iter())))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointRequest>,
    ) -> Result<Response<wire::CheckpointResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        match asked.meet(asked.group.checkpoint()).await? {
            Ok(index) => Ok(Response::new(wire::CheckpointResponse { index })),
            Err(refusal) => {
                let send = |mut leader: Leads, call| async move { leader.checkpoint(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    async fn order(
        &self,
        request: Request<wire::OrderRequest>,
    ) -> Result<Response<wire::OrderResponse>, Status> {
        let order = orders::order(request.get_ref().clone()).map_err(Refused::malformed)?;
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        match asked.meet(asked.group.order(order)).await? {
            Ok(index) => Ok(Response::new(wire::OrderResponse { index })),
            Err(refusal) => {
                let send = |mut leader: Leads, call| async move { leader.order(call).await };
                asked.refused(&refusal, send).await
            }
        }
    }

    async fn repair(
        &self,
        request: Request<wire::RepairRequest>,
    ) -> Result<Response<wire::RepairResponse>, Status> {
        let asked = self.asked(request, |m| &mut m.group, limits::OUTCOME_BYTES_MAX)?;
        match asked.meet(asked.group.repair()).await? {
            Ok(index) => Ok(Response::new(wire::RepairResponse { index })),
            Err(refusal) => {
                let name = asked.group.name();
                Err(Refused::by_group(&refusal, name, &self.router).into_status())
            }
        }
    }

    async fn stage_module(
        &self,
        request: Request<wire::StageModuleRequest>,
    ) -> Result<Response<wire::StageModuleResponse>, Status> {
        let link = request.extensions().get::<Arc<Link>>().expect("every call carries its link");
        if link.is_on_probation() {
            return Err(Refused::no_place(self.port.links.count().0).into());
        }
        let staged = modules::stage(&self.modules, &self.router, request.into_inner()).await;
        Ok(Response::new(staged.map_err(Refused::malformed)?))
    }

    async fn read_module(
        &self,
        request: Request<wire::ReadModuleRequest>,
    ) -> Result<Response<wire::ReadModuleResponse>, Status> {
        let read = modules::read(&self.modules, request.into_inner()).await;
        Ok(Response::new(read.map_err(Refused::malformed)?))
    }

    async fn fault(
        &self,
        request: Request<wire::FaultRequest>,
    ) -> Result<Response<wire::FaultResponse>, Status> {
        let wire::FaultRequest { group, commands } = request.into_inner();
        Ok(Response::new(orders::fault(self.group(&group)?, commands).await))
    }
}

/// Converts a replicated answer to a command into a message; `Err` returns an answer to another
/// kind of call.
pub(super) fn outcome(answer: Answer) -> Result<wire::apply_response::Outcome, Answer> {
    match answer {
        Answer::Ok(bytes) => Ok(wire::apply_response::Outcome::Ok(bytes)),
        Answer::Rejected(rejection) => {
            Ok(wire::apply_response::Outcome::Rejected(rejection_to_wire(rejection)))
        }
        Answer::Opened(_) => Err(answer),
    }
}

pub(super) fn rejection_to_wire(rejection: Rejection) -> wire::Rejection {
    use wire::rejection::Kind;
    let text = |rejection: &Rejection| Bytes::from(rejection.to_string());
    let (kind, message) = match rejection {
        Rejection::Guest(message) => (Kind::Guest, message),
        Rejection::SessionExpired => (Kind::SessionExpired, text(&rejection)),
        Rejection::AnswerTooLarge { .. } | Rejection::AnswerNotKept { .. } => {
            (Kind::AnswerTooLarge, text(&rejection))
        }
        Rejection::SessionFull | Rejection::TooManySessions => {
            (Kind::SessionFull, text(&rejection))
        }
        Rejection::Skipped => (Kind::Skipped, text(&rejection)),
        Rejection::Frozen => (Kind::Frozen, text(&rejection)),
    };
    wire::Rejection { kind: kind.into(), message }
}

fn query_response(answer: QueryAnswer) -> wire::QueryResponse {
    use wire::query_response::Answer;
    let QueryAnswer { result, applied, halted } = answer;
    let answer = match result {
        Ok(bytes) => Answer::Ok(bytes),
        Err(message) => Answer::Rejected(message),
    };
    let halted = halted.map(|HaltedAt { entry, cause }| wire::Halted { entry, cause });
    wire::QueryResponse { answer: Some(answer), applied_index: applied, halted }
}

fn mismatch(group: &GroupHandle, answer: &Answer) -> Status {
    Status::internal(format!(
        "group \"{}\" gave the answer to another kind of call: {answer:?}",
        group.name()
    ))
}

/// When the caller stops waiting; `None` if it waits forever.
#[derive(Clone, Copy)]
struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline in `grpc-timeout`, moved a little earlier: at the deadline itself, the server
    /// would end the call before this node could send a refusal.
    fn of(metadata: &MetadataMap) -> Self {
        const EARLIER: Duration = Duration::from_millis(5);
        let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
        let timeout = timeout.and_then(parse_timeout);
        Self(timeout.and_then(|t| Instant::now().checked_add(t.saturating_sub(EARLIER))))
    }

    fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    async fn meet<T>(
        self,
        group: &GroupHandle,
        work: impl Future<Output = T>,
    ) -> Result<T, Refused> {
        match self.0 {
            None => Ok(work.await),
            Some(at) => tokio::time::timeout_at(at.into(), work)
                .await
                .map_err(|_elapsed| Refused::deadline(group.name())),
        }
    }
}

/// The nonce that makes a session's id unique; drawn here if the client drew none.
fn nonce_of(drawn: u64) -> u64 {
    match drawn {
        0 => getrandom::u64().expect("the system provides randomness"),
        drawn => drawn,
    }
}

/// Parses `grpc-timeout`: at most eight digits and a unit.
pub(super) fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _unknown => None,
    }
}

//! The one port of a node and everything that is offered on it.
//!
//! - The listener is bound by the caller, so that "port in use" is its error and a test may take
//!   port 0.
//! - Health is answered from the first moment of a start; whatever else is asked is told
//!   `starting` until the groups run.
//! - `readiness`, `lockstep.v1.Lockstep` and the whole server are `SERVING` while any group takes
//!   requests and has a leader; `liveness` is as long as the process answers at all.
//! - A shutdown stops accepting at once and waits for calls under way, but not for long.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::group::GroupHandle;
use crate::router::Router;
use crate::rpc::client_api::ClientApi;
use crate::rpc::peer_api::{PeerApi, SnapshotInbox};
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::{Port, PortState};
use crate::rpc::proto::DESCRIPTORS;
use crate::rpc::proto::client::lockstep_server::LockstepServer;
use crate::rpc::proto::peer::peer_server::PeerServer;
use crate::rpc::{HelloInfo, SHUTDOWN_MAX};

/// The names that health checks ask for: of the service, and of what probes want to know.
const SERVICE: &str = "lockstep.v1.Lockstep";
const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";
/// How often health looks at what no change of state tells.
const LOOK: Duration = Duration::from_secs(1);

/// What [`Front::offer`] offers, and to whom.
pub struct Services {
    pub router: Router,
    /// Takes snapshots that peers send.
    pub inbox: Arc<dyn SnapshotInbox>,
    pub hello: HelloInfo,
    /// Its errors are shown in the status.
    pub transport: Arc<GrpcTransport>,
    /// True once clients are to be turned away; peers are served on.
    pub closing: watch::Receiver<bool>,
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A node's port, from the first moment of its start.
pub struct Front {
    port: Arc<Port>,
    early: Routes,
    reporter: HealthReporter,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Front {
    /// Answers health and reflection, and tells all others that the node starts.
    pub async fn open(listener: TcpListener, state: Arc<PortState>) -> Result<Self, ServeError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        for service in ["", SERVICE, READINESS] {
            reporter.set_service_status(service, ServingStatus::NotServing).await;
        }
        reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let early = Routes::new(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let port = Port::new(early.clone(), state);
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(Arc::clone(&port).run(listener, stopped));
        Ok(Self { port, early, reporter, stop, accepting })
    }

    /// From now on everything is offered.
    pub fn offer(&self, services: Services) {
        let Services { router, inbox, hello, transport, closing } = services;
        let stopped = self.stop.subscribe();
        let client_api = ClientApi::new(
            router.clone(),
            &hello,
            Arc::clone(&transport),
            closing.clone(),
            stopped.clone(),
        );
        let peer_api = PeerApi::new(router.clone(), hello, inbox, stopped.clone());
        let routes = self
            .early
            .clone()
            .add_service(
                LockstepServer::new(client_api)
                    .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX),
            )
            .add_service(
                PeerServer::new(peer_api)
                    .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX),
            );
        self.port.offer(routes);
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = until(stopped) => {}
                never = watch_health(&router, closing, &reporter) => match never {},
            }
        });
    }

    /// Takes no further connection, and waits at most [`SHUTDOWN_MAX`] for calls under way.
    pub async fn close(self) {
        // Streams that would never end by themselves see this and end.
        self.stop.send_replace(true);
        let mut accepting = self.accepting;
        if tokio::time::timeout(SHUTDOWN_MAX, &mut accepting).await.is_err() {
            accepting.abort();
        }
    }
}

/// Ready once `stopped` says so, or nobody can say it any more.
pub(super) async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn watch_health(
    router: &Router,
    mut closing: watch::Receiver<bool>,
    reporter: &HealthReporter,
) -> std::convert::Infallible {
    let mut states: Vec<_> = router.groups().map(|group| group.watch()).collect();
    loop {
        states.iter_mut().for_each(|state| drop(state.borrow_and_update()));
        let ready = is_ready(router, *closing.borrow_and_update());
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE, READINESS] {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            () = any_change(&mut states) => {}
            Ok(()) = closing.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Whether a node that has started is to be asked at all.
pub(crate) fn is_ready(router: &Router, closing: bool) -> bool {
    !closing && router.groups().any(serves)
}

/// Whether a group takes requests, as far as this node can tell.
fn serves(group: &GroupHandle) -> bool {
    let takes = group.watch().borrow().query_refusal().is_none();
    takes && group.report().status.leaderless_ticks * limits::TICK_MS <= limits::LEADERLESS_MS
}

/// Ready when any of the states changed. A state whose owner is gone changes no more.
async fn any_change(states: &mut [watch::Receiver<lockstep_core::group::ReplicaState>]) {
    let mut waits: Vec<_> = states.iter_mut().map(|state| Box::pin(state.changed())).collect();
    std::future::poll_fn(|cx| {
        let mut ready = false;
        waits.retain_mut(|wait| match wait.as_mut().poll(cx) {
            std::task::Poll::Ready(Ok(())) => {
                ready = true;
                false
            }
            std::task::Poll::Ready(Err(_)) => false,
            std::task::Poll::Pending => true,
        });
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

//! The one port of a node and all services on it.
//!
//! - The listener is bound outside, so that "port in use" is an error there and a test may take
//!   port 0.
//! - Health and reflection are answered from the first moment of a start; every other call is
//!   refused as `starting` until the groups run.
//! - The health of `readiness`, of `lockstep.v1.Lockstep` and of the whole server is `SERVING`
//!   while any group takes requests and has a leader; that of `liveness` for as long as the process
//!   answers at all.
//! - A shutdown stops accepting connections at once and waits for calls under way, but not for
//!   long.

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
use crate::modules::ModuleStore;
use crate::router::Router;
use crate::rpc::client_api::ClientApi;
use crate::rpc::peer_api::{PeerApi, SnapshotInbox};
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::{Port, PortState};
use crate::rpc::proto::DESCRIPTORS;
use crate::rpc::proto::client::lockstep_server::LockstepServer;
use crate::rpc::proto::peer::peer_server::PeerServer;
use crate::rpc::{HelloInfo, SHUTDOWN_MAX};

/// The names that health checks may ask for: the client API, and the two that probes use.
const SERVICE: &str = "lockstep.v1.Lockstep";
const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";
/// How often health is computed anew without a change of state: leaders come and go without one.
const LOOK: Duration = Duration::from_secs(1);

/// What the services that [`Front::offer`] opens need.
pub struct Services {
    pub router: Router,
    pub modules: Arc<ModuleStore>,
    /// Receives the snapshots that peers send.
    pub inbox: Arc<dyn SnapshotInbox>,
    pub hello: HelloInfo,
    /// The transport to the peers, whose errors the status shows.
    pub transport: Arc<GrpcTransport>,
    /// True once clients are to be refused; peers are still served.
    pub closing: watch::Receiver<bool>,
}

/// Why the port cannot be served.
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
    /// Opens the port: health and reflection are answered, other calls are told that the node is
    /// starting.
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

    /// Serves clients and peers as well from now on.
    pub fn offer(&self, services: Services) {
        let Services { router, modules, inbox, hello, transport, closing } = services;
        let stopped = self.stop.subscribe();
        let client_api = ClientApi::new(
            router.clone(),
            modules,
            &hello,
            Arc::clone(&transport),
            Arc::clone(&self.port.state),
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

    /// Accepts no further connection, and waits at most [`SHUTDOWN_MAX`] for calls under way.
    pub async fn close(self) {
        // Streams that would never end on their own watch this and end.
        self.stop.send_replace(true);
        let mut accepting = self.accepting;
        if tokio::time::timeout(SHUTDOWN_MAX, &mut accepting).await.is_err() {
            accepting.abort();
        }
    }
}

/// Ready once `stopped` is true or its sender was dropped.
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

/// Whether clients should send requests to a node that has started.
pub(crate) fn is_ready(router: &Router, closing: bool) -> bool {
    !closing && router.groups().any(serves)
}

/// Whether a group takes requests and has a leader, as far as this node can tell.
fn serves(group: &GroupHandle) -> bool {
    let takes = group.watch().borrow().query_refusal().is_none();
    takes && group.report().status.leaderless_ticks * limits::TICK_MS <= limits::LEADERLESS_MS
}

/// Ready when any of the states changed. A state whose owner is gone never changes again.
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

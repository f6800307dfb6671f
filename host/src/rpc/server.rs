//! The one port of a node and everything that is offered on it.
//!
//! - The listener is bound by the caller, so that "port in use" is its error and a test may take
//!   port 0.
//! - `lockstep.v1.Lockstep` is `SERVING` to health checks while any group takes requests.
//! - A shutdown stops accepting at once and waits for calls under way, but not for long.

use std::future::Future;
use std::sync::Arc;

use lockstep_core::limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::router::Router;
use crate::rpc::client_api::ClientApi;
use crate::rpc::peer_api::{PeerApi, SnapshotInbox};
use crate::rpc::peer_link::GrpcTransport;
use crate::rpc::port::{Port, PortState};
use crate::rpc::proto::DESCRIPTORS;
use crate::rpc::proto::client::lockstep_server::LockstepServer;
use crate::rpc::proto::peer::peer_server::PeerServer;
use crate::rpc::{HelloInfo, SHUTDOWN_MAX};

/// The name that health checks ask for.
const SERVICE: &str = "lockstep.v1.Lockstep";

/// What [`serve`] offers, and to whom.
pub struct Services {
    pub router: Router,
    /// Takes snapshots that peers send.
    pub inbox: Arc<dyn SnapshotInbox>,
    pub hello: HelloInfo,
    /// Its errors are shown in the status.
    pub transport: Arc<GrpcTransport>,
    /// True once clients are to be turned away; peers are served on.
    pub closing: watch::Receiver<bool>,
    pub port: Arc<PortState>,
}

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves until `shutdown` is ready, then at most [`SHUTDOWN_MAX`] longer.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let Services { router, inbox, hello, transport, closing, port } = services;
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (stop, stopped) = watch::channel(false);
    let client_api = ClientApi::new(
        router.clone(),
        &hello,
        Arc::clone(&transport),
        closing.clone(),
        stopped.clone(),
    );
    let peer_api = PeerApi::new(router.clone(), hello, inbox, stopped.clone());
    let routes = Routes::new(health)
        .add_service(reflection)
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
    let serving = Port::new(routes, port).run(listener, stopped);
    let told = async {
        shutdown.await;
        // Streams that would never end by themselves see this and end.
        let _ = stop.send(true);
        tokio::time::sleep(SHUTDOWN_MAX).await;
    };
    tokio::select! {
        () = serving => Ok(()),
        () = told => Ok(()),
        never = watch_health(&router, closing, &reporter) => match never {},
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
    use tonic_health::ServingStatus;
    let mut states: Vec<_> = router.groups().map(|group| group.watch()).collect();
    loop {
        let serves = !*closing.borrow_and_update()
            && states.iter_mut().any(|state| state.borrow_and_update().query_refusal().is_none());
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(SERVICE, status).await;
        reporter.set_service_status("", status).await;
        tokio::select! {
            () = any_change(&mut states) => {}
            Ok(()) = closing.changed() => {}
        }
    }
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

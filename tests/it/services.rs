//! The services that every gRPC tool expects: health and reflection.

use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use lockstep_tests::cluster::Cluster;
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, started_node};

const SERVICE: &str = "lockstep.v1.Lockstep";

#[tokio::test]
async fn health_and_reflection_answer() {
    let mut cluster = started_node(&[]).await;
    let address = format!("http://{}", cluster.address(1));
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let channel = channel.expect("it listens");

    let mut health = HealthClient::new(channel.clone());
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("it is answered").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let stream = tokio_stream::once(request);
    let answer = reflection.server_reflection_info(stream).await.expect("it is answered");
    let first = answer.into_inner().message().await.expect("a message").expect("at least one");
    match first.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            let names: Vec<String> = list.service.into_iter().map(|one| one.name).collect();
            assert!(names.iter().any(|name| name == SERVICE), "{names:?}");
            assert!(names.iter().any(|name| name == "grpc.health.v1.Health"), "{names:?}");
        }
        other => panic!("the services were listed as {other:?}"),
    }
    cluster.stop_all().await.expect("it stops");
}

/// A node whose only group is parked does not serve, and says so to whoever balances load.
#[tokio::test]
async fn a_parked_node_is_not_serving() {
    let mut cluster = started_node(&["set a 1"]).await;
    let client = cluster.client().expect("its address is one");
    let fault = client.apply("fault purpose").await;
    assert!(fault.is_err(), "{fault:?}");
    let parked = async |cluster: &Cluster| {
        cluster.group(1, GROUP).await.filter(|status| status.state == "parked")
    };
    cluster.wait_for("the group to park", PATIENCE, parked).await.expect("it parks");
    let address = format!("http://{}", cluster.address(1));
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let mut health = HealthClient::new(channel.expect("it listens"));
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("it is answered").into_inner();
        assert_eq!(answer.status(), ServingStatus::NotServing, "{service:?}");
    }
    cluster.stop_all().await.expect("it stops");
}

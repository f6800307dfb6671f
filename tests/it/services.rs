//! The services that every gRPC tool expects: health and reflection.

use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use lockstep_tests::cluster::Cluster;
use lockstep_tests::observe::PATIENCE;

use crate::solo::{GROUP, started_node};

const SERVICE: &str = "lockstep.v1.Lockstep";

async fn check(health: &mut HealthClient<Channel>, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    health.check(request).await.expect("it is answered").into_inner().status()
}

fn assert_lists(services: &str) {
    for name in [SERVICE, "grpc.health.v1.Health"] {
        assert!(services.contains(&format!("{name:?}")), "{name} is not listed: {services}");
    }
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let mut cluster = started_node(&[]).await;
    let address = format!("http://{}", cluster.address(1));
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let channel = channel.expect("it listens");

    let mut health = HealthClient::new(channel.clone());
    for service in ["", SERVICE, "readiness", "liveness"] {
        assert_eq!(check(&mut health, service).await, ServingStatus::Serving, "{service:?}");
    }

    let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let stream = tokio_stream::once(v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    });
    let answer = reflection.server_reflection_info(stream).await.expect("v1 is answered");
    let first = answer.into_inner().message().await.expect("a message").expect("at least one");
    assert_lists(&format!("{:?}", first.message_response));

    let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = tokio_stream::once(v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    });
    let answer = reflection.server_reflection_info(stream).await.expect("v1alpha is answered");
    let first = answer.into_inner().message().await.expect("a message").expect("at least one");
    assert_lists(&format!("{:?}", first.message_response));
    cluster.stop_all().await.expect("it stops");
}

/// A node whose only group is halted tells load balancers that it does not serve.
#[tokio::test]
async fn a_halted_node_is_not_serving() {
    let mut cluster = started_node(&["set a 1"]).await;
    let client = cluster.client().expect("its address is valid");
    let fault = client.apply("fault purpose").await;
    assert!(fault.is_err(), "{fault:?}");
    let halted = async |cluster: &Cluster| {
        cluster.group(1, GROUP).await.filter(|status| status.state == "halted")
    };
    cluster.wait_for("the group to halt", PATIENCE, halted).await.expect("it halts");
    let address = format!("http://{}", cluster.address(1));
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let mut health = HealthClient::new(channel.expect("it listens"));
    for service in ["", SERVICE, "readiness"] {
        assert_eq!(check(&mut health, service).await, ServingStatus::NotServing, "{service:?}");
    }
    assert_eq!(check(&mut health, "liveness").await, ServingStatus::Serving, "it need not restart");
    cluster.stop_all().await.expect("it stops");
}

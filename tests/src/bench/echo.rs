//! A process that echoes each message, which shows the most that any server over gRPC can do on
//! this machine.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use self::wire::Message;
use self::wire::echo_client::EchoClient;
use self::wire::echo_server::EchoServer;
use super::load::{self, Keys, Ready, Tally, VALUE_BYTES, Window, ready};
use super::system::{PATIENCE, POLL};
use crate::process::Process;

#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod wire {
    include!("generated/lockstep.bench.rs");
}

/// The argument that makes this program the echo server: `bench echo-server HOST:PORT`.
pub const SERVE: &str = "echo-server";

/// The process and its address.
pub(crate) struct Echo {
    process: Process,
    address: String,
}

/// Serves until it is killed.
pub async fn serve(address: &str) -> Result<()> {
    let address = address.parse().with_context(|| format!("{address} is not an address"))?;
    let served = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .add_service(EchoServer::new(Server256))
        .serve(address);
    served.await.with_context(|| format!("serving at {address}"))
}

struct Server256;

#[tonic::async_trait]
impl wire::echo_server::Echo for Server256 {
    type FlowStream = ReceiverStream<Result<Message, Status>>;

    async fn call(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn flow(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Self::FlowStream>, Status> {
        let mut messages = request.into_inner();
        let (answers, body) = mpsc::channel(256);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if answers.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(body)))
    }
}

impl Echo {
    /// Starts this program once more, as the server.
    pub(crate) fn start(dir: &Path, host: &str) -> Result<Self> {
        let address = format!("{host}:7501");
        let this = std::env::current_exe().context("finding out where this program is")?;
        let process = Process::start(&this, &[SERVE, &address], &dir.join("echo.log"))?;
        Ok(Self { process, address })
    }

    pub(crate) fn processes(&self) -> &[Process] {
        std::slice::from_ref(&self.process)
    }

    pub(crate) async fn wait(&self) -> Result<()> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if load::dial(&self.address, 1).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("the echo server did not start within {PATIENCE:?}")
    }

    pub(crate) async fn clients(&self, count: usize, connections: usize) -> Result<Vec<Ready>> {
        let channels = load::dial(&self.address, connections).await?;
        let client = |number: usize| {
            let client = EchoClient::new(channels[number % connections].clone());
            ready(move |window| call(client, Keys::of_client(number), window))
        };
        Ok((0..count).map(client).collect())
    }

    pub(crate) async fn streams(&self, count: usize, in_flight: usize) -> Result<Vec<Ready>> {
        let channels = load::dial(&self.address, count).await?.into_iter();
        let client = |channel: Channel| {
            ready(move |window| flow(EchoClient::new(channel), in_flight, window))
        };
        Ok(channels.map(client).collect())
    }
}

async fn call(mut client: EchoClient<Channel>, mut keys: Keys, window: Window) -> Tally {
    let mut tally = Tally::default();
    while let Some(since) = window.start() {
        let values = vec![Bytes::copy_from_slice(keys.value())];
        let answer = client.call(Message { values }).await;
        tally.ended(&window, since, answer).await;
    }
    tally
}

/// Keeps `in_flight` values under way: sends each answer back at once.
async fn flow(mut client: EchoClient<Channel>, in_flight: usize, window: Window) -> Tally {
    let mut tally = Tally::default();
    let (outgoing, body) = mpsc::channel(in_flight);
    let value = Bytes::from_static(&[b'v'; VALUE_BYTES]);
    // Eight messages take turns, so that neither side ever waits for the other.
    for _ in 0..8 {
        let message = Message { values: vec![value.clone(); in_flight / 8] };
        outgoing.send(message).await.expect("the receiver is still here");
    }
    let mut sent = VecDeque::from([Instant::now(); 8]);
    let mut answers = match client.flow(ReceiverStream::new(body)).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            tally.failed(status).await;
            return tally;
        }
    };
    while let Ok(Some(message)) = answers.message().await {
        let since = sent.pop_front().expect("an answer follows its message");
        for _ in &message.values {
            tally.answered(&window, since);
        }
        let Some(now) = window.start() else { break };
        sent.push_back(now);
        if outgoing.send(message).await.is_err() {
            break;
        }
    }
    tally
}

//! `GET /metrics` on a port of its own.
//!
//! Scrapers are few, and each disconnects after its request. So only a few connections are served
//! at a time, each for a limited time: idle connections cannot exhaust the descriptors that the log
//! and clients need.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::NodeMetrics;
use super::export::classic;

/// The media type of [`NodeMetrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of Prometheus' older text format, as [`classic`] makes it.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections served at a time; others wait in the system's queue.
pub(crate) const CONNECTIONS: usize = 16;
/// How long a connection may last.
const LIFE_MAX: Duration = Duration::from_secs(30);

/// Serves metrics until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<NodeMetrics>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let text = move |headers: HeaderMap| async move {
        let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        if accepts.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text())
        } else {
            ([(CONTENT_TYPE, CLASSIC)], classic(&metrics.text()))
        }
    };
    let routes = Router::new().route("/metrics", get(text));
    axum::serve(Bounded::new(listener, LIFE_MAX), routes).with_graceful_shutdown(shutdown).await
}

/// A listener that bounds the number of open connections and the lifetime of each.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    life: Duration,
}

/// An accepted connection: it holds its place until it ends, and fails once its time is over.
struct Held {
    socket: TcpStream,
    over: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Bounded {
    fn new(listener: TcpListener, life: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS)), life }
    }
}

impl Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("the places are never closed");
        // If the process has no free descriptor, the listener's own `accept` waits a second.
        let (socket, remote) = Listener::accept(&mut self.listener).await;
        let over = Box::pin(tokio::time::sleep(self.life));
        (Held { socket, over, _place: place }, remote)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Held {
    /// The socket, or an error once the connection's time is over.
    fn socket(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.socket)),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket(cx)?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Idle connections are closed, which makes places for waiting ones.
    #[tokio::test]
    async fn who_does_not_ask_keeps_no_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let routes = Router::new().route("/metrics", get(|| async { "figures" }));
        let bounded = Bounded::new(listener, Duration::from_millis(300));
        let served = tokio::spawn(axum::serve(bounded, routes).into_future());
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let mut asking = TcpStream::connect(address).await.expect("it waits in the queue");
        let request = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
        asking.write_all(request).await.expect("it is sent");
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.expect("it is answered");
        assert!(answer.ends_with("figures"), "{answer}");
        for mut silent in silent {
            assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0, "it was closed");
        }
        served.abort();
    }
}

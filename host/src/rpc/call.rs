//! One call on a connection, from its headers to the last byte of its answer.
//!
//! - A caller that goes away ends its call: the work for it is dropped at once, at whatever stage.
//! - An answer is charged to its connection until it has left this process. A caller that does not
//!   read its answer is cut off: each chunk must be read within the port's patience, extended in
//!   proportion to its size ([`patience_for`]); while the connection holds more memory than it may,
//!   within a tenth of that time.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::Body as _;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::server::TcpConnectInfo;

use crate::budget::Charge;
use crate::rpc::body::{Method, RequestBody};
use crate::rpc::client_api::parse_timeout;
use crate::rpc::forward::is_forwarded;
use crate::rpc::links::{CallKind, Link};
use crate::rpc::port::{Port, patience_for};
use crate::rpc::refuse::Refused;
use crate::rpc::requests::Counted;

/// Memory that a call holds in addition to its messages, for its task, headers and buffers, bytes.
pub(super) const CALL_BYTES: usize = 8 << 10;

/// The caller is gone, or was cut off.
struct Gone;

/// A chunk of an answer and its charge: both are dropped once the chunk has left this process.
struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Serves one call to its end.
pub(super) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    port: Arc<Port>,
    link: Arc<Link>,
    info: TcpConnectInfo,
) {
    let method = Method::of(request.uri().path());
    let mut counted = Counted::begin(&port.state.requests, request.uri().path());
    let _open = link.begin(method.kind);
    let is_nodes = method.peers || is_forwarded(request.headers());
    let admitted = admit(&mut respond, is_nodes, &port, &link, &mut counted);
    let Some(_charge) = admitted else { return };
    let answer = {
        let answering = dispatch(request, method, &port, &link, info);
        let mut answering = pin!(answering);
        let answered = std::future::poll_fn(|cx| {
            if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            respond.poll_reset(cx).map(|_reason| None)
        });
        answered.await
    };
    let Some(mut answer) = answer else { return };
    if method.kind == CallKind::Unary && link.share.is_over() {
        answer = Refused::unread().into_status().into_http();
    }
    link.touch();
    if let Err(Gone) = send(answer, respond, &port, &link, &mut counted).await {
        tracing::debug!(remote = %link.remote, "a caller did not read its answer to the end");
    }
}

/// Admits a call and returns the charge for it; otherwise answers the caller with a refusal. On a
/// connection on probation only the calls of nodes are served. A call that claims to be forwarded
/// by a node is admitted here; the claim is checked where the call is answered.
fn admit(
    respond: &mut SendResponse<Bytes>,
    is_nodes: bool,
    port: &Port,
    link: &Link,
    counted: &mut Counted,
) -> Option<Charge> {
    let refused = if link.is_on_probation() && !is_nodes {
        Refused::no_place(port.state.links.count().0)
    } else if let Some(charge) = link.share.take(CALL_BYTES) {
        return Some(charge);
    } else {
        Refused::no_memory(CALL_BYTES)
    };
    let (head, ()) = refused.into_status().into_http::<()>().into_parts();
    counted.told(&head.headers);
    // A caller that is gone needs no answer.
    let _ = respond.send_response(Response::from_parts(head, ()), true);
    None
}

async fn dispatch(
    request: Request<RecvStream>,
    method: Method,
    port: &Port,
    link: &Arc<Link>,
    info: TcpConnectInfo,
) -> Response<Body> {
    let timeout = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let timeout = timeout.and_then(parse_timeout);
    let (patience, link) = (port.state.patience, Arc::clone(link));
    let mut request = request.map(|source| {
        let own = Arc::clone(&link);
        Body::new(RequestBody::new(source, own, method, patience, timeout))
    });
    request.extensions_mut().insert(info);
    request.extensions_mut().insert(link);
    let Some(mut routes) = port.routes(request.uri().path()) else {
        return Refused::starting().into_status().into_http();
    };
    let ready = std::future::poll_fn(|cx| Service::<Request<Body>>::poll_ready(&mut routes, cx));
    let Ok(()) = ready.await;
    let Ok(response) = routes.call(request).await;
    response
}

/// Sends an answer as fast as its caller reads it.
async fn send(
    answer: Response<Body>,
    mut respond: SendResponse<Bytes>,
    port: &Port,
    link: &Link,
    counted: &mut Counted,
) -> Result<(), Gone> {
    let (head, mut body) = answer.into_parts();
    let ends = body.is_end_stream();
    counted.told(&head.headers);
    let head = Response::from_parts(head, ());
    let mut sink = respond.send_response(head, ends).map_err(|_gone| Gone)?;
    if ends {
        return Ok(());
    }
    loop {
        let next = std::future::poll_fn(|cx| {
            if sink.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        match next.await? {
            None => return sink.send_data(Bytes::new(), true).map_err(|_gone| Gone),
            Some(Err(_status)) => {
                sink.send_reset(Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    let charge = link.share.owe(bytes.len());
                    let chunk = Bytes::from_owner(Charged { bytes, _charge: charge });
                    send_chunk(&mut sink, chunk, port, link).await?;
                    link.touch();
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    counted.told(&trailers);
                    return sink.send_trailers(trailers).map_err(|_gone| Gone);
                }
            },
        }
    }
}

async fn send_chunk(
    sink: &mut SendStream<Bytes>,
    mut chunk: Bytes,
    port: &Port,
    link: &Link,
) -> Result<(), Gone> {
    let patience = patience_for(port.state.patience, chunk.len());
    let mut since = None;
    while !chunk.is_empty() {
        sink.reserve_capacity(chunk.len());
        let mut capacity = sink.capacity();
        if capacity == 0 {
            let since = *since.get_or_insert_with(Instant::now);
            match taken(sink, link, since, patience).await {
                Some(granted) => capacity = granted?,
                None => {
                    port.state.cut_off.fetch_add(1, Ordering::Relaxed);
                    sink.send_reset(Reason::ENHANCE_YOUR_CALM);
                    return Err(Gone);
                }
            }
        }
        let part = chunk.split_to(capacity.min(chunk.len()));
        sink.send_data(part, false).map_err(|_gone| Gone)?;
    }
    Ok(())
}

/// Waits until the caller's flow-control window is open; `None` once `patience` has passed since
/// `since`, or a tenth of it while the connection holds more memory than it may.
async fn taken(
    sink: &mut SendStream<Bytes>,
    link: &Link,
    since: Instant,
    patience: Duration,
) -> Option<Result<usize, Gone>> {
    let hurry = patience / 10;
    loop {
        let most = if link.share.is_over() { hurry } else { patience };
        let left = most.saturating_sub(since.elapsed());
        match tokio::time::timeout(left.min(hurry), capacity(sink)).await {
            Ok(granted) => return Some(granted),
            Err(_elapsed) if left <= hurry => return None,
            Err(_elapsed) => {}
        }
    }
}

/// Waits until the caller's flow-control window is open, and returns how many bytes it takes.
async fn capacity(sink: &mut SendStream<Bytes>) -> Result<usize, Gone> {
    std::future::poll_fn(|cx| {
        if sink.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Gone));
        }
        match sink.poll_capacity(cx) {
            Poll::Ready(Some(Ok(0))) | Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(capacity))) => Poll::Ready(Ok(capacity)),
            Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Err(Gone)),
        }
    })
    .await
}

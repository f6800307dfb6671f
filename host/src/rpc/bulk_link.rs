//! Bulk channels over gRPC: each transfer has a connection of its own, so that no heartbeat waits
//! for a block to be sent.
//!
//! - [`open`] blocks until it has the sender's end. [`accept`] returns the receiver's end: a task
//!   reads its first frame, then a worker thread may block on it.
//! - At most [`BULK_FRAMES_MAX`] frames are queued between a worker and its connection, each way;
//!   the flow control of HTTP/2 and the credit of the protocol bound what is in flight beyond that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use lockstep_client::cause::why;
use lockstep_core::limits;
use lockstep_core::snapshot::chunk::{BulkReply, BulkRequest, STALL_TICKS};
use tokio::runtime::Handle;
use tokio_stream::Stream;
use tonic::{Request, Status, Streaming};

use crate::bulk::BulkChannel;
use crate::rpc::pipe::{self, BlockingReader, BlockingWriter, TaskReader, TaskWriter};
use crate::rpc::proto::peer as wire;
use crate::rpc::proto::peer::peer_client::PeerClient;
use crate::rpc::{BULK_FRAMES_MAX, VERSION_KEY, convert, peer_link};

/// How long a worker waits for a peer that accepts no frames: as long as the transfer protocol
/// waits for progress.
pub(super) const WRITE_TIMEOUT: Duration =
    Duration::from_millis(STALL_TICKS as u64 * limits::TICK_MS);

/// One end of a bulk channel.
pub(super) struct BulkLink<Out, In> {
    outgoing: BlockingWriter<Out>,
    incoming: BlockingReader<In>,
}

impl<Out, In> BulkChannel<Out, In> for BulkLink<Out, In> {
    fn send(&mut self, frame: Out) -> io::Result<()> {
        self.outgoing.write(frame, WRITE_TIMEOUT)
    }

    fn recv(&mut self, timeout: Duration) -> io::Result<Option<In>> {
        self.incoming.read(timeout)
    }
}

/// Opens a channel to the node at `address`, in a protocol version that it knows. Blocks: must not
/// be called on a thread of the runtime.
pub(super) fn open(
    runtime: &Handle,
    address: &str,
    version: u32,
) -> io::Result<BulkLink<BulkRequest, BulkReply>> {
    let (outgoing, requests) = pipe::outward(BULK_FRAMES_MAX);
    let (replies, incoming) = pipe::inward(BULK_FRAMES_MAX);
    let (opened, result) = std::sync::mpsc::sync_channel(1);
    let owned = address.to_owned();
    runtime.spawn(async move {
        let requests = Wire { source: requests, convert: convert::request_to_wire };
        match dial(&owned, version, requests).await {
            Ok(answers) => {
                let _ = opened.send(Ok(()));
                forward(answers, replies, convert::reply_from_wire).await;
            }
            Err(status) => {
                let _ = opened.send(Err(status));
            }
        }
    });
    let failed = |why: String| io::Error::other(format!("open bulk channel to {address}: {why}"));
    match result.recv_timeout(WRITE_TIMEOUT) {
        Ok(Ok(())) => Ok(BulkLink { outgoing, incoming }),
        Ok(Err(status)) => Err(failed(why(&status))),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// The receiver's end of a channel that a peer opened, before a worker thread takes it over.
pub(super) struct Opened {
    requests: Streaming<wire::BulkFrame>,
    outgoing: BlockingWriter<BulkReply>,
}

/// Accepts a channel that a peer opened; the second value is the stream of replies to answer the
/// call with.
pub(super) fn accept(requests: Streaming<wire::BulkFrame>) -> (Opened, BulkReplies) {
    let (outgoing, replies) = pipe::outward(BULK_FRAMES_MAX);
    let replies = Wire { source: replies, convert: convert::reply_to_wire };
    (Opened { requests, outgoing }, BulkReplies(replies))
}

impl Opened {
    /// Waits for the first frame. If the channel ends before that, logs the reason and returns
    /// `None`.
    pub(super) async fn first(&mut self) -> Option<BulkRequest> {
        let why = match self.requests.message().await {
            Ok(Some(message)) => match convert::request_from_wire(message) {
                Ok(frame) => return Some(frame),
                Err(error) => error.to_string(),
            },
            Ok(None) => "the peer closed the channel".to_owned(),
            Err(status) => why(&status),
        };
        tracing::info!(why, "bulk channel ended before an offer came");
        None
    }

    /// Ends the channel with this reply.
    pub(super) fn refuse(mut self, reply: BulkReply) {
        // The first reply always fits the pipe, and a peer that is gone needs no reply.
        let _ = self.outgoing.write(reply, Duration::ZERO);
    }

    /// Turns the channel into the end on which a worker thread blocks.
    pub(super) fn into_channel(self) -> BulkLink<BulkReply, BulkRequest> {
        let (frames, incoming) = pipe::inward(BULK_FRAMES_MAX);
        tokio::spawn(forward(self.requests, frames, convert::request_from_wire));
        BulkLink { outgoing: self.outgoing, incoming }
    }
}

async fn dial(
    address: &str,
    version: u32,
    requests: Wire<BulkRequest, wire::BulkFrame>,
) -> Result<Streaming<wire::BulkAnswer>, Status> {
    let channel = peer_link::connect(address).await?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
    let mut request = Request::new(requests);
    request.metadata_mut().insert(VERSION_KEY, version.into());
    Ok(client.bulk(request).await?.into_inner())
}

/// Passes what arrives on to the worker, until the connection or the worker ends.
async fn forward<W, T>(
    mut source: Streaming<W>,
    mut sink: TaskWriter<T>,
    convert: fn(W) -> Result<T, convert::ConvertError>,
) {
    let end = loop {
        let next = tokio::select! {
            next = source.message() => next,
            () = sink.abandoned() => return,
        };
        match next {
            Ok(Some(message)) => match convert(message) {
                Ok(frame) => {
                    if !sink.write(frame).await {
                        return;
                    }
                }
                Err(error) => break Err(error.to_string()),
            },
            Ok(None) => break Ok(()),
            Err(status) => break Err(why(&status)),
        }
    };
    sink.finish(end);
}

/// The frames that a worker sends, converted to wire messages.
struct Wire<T, W> {
    source: TaskReader<T>,
    convert: fn(T) -> W,
}

impl<T, W> Stream for Wire<T, W> {
    type Item = W;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<W>> {
        self.source.poll_read(cx).map(|frame| frame.map(self.convert))
    }
}

/// The reply stream of an accepted channel.
pub(super) struct BulkReplies(Wire<BulkReply, wire::BulkAnswer>);

impl Stream for BulkReplies {
    type Item = Result<wire::BulkAnswer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx).map(|answer| answer.map(Ok))
    }
}

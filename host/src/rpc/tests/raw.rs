//! [`Raw`]: an HTTP/2 client that sends exactly the frames it is told to. It behaves as no library
//! would: bodies half sent, calls reset at once, windows that stay shut.
//!
//! `flush` sends what was queued, in one piece; while it reads, the client answers PING and
//! SETTINGS. It does not compress its headers, and does not decode the server's.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The types of HTTP/2 frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// The error code of a reset by a caller that gave up.
const CANCEL: u32 = 8;

pub(super) struct Raw {
    socket: TcpStream,
    next_stream: u32,
    queued: Vec<u8>,
}

/// A frame from the server.
#[derive(Debug)]
pub(super) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub(super) fn ends_stream(&self) -> bool {
        self.kind == RESET || matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

impl Raw {
    pub(super) async fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).await.expect("it listens");
        let queued = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut raw = Self { socket, next_stream: 1, queued };
        raw.frame(SETTINGS, 0, 0, &[]);
        raw
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a frame is short");
        self.queued.extend_from_slice(&length.to_be_bytes()[1..]);
        self.queued.extend_from_slice(&[kind, flags]);
        self.queued.extend_from_slice(&stream.to_be_bytes());
        self.queued.extend_from_slice(payload);
    }

    /// Queues the headers of a call: those that every gRPC call has, then `headers`.
    pub(super) fn open(&mut self, path: &str, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut block = Vec::new();
        let own = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        for (name, value) in own.iter().chain(headers) {
            // HPACK: a literal without indexing, with a literal name.
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "a length of one byte");
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.frame(HEADERS, END_HEADERS, stream, &block);
        stream
    }

    /// Queues a whole gRPC message.
    pub(super) fn message(&mut self, stream: u32, message: &impl prost::Message, end: bool) {
        let bytes = message.encode_to_vec();
        self.part(stream, bytes.len(), &bytes, end);
    }

    /// Queues the beginning of a gRPC message whose head announces `length` bytes.
    pub(super) fn part(&mut self, stream: u32, length: usize, bytes: &[u8], end: bool) {
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(length).expect("a short message").to_be_bytes());
        framed.extend_from_slice(bytes);
        self.data(stream, &framed, end);
    }

    pub(super) fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.frame(DATA, if end { END_STREAM } else { 0 }, stream, bytes);
    }

    pub(super) fn reset(&mut self, stream: u32) {
        self.frame(RESET, 0, stream, &CANCEL.to_be_bytes());
    }

    pub(super) async fn flush(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        if let Err(error) = self.socket.write_all(&queued).await {
            let mut last = Vec::new();
            let _ = self.socket.read_to_end(&mut last).await;
            panic!("{error}: {}", String::from_utf8_lossy(&last));
        }
    }

    /// The next DATA, HEADERS, RST_STREAM or GOAWAY frame; `None` once the connection is closed.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            self.socket.read_exact(&mut payload).await.ok()?;
            let frame = Frame { kind: head[3], flags: head[4], stream, payload };
            match frame.kind {
                SETTINGS | PING if frame.flags & ACK == 0 => {
                    self.frame(
                        frame.kind,
                        ACK,
                        0,
                        if frame.kind == PING { &frame.payload } else { &[] },
                    );
                    self.flush().await;
                }
                DATA | HEADERS | RESET | GOAWAY => return Some(frame),
                _other => {}
            }
        }
    }

    /// Waits for the end of a call; returns whether it got a message. The connection must stay
    /// open.
    pub(super) async fn is_answered(&mut self, stream: u32) -> bool {
        let mut answered = false;
        loop {
            let frame = self.next().await.expect("the connection stays");
            assert_ne!(frame.kind, GOAWAY, "{}", String::from_utf8_lossy(&frame.payload));
            if frame.stream == stream {
                answered |= frame.kind == DATA && !frame.payload.is_empty();
                if frame.ends_stream() {
                    return answered;
                }
            }
        }
    }
}

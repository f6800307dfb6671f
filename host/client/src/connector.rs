//! [`Connector`]: connections to one node.
//!
//! - While a node has no connection, its calls wait in the channel, which tries to connect once for
//!   each of them, one after the other.
//! - After a failed try, further tries fail at once, for as long as the failed one took. Otherwise
//!   calls that wait behind others for a node that never answers would time out, and it would be
//!   unknown whether they had been sent.
//!
//! `hyper-util`, which tonic connects with as well, resolves the name and tries its addresses.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::transport::Uri;

use crate::cause::root_cause;

/// Connects to one node.
pub(crate) struct Connector {
    tcp: HttpConnector,
    /// How long a try may take.
    patience: Duration,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// A try that failed.
struct Failure {
    why: String,
    /// Until this time further tries fail at once.
    until: Instant,
}

impl Connector {
    pub(crate) fn new(patience: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(patience));
        Self { tcp, patience, failure: Arc::default() }
    }
}

impl Failure {
    fn new(why: String, patience: Duration, began: Instant, now: Instant) -> Self {
        // A try that nobody polls ends late; only the time up to `patience` counts.
        let took = now.duration_since(began).min(patience);
        Self { why, until: began + took * 2 }
    }

    /// The error of a try that begins now, if it must fail at once.
    fn repeated(&self, now: Instant) -> Option<io::Error> {
        (now < self.until).then(|| io::Error::other(self.why.clone()))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (began, patience) = (Instant::now(), self.patience);
        let last = self.failure.lock().expect("no holder of this lock panics");
        if let Some(error) = last.as_ref().and_then(|failure| failure.repeated(began)) {
            return Box::pin(std::future::ready(Err(error)));
        }
        drop(last);
        let (connecting, failure) = (self.tcp.call(uri), Arc::clone(&self.failure));
        Box::pin(async move {
            let why = match tokio::time::timeout(patience, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => root_cause(&error),
                Err(_elapsed) => format!("no connection within {patience:?}"),
            };
            let failed = Failure::new(why.clone(), patience, began, Instant::now());
            *failure.lock().expect("no holder of this lock panics") = Some(failed);
            Err(io::Error::other(why))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    /// A failure that took `took` is repeated `after` its try began, or not.
    fn check(took: Duration, after: Duration, repeated: bool) {
        let began = Instant::now();
        let failure = Failure::new("why".to_owned(), PATIENCE, began, began + took);
        let error = failure.repeated(began + after);
        assert_eq!(error.is_some(), repeated, "{took:?} {after:?}");
        assert!(error.is_none_or(|error| error.to_string() == "why"));
    }

    #[test]
    fn a_failure_is_repeated_for_as_long_as_it_took() {
        let ms = Duration::from_millis;
        check(PATIENCE, PATIENCE + ms(1), true);
        check(PATIENCE, 2 * PATIENCE - ms(1), true);
        check(PATIENCE, 2 * PATIENCE, false);
        // A node that refuses connections is back at the next try.
        check(ms(1), ms(2), false);
        check(Duration::ZERO, Duration::ZERO, false);
        // The channel looked at the try long after it had ended.
        check(60 * PATIENCE, 60 * PATIENCE, false);
    }
}

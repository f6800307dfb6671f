//! [`Requests`]: how many calls of each method ended with which code, and how long they took.
//!
//! - The methods are a closed list: a caller cannot add a row by inventing a name.
//! - A call is counted once, when it ends, however it ends; if its caller is gone, as cancelled.
//! - Streams are counted but not timed, because they last as long as their callers like. Methods
//!   that only peers and probes call are not timed either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::HeaderMap;
use prometheus_client::metrics::histogram::Histogram;
use tonic::Code;

use crate::metrics::seconds_histogram;

/// The methods that are told apart: name, path, and whether calls are *not* timed. A path that ends
/// with `/` or `.` stands for all paths that begin with it.
const METHODS: [(&str, &str, bool); 19] = [
    ("Apply", "/lockstep.v1.Lockstep/Apply", false),
    ("Query", "/lockstep.v1.Lockstep/Query", false),
    ("OpenSession", "/lockstep.v1.Lockstep/OpenSession", false),
    ("CloseSession", "/lockstep.v1.Lockstep/CloseSession", false),
    ("Status", "/lockstep.v1.Lockstep/Status", false),
    ("Checkpoint", "/lockstep.v1.Lockstep/Checkpoint", false),
    ("Order", "/lockstep.v1.Lockstep/Order", false),
    ("Repair", "/lockstep.v1.Lockstep/Repair", false),
    ("Fault", "/lockstep.v1.Lockstep/Fault", false),
    ("StageModule", "/lockstep.v1.Lockstep/StageModule", true),
    ("ReadModule", "/lockstep.v1.Lockstep/ReadModule", true),
    ("ApplyStream", "/lockstep.v1.Lockstep/ApplyStream", true),
    ("Watch", "/lockstep.v1.Lockstep/Watch", true),
    ("Meet", "/lockstep.peer.v1.Peer/Meet", true),
    ("Frames", "/lockstep.peer.v1.Peer/Frames", true),
    ("Bulk", "/lockstep.peer.v1.Peer/Bulk", true),
    ("Health", "/grpc.health.v1.Health/", true),
    ("Reflection", "/grpc.reflection.", true),
    // Everything that this node does not offer.
    ("other", "/", true),
];

/// The names of gRPC's status codes, in the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The calls of a port since its start.
pub(crate) struct Requests([Calls; METHODS.len()]);

struct Calls {
    by_code: [AtomicU64; CODES.len()],
    took: Histogram,
}

impl Default for Requests {
    fn default() -> Self {
        let none = |_| Calls {
            by_code: std::array::from_fn(|_| AtomicU64::new(0)),
            took: seconds_histogram(),
        };
        Self(std::array::from_fn(none))
    }
}

impl Requests {
    /// Calls by method and code; a row for each pair, also where the count is 0.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        METHODS.iter().zip(&self.0).flat_map(|((method, ..), calls)| {
            let counts = CODES.iter().zip(&calls.by_code);
            counts.map(|(code, count)| (*method, *code, count.load(Ordering::Relaxed)))
        })
    }

    /// How long calls took, for each method that is timed.
    pub(crate) fn times(&self) -> impl Iterator<Item = (&'static str, &Histogram)> + '_ {
        let methods = METHODS.iter().zip(&self.0);
        methods
            .filter(|((_, _, stream), _)| !stream)
            .map(|((name, ..), calls)| (*name, &calls.took))
    }
}

/// One call under way; it is counted when this is dropped.
pub(super) struct Counted {
    requests: Arc<Requests>,
    method: usize,
    began: Instant,
    code: Code,
}

impl Counted {
    pub(super) fn begin(requests: &Arc<Requests>, path: &str) -> Self {
        let is = |(_, begins, _): &(_, &str, _)| {
            if begins.ends_with(['/', '.']) { path.starts_with(begins) } else { path == *begins }
        };
        let method = METHODS.iter().position(is).unwrap_or(METHODS.len() - 1);
        let (requests, began) = (Arc::clone(requests), Instant::now());
        Self { requests, method, began, code: Code::Cancelled }
    }

    /// Notes the code that the caller is told, if these headers or trailers hold one.
    pub(super) fn told(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let calls = &self.requests.0[self.method];
        calls.by_code[self.code as usize].fetch_add(1, Ordering::Relaxed);
        if !METHODS[self.method].2 {
            calls.took.observe(self.began.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(path: &str, status: Option<&str>) -> Vec<(&'static str, &'static str)> {
        let requests = Arc::<Requests>::default();
        let mut call = Counted::begin(&requests, path);
        let status = status.map(|status| status.parse().expect("a header's value"));
        call.told(&status.map(|status| ("grpc-status", status)).into_iter().fold(
            HeaderMap::new(),
            |mut headers, (name, value)| {
                headers.insert(name, value);
                headers
            },
        ));
        drop(call);
        let rows = requests.counts().filter(|(_, _, count)| *count > 0);
        rows.map(|(method, code, _)| (method, code)).collect()
    }

    #[test]
    fn each_call_is_counted_once_under_a_name_that_is_known() {
        let apply = "/lockstep.v1.Lockstep/Apply";
        assert_eq!(counted(apply, Some("0")), [("Apply", "OK")]);
        assert_eq!(counted(apply, Some("14")), [("Apply", "UNAVAILABLE")]);
        assert_eq!(counted(apply, Some("99")), [("Apply", "UNKNOWN")]);
        assert_eq!(counted(apply, None), [("Apply", "CANCELLED")]);
        let stream = "/lockstep.v1.Lockstep/ApplyStream";
        assert_eq!(counted(stream, Some("0")), [("ApplyStream", "OK")]);
        let reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
        assert_eq!(counted(reflection, Some("0")), [("Reflection", "OK")]);
        for path in ["/lockstep.v1.Lockstep/Guess", "/", "", "*"] {
            assert_eq!(counted(path, Some("12")), [("other", "UNIMPLEMENTED")], "{path}");
        }
    }

    #[test]
    fn codes_have_their_own_numbers() {
        for (number, name) in CODES.iter().enumerate() {
            let code = Code::from_bytes(number.to_string().as_bytes());
            assert_eq!(code as usize, number);
            let words = format!("{code:?}");
            assert!(words.eq_ignore_ascii_case(&name.replace('_', "")), "{words} is not {name}");
        }
    }
}

//! What a failed attempt means: whether the command may have been applied, and where to try next.

use tonic::{Code, Status};

use crate::cause::{never_connected, why};

/// A failed attempt: all that matters for a retry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    pub verdict: Verdict,
    /// The node's `lockstep-refusal`, or else the gRPC code's name.
    pub refusal: String,
    pub message: String,
    /// The leader's address, if the node named it.
    pub leader: Option<String>,
    /// No connection could be made.
    pub unreachable: bool,
    /// The node's `lockstep-begin`.
    pub begin: Option<String>,
}

/// What is known of a failed attempt, and whether to repeat it: the column `retry` in
/// `client.proto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The attempt had no effect; another one, perhaps at another node, may succeed.
    Nothing,
    /// The attempt had no effect, because the node is overloaded: try a little later, at the leader
    /// again or else at another node.
    Overloaded,
    /// The attempt had no effect, and another one can succeed only after a while.
    Slowly,
    /// The attempt had no effect, and no other at this node will succeed until a person acts.
    Once,
    /// The command may have been applied, or may still be.
    Unknown,
    /// The attempt had no effect, and no repetition will succeed.
    Final,
    /// The failure does not come from a node: the command may have been applied, and no repetition
    /// will succeed.
    Foreign,
}

impl Failed {
    pub(crate) fn of_status(status: &Status) -> Self {
        let text = |key: &str| {
            let value = status.metadata().get(key).and_then(|value| value.to_str().ok());
            value.map(str::to_owned)
        };
        let leader = text("lockstep-leader");
        match text("lockstep-refusal") {
            Some(refusal) => {
                let unknown = text("lockstep-outcome").as_deref() == Some("unknown");
                let message = status.message().to_owned();
                let verdict = judge(&refusal, unknown);
                let begin = text("lockstep-begin");
                Self { verdict, refusal, message, leader, unreachable: false, begin }
            }
            None => Self {
                verdict: judge_silent(status),
                refusal: format!("{:?}", status.code()),
                message: why(status),
                leader,
                unreachable: never_connected(status),
                begin: None,
            },
        }
    }

    /// A failure that a node reported within a stream.
    pub(crate) fn of_stream(refused: crate::v1::StreamRefusal) -> Self {
        let crate::v1::StreamRefusal { refusal, message, outcome_unknown, leader, code: _ } =
            refused;
        let verdict = judge(&refusal, outcome_unknown);
        let leader = Some(leader).filter(|leader| !leader.is_empty());
        Self { verdict, refusal, message, leader, unreachable: false, begin: None }
    }

    /// The attempt took too long, without an answer.
    pub(crate) fn timed_out() -> Self {
        let refusal = "DeadlineExceeded".to_owned();
        Self { refusal, ..Self::broken("no answer in time") }
    }

    /// The attempt broke off, and no node said why.
    pub(crate) fn broken(message: &str) -> Self {
        Self {
            verdict: Verdict::Unknown,
            refusal: "Unavailable".to_owned(),
            message: message.to_owned(),
            leader: None,
            unreachable: false,
            begin: None,
        }
    }
}

/// Judges a refusal by a node.
fn judge(refusal: &str, unknown: bool) -> Verdict {
    match refusal {
        _any if unknown => Verdict::Unknown,
        "unknown-group" | "too-large" | "malformed" | "query-faulted" | "query-too-much"
        | "compacted" | "not-now" => Verdict::Final,
        "overloaded" | "checkpoint-too-soon" => Verdict::Overloaded,
        "not-serving" | "sessions-full" | "frozen" => Verdict::Slowly,
        "disk-full" | "log-full" | "memory-high" | "halted" | "queries-refused" | "from-future" => {
            Verdict::Once
        }
        _retryable => Verdict::Nothing,
    }
}

/// Judges a failure that carries no node's refusal, by its gRPC code. What was sent may have
/// arrived, even if a proxy on the way rejected the call.
fn judge_silent(status: &Status) -> Verdict {
    if never_connected(status) {
        return Verdict::Nothing;
    }
    match status.code() {
        // The server does not know the call and cannot have carried it out.
        Code::Unimplemented => Verdict::Final,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unauthenticated => Verdict::Foreign,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    fn status(code: Code, metadata: &[(&'static str, &'static str)]) -> Status {
        let mut map = MetadataMap::new();
        for (key, value) in metadata {
            map.insert(*key, value.parse().expect("a header value"));
        }
        Status::with_metadata(code, "why", map)
    }

    #[test]
    fn verdicts() {
        let check = |code, metadata: &[(&'static str, &'static str)], want| {
            let failed = Failed::of_status(&status(code, metadata));
            assert_eq!(failed.verdict, want, "{code:?} {metadata:?}");
        };
        let refusal = "lockstep-refusal";
        let outcome = "lockstep-outcome";
        check(Code::FailedPrecondition, &[(refusal, "not-leader")], Verdict::Nothing);
        check(Code::Aborted, &[(refusal, "lost"), (outcome, "nothing")], Verdict::Nothing);
        check(Code::Unknown, &[(refusal, "unknown"), (outcome, "unknown")], Verdict::Unknown);
        check(
            Code::DeadlineExceeded,
            &[(refusal, "deadline"), (outcome, "unknown")],
            Verdict::Unknown,
        );
        check(Code::ResourceExhausted, &[(refusal, "overloaded")], Verdict::Overloaded);
        check(Code::InvalidArgument, &[(refusal, "too-large")], Verdict::Final);
        check(Code::NotFound, &[(refusal, "unknown-group")], Verdict::Final);
        // No node refused: a broken connection, a proxy, a foreign server.
        check(Code::Unavailable, &[], Verdict::Unknown);
        check(Code::DeadlineExceeded, &[], Verdict::Unknown);
        check(Code::Unimplemented, &[], Verdict::Final);
        check(Code::PermissionDenied, &[], Verdict::Foreign);
        check(Code::InvalidArgument, &[], Verdict::Foreign);
    }

    /// This client does what the table at the head of `client.proto` says.
    #[test]
    fn the_table_of_the_protocol_is_kept() {
        let proto = include_str!("../../proto/client.proto");
        let rows =
            proto.lines().skip_while(|line| !line.starts_with("//   lockstep-refusal    code"));
        let rows = rows.skip(1).take_while(|line| line.starts_with("//   "));
        let mut count = 0;
        for row in rows.filter(|row| !row.starts_with("//     ")) {
            let words: Vec<&str> = row.trim_start_matches("//").split_whitespace().collect();
            let want = match words[2] {
                "elsewhere" => Verdict::Nothing,
                "later" => Verdict::Overloaded,
                "slowly" => Verdict::Slowly,
                "once" => Verdict::Once,
                "never" => Verdict::Final,
                "session" => Verdict::Unknown,
                other => panic!("{other} is not a kind of retry: {row}"),
            };
            assert_eq!(judge(words[0], want == Verdict::Unknown), want, "{row}");
            count += 1;
        }
        assert_eq!(count, 27, "all rows were read");
    }

    #[test]
    fn a_refusal_names_the_leader() {
        let metadata = [("lockstep-refusal", "not-leader"), ("lockstep-leader", "10.0.0.2:7101")];
        let failed = Failed::of_status(&status(Code::FailedPrecondition, &metadata));
        assert_eq!(failed.leader.as_deref(), Some("10.0.0.2:7101"));
        assert_eq!(failed.refusal, "not-leader");
    }
}

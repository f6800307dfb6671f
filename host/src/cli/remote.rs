//! What the commands that talk to a cluster share: endpoints, deadlines, input and output.

use std::io::Read;
use std::time::Duration;

use lockstep_client::{Client, DEADLINE_MAX, Error, Options, Outcome};

use crate::cli::Failure;
use crate::kit::text::text_or_hex;
use crate::logging::out;

/// How to reach a cluster.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Nodes, as host:port, separated by commas; one that is up is enough.
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "LOCKSTEP_ENDPOINT",
        default_value = "127.0.0.1:7101"
    )]
    endpoint: String,
    /// The group; may be omitted if the nodes host only one.
    #[arg(long, default_value = "")]
    group: String,
    /// Seconds to wait before giving up.
    #[arg(
        long,
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=DEADLINE_MAX.as_secs())
    )]
    timeout: u64,
}

impl Target {
    /// The endpoint, if there is only one.
    pub(crate) fn only_endpoint(&self) -> Option<&str> {
        Some(self.endpoint.trim()).filter(|endpoint| !endpoint.contains(','))
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.client_with(|_| ())
    }

    pub(crate) fn client_with(&self, change: impl FnOnce(&mut Options)) -> Result<Client, Failure> {
        let mut options = Options {
            group: self.group.clone(),
            deadline: Duration::from_secs(self.timeout.max(1)),
            ..Options::default()
        };
        change(&mut options);
        Client::connect(self.endpoint.split(',').map(str::trim), options)
            .map_err(|e| Failure::Usage(e.to_string()))
    }
}

/// Returns the argument, or else all of standard input. Text from standard input loses its final
/// newline, which `echo` or a terminal added.
pub(crate) fn argument_or_stdin(argument: Option<String>) -> Result<Vec<u8>, Failure> {
    if let Some(text) = argument {
        return Ok(text.into_bytes());
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    Ok(without_last_newline(input))
}

/// Removes the final newline of a text. Binary input keeps every byte.
fn without_last_newline(mut input: Vec<u8>) -> Vec<u8> {
    let is_text = std::str::from_utf8(&input)
        .is_ok_and(|text| text.chars().all(|c| !c.is_control() || "\n\r\t".contains(c)));
    if is_text && input.last() == Some(&b'\n') {
        input.pop();
    }
    input
}

/// Prints the state machine's answer. A rejection makes the command fail.
pub(crate) fn print_outcome(
    outcome: &Outcome,
    json: Option<serde_json::Value>,
) -> Result<(), Failure> {
    let (said, ok) = match outcome {
        Outcome::Ok(bytes) => (bytes, true),
        Outcome::Rejected(bytes) => (bytes, false),
    };
    if let Some(mut object) = json {
        object["ok"] = ok.into();
        object["answer"] = text_or_hex(said).into();
        out!("{object}");
    } else if ok {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        match out.write_all(said).and_then(|()| out.write_all(b"\n")) {
            // A closed pipe is no failure: its reader wants no more output.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                let why =
                    format!("the call was answered, but the answer cannot be written: {error}");
                return Err(Failure::Failed(why));
            }
            Ok(()) | Err(_) => {}
        }
    }
    if ok { Ok(()) } else { Err(Failure::Failed(format!("rejected: {}", text_or_hex(said)))) }
}

/// Turns a call that has no outcome into the command's failure.
pub(crate) fn call_failed(error: Error) -> Failure {
    match error {
        Error::BadEndpoint { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        target: Target,
    }

    #[tokio::test]
    async fn no_timeout_is_too_long_to_be_waited_for() {
        let timeout = |seconds: &str| Line::try_parse_from(["lockstep", "--timeout", seconds]);
        assert!(timeout("18446744073709551615").is_err());
        let line = timeout(&DEADLINE_MAX.as_secs().to_string()).expect("a year is fine");
        let client = line.target.client().expect("a good endpoint");
        assert_eq!(client.options().deadline, DEADLINE_MAX);
    }

    /// A binary command may end with the byte of a newline and must keep it.
    #[test]
    fn only_a_text_loses_its_last_newline() {
        let rows: [(&[u8], &[u8]); 5] = [
            (b"set a 1\n", b"set a 1"),
            (b"two\nlines\n\n", b"two\nlines\n"),
            (b"\x00\x01\n", b"\x00\x01\n"),
            (b"\xff\n", b"\xff\n"),
            (b"", b""),
        ];
        for (input, want) in rows {
            assert_eq!(without_last_newline(input.to_vec()), want);
        }
    }
}

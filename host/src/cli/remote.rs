//! What the commands that talk to a cluster share: endpoints, deadlines, and where the input comes
//! from.

use std::io::Read;
use std::time::Duration;

use lockstep_client::{Client, Error, Options, Outcome};

use crate::cli::Failure;
use crate::cli::format::text_or_hex;
use crate::logging::out;

/// How to reach a cluster.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Nodes, as host:port, separated by commas; any one that lives will do.
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "LOCKSTEP_ENDPOINT",
        default_value = "127.0.0.1:7101"
    )]
    endpoint: String,
    /// The group; may be left out where there is only one.
    #[arg(long, default_value = "")]
    group: String,
    /// Seconds until giving up.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

impl Target {
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

/// The argument, or all of standard input; of a text without its last newline, which is no part of
/// a line that somebody typed or echoed.
pub(crate) fn argument_or_stdin(argument: Option<String>) -> Result<Vec<u8>, Failure> {
    if let Some(text) = argument {
        return Ok(text.into_bytes());
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    Ok(without_last_newline(input))
}

/// Bytes that are no text keep every byte.
fn without_last_newline(mut input: Vec<u8>) -> Vec<u8> {
    let is_text = std::str::from_utf8(&input)
        .is_ok_and(|text| text.chars().all(|c| !c.is_control() || "\n\r\t".contains(c)));
    if is_text && input.last() == Some(&b'\n') {
        input.pop();
    }
    input
}

/// Prints what the state machine said; its "no" is a failure of what was asked for.
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
        out.write_all(said)?;
        out.write_all(b"\n")?;
    }
    match ok {
        true => Ok(()),
        false => Err(Failure::Failed(format!("rejected: {}", text_or_hex(said)))),
    }
}

/// A call that has no outcome.
pub(crate) fn call_failed(error: Error) -> Failure {
    match error {
        Error::BadEndpoint { .. } => Failure::Usage(error.to_string()),
        other => Failure::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A binary command that ends with the byte of a newline.
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

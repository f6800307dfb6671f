//! The smallest replicated state machine: one number.
//!
//! Commands: `incr` and `add N`, both answered with the new number. Query: `get`. The configuration
//! is empty, or the number to start with. The snapshot is the number, as eight bytes.

use std::io::{Read, Write};

use lockstep_guest::{
    Context, Failure, Info, Outcome, SnapshotHeader, SnapshotReader, SnapshotWriter, StateMachine,
};

/// The number.
pub struct Counter(i64);

impl StateMachine for Counter {
    const INFO: Info = Info {
        name: "counter",
        version: env!("CARGO_PKG_VERSION"),
        snapshot_format: 1,
        oldest_readable_format: 1,
    };

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        let start = if config.is_empty() { Some(0) } else { number(config) };
        start
            .map(Self)
            .ok_or_else(|| Failure::InvalidConfig("expected nothing or a number".to_owned()))
    }

    fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
        let step = match command {
            b"incr" => Some(1),
            _ => command.strip_prefix(b"add ").and_then(number),
        };
        let Some(step) = step else {
            return Outcome::rejected("expected `incr` or `add N`, N a 64-bit whole number");
        };
        let Some(sum) = self.0.checked_add(step) else {
            return Outcome::rejected("the number would exceed 64 bits");
        };
        self.0 = sum;
        Outcome::ok(sum.to_string())
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match request {
            b"get" => Ok(self.0.to_string().into()),
            _ => Err(b"expected `get`".to_vec()),
        }
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        Ok(out.write_all(&self.0.to_le_bytes())?)
    }

    fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader) -> Result<Self, Failure> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        Ok(Self(i64::from_le_bytes(bytes)))
    }
}

lockstep_guest::export!(Counter);

fn number(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_guest::testing::Harness;

    #[test]
    fn counts() {
        let mut counter = Harness::<Counter>::new();
        counter.check("incr", "ok 1");
        counter.check("add 41", "ok 42");
        counter.check("add -2", "ok 40");
        counter.check_query("get", "ok 40");
        counter.verify();
    }

    #[test]
    fn refuses() {
        let mut counter =
            Harness::<Counter>::with_config(b"9223372036854775807").expect("a number");
        counter.check("incr", "rejected the number would exceed 64 bits");
        for command in ["", "add", "add x", "incr 1", "add 9223372036854775808"] {
            counter.check(command, "rejected expected `incr` or `add N`, N a 64-bit whole number");
        }
        counter.check_query("get it", "rejected expected `get`");
        counter.check_query("get", "ok 9223372036854775807");
        assert!(Harness::<Counter>::with_config(b"many").is_err());
        counter.verify();
    }

    #[test]
    fn a_snapshot_of_another_length_is_corrupt() {
        let counter = Harness::<Counter>::new();
        for length in [0, 7, 9] {
            let error = counter.restore(&vec![0; length]).err().expect("not eight bytes");
            assert!(matches!(error, Failure::Corrupt(_)), "{error}");
        }
    }
}

//! A count for each key.
//!
//! Commands, as JSON: `{"add": {"key": "apples", "by": 3}}` is answered with the new count, and
//! `{"reset": {"key": "apples"}}` with the last one. Queries: `{"count": "apples"}` and `"total"`.
//! When a count passes a hundred, or another one, those who watch `hundreds/` hear of it.
//!
//! This file promises what every state machine promises. The answers and the state are a function
//! of the commands. A machine that was restored from a snapshot goes on like the one that wrote it.
//! Equal states write equal snapshots. A query changes nothing. `tests.rs` checks it.

use lockstep_guest::*;
use serde::{Deserialize, Serialize};

/// The longest key, in bytes. Whatever a client can make grow has a bound.
const KEY_BYTES_MAX: usize = 128;

/// The whole state. `DetMap` has the same order on every replica; a `HashMap` has not.
#[derive(Default)]
pub struct Tally {
    counts: DetMap<String, u64>,
    /// The sum of `checksum` for all counts: derived from them, so no part of the snapshot.
    digest: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    Add { key: String, by: u64 },
    Reset { key: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Query {
    Count(String),
    Total,
}

impl Typed for Tally {
    const INFO: Info = Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    type Codec = Json;
    type Command = Command;
    type Answer = u64;
    type Query = Query;
    type Reply = u64;

    fn init(_: &Context, _config: &[u8]) -> Result<Self, Failure> {
        Ok(Self::default())
    }

    /// Checks first, changes afterwards: what is rejected must not be half done. A panic would stop
    /// every replica, so what cannot be done is rejected.
    fn apply(&mut self, _: &Context, command: Command) -> Result<u64, Rejection> {
        match command {
            Command::Add { key, by } => {
                if key.len() > KEY_BYTES_MAX {
                    return Err(format!("a key has at most {KEY_BYTES_MAX} bytes").into());
                }
                let before = self.count(&key);
                let count = before
                    .checked_add(by)
                    .ok_or("the count would exceed 64 bits")?;
                if count / 100 > before / 100 {
                    emit(&format!("hundreds/{key}"), count.to_string().as_bytes());
                }
                self.set(key, count);
                Ok(count)
            }
            Command::Reset { key } => match self.count(&key) {
                0 => Err(format!("nothing was counted for {key}").into()),
                before => {
                    self.set(key, 0);
                    Ok(before)
                }
            },
        }
    }

    fn query(&self, _: &Context, query: Query) -> Result<u64, Rejection> {
        match query {
            Query::Count(key) => Ok(self.count(&key)),
            Query::Total => Ok(self
                .counts
                .values()
                .fold(0, |sum, count| sum.saturating_add(*count))),
        }
    }

    /// Streams the counts in the order of their keys.
    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        Ok(out.write_items::<Postcard, _>(&self.counts)?)
    }

    fn restore(
        _: &SnapshotHeader,
        _config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        let counts: DetMap<String, u64> = from.read_map::<Postcard, _, _>()?;
        let mut tally = Self::default();
        counts
            .into_iter()
            .for_each(|(key, count)| tally.set(key, count));
        Ok(tally)
    }
}

impl Tally {
    fn count(&self, key: &str) -> u64 {
        self.counts.get(key).copied().unwrap_or(0)
    }

    /// Nothing is kept for a count of 0: equal states must be equal to their last byte.
    fn set(&mut self, key: String, count: u64) {
        let before = checksum(&key, self.count(&key));
        self.digest = self
            .digest
            .wrapping_sub(before)
            .wrapping_add(checksum(&key, count));
        if count == 0 {
            self.counts.remove(&key);
        } else {
            self.counts.insert(key, count);
        }
    }
}

/// FNV-1a of a key and its count; 0 if nothing is counted.
fn checksum(key: &str, count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let bytes = key.bytes().chain(count.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Lets tests compare replicas without a snapshot.
impl Digest for Tally {
    fn digest(&self) -> Vec<u8> {
        self.digest.to_le_bytes().to_vec()
    }
}

/// Makes up commands and queries for `Explore` and for `lockstep test`: few keys, so that commands
/// meet, and now and then one that is rejected.
impl SelfTest for Tally {
    const INDEPENDENT_OF_PACKING: bool = true;

    fn command(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        let key = *rng.pick(&["apples", "pears", "plums"]);
        match rng.below(10) {
            0 => format!(r#"{{"reset": {{"key": "{key}"}}}}"#),
            1 => format!(r#"{{"add": {{"key": "{key}", "by": {}}}}}"#, u64::MAX),
            _ => format!(r#"{{"add": {{"key": "{key}", "by": {}}}}}"#, rng.below(50)),
        }
        .into_bytes()
    }

    fn query(number: u64) -> Vec<u8> {
        let mut rng = Rng::from_number(number);
        match rng.below(3) {
            0 => r#""total""#.to_owned(),
            1 => r#"{"count": "apples"}"#.to_owned(),
            _ => r#"{"count": "nothing"}"#.to_owned(),
        }
        .into_bytes()
    }
}

lockstep_guest::export!(Tally: digest, self_test);

#[cfg(test)]
mod tests;

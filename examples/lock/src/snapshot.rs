//! The snapshot, format 1.
//!
//! ```text
//! last token                                     u64
//! number of locks                                u64
//! for each lock, in the order of the names:
//!     name                                       block
//!     owner                                      block
//!     token, end of the lease in ms              u64, u64
//!     number of waiters                          u64
//!     for each waiter, the next one first:
//!         owner                                  block
//!         TTL in ms                              u64
//! ```
//!
//! A number is little-endian; a block is its length as `u32` and its bytes. What is read is checked
//! to be a state that commands can lead to, but for the limits of how many locks and waiters there
//! are: another version may have others.

use std::collections::VecDeque;

use lockstep_guest::{DetMap, DetSet, Failure, SnapshotReader, SnapshotWriter};

use crate::command::{TTL_MS_MAX, TTL_MS_MIN, WORD_BYTES_MAX, is_word};
use crate::locks::{Held, Locks, Waiter};

/// There is nothing to configure.
pub(crate) fn check_config(config: &[u8]) -> Result<(), Failure> {
    if config.is_empty() {
        return Ok(());
    }
    Err(Failure::InvalidConfig("lock has nothing to configure; leave it empty".to_owned()))
}

pub(crate) fn write(locks: &Locks, out: &mut SnapshotWriter) -> Result<(), Failure> {
    out.write_u64(locks.last_token)?;
    out.write_u64(locks.held.len() as u64)?;
    for (name, held) in &locks.held {
        out.write_block(name.as_bytes())?;
        out.write_block(held.owner.as_bytes())?;
        out.write_u64(held.token)?;
        out.write_u64(locks.until(name))?;
        out.write_u64(held.waiters.len() as u64)?;
        for waiter in &held.waiters {
            out.write_block(waiter.owner.as_bytes())?;
            out.write_u64(waiter.ttl_ms)?;
        }
    }
    Ok(())
}

pub(crate) fn read(from: &mut SnapshotReader) -> Result<Locks, Failure> {
    let last_token = from.read_u64()?;
    let mut held = DetMap::new();
    let mut ends = Vec::new();
    let mut tokens = DetSet::new();
    for _ in 0..from.read_u64()? {
        let name = read_word(from)?;
        // This also finds repeated names.
        if held.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(corrupt("its locks are out of order"));
        }
        let owner = read_word(from)?;
        let token = from.read_u64()?;
        if token == 0 || token > last_token || !tokens.insert(token) {
            return Err(corrupt("it has a token that was not given away, or twice"));
        }
        ends.push((name.clone(), from.read_u64()?));
        let waiters = read_waiters(from, &owner)?;
        held.insert(name, Held { owner, token, waiters });
    }
    let waiting = held.values().map(|held| held.waiters.len()).sum();
    Ok(Locks { held, ends: ends.into_iter().collect(), waiting, last_token })
}

fn read_waiters(from: &mut SnapshotReader, holder: &str) -> Result<VecDeque<Waiter>, Failure> {
    let mut waiters = VecDeque::new();
    let mut owners = DetSet::from([holder.to_owned()]);
    for _ in 0..from.read_u64()? {
        let waiter = Waiter { owner: read_word(from)?, ttl_ms: from.read_u64()? };
        if !(TTL_MS_MIN..=TTL_MS_MAX).contains(&waiter.ttl_ms) {
            return Err(corrupt("it has a lease that is too short or too long"));
        }
        if !owners.insert(waiter.owner.clone()) {
            return Err(corrupt("it has an owner that waits twice for a lock"));
        }
        waiters.push_back(waiter);
    }
    Ok(waiters)
}

fn read_word(from: &mut SnapshotReader) -> Result<String, Failure> {
    let word = String::from_utf8(from.read_block(WORD_BYTES_MAX)?).ok();
    word.filter(|word| is_word(word)).ok_or_else(|| corrupt("it has a name that is no word"))
}

fn corrupt(why: &str) -> Failure {
    Failure::Corrupt(why.to_owned())
}

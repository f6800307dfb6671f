//! Writers that remember what was acknowledged, to compare it with the key-value store afterwards.
//!
//! Each writer goes round its own keys and stores a growing version. In the end a key must hold the
//! last version that was acknowledged, or a later one whose outcome its writer never learned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::{Client, Consistency, Error, Outcome};
use tokio::task::JoinSet;

/// How many writers, on how many keys.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub writers: u64,
    /// Keys of each writer.
    pub keys: u64,
    pub value_bytes: usize,
}

/// Writers at work.
pub struct Writers {
    shared: Arc<Shared>,
    tasks: JoinSet<Result<Written>>,
    load: Load,
}

/// The answers that all writers got, for the check afterwards.
pub struct History {
    written: Vec<Written>,
    load: Load,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Writes after which every writer stops; 0 means that it writes until it is told to stop.
    each: u64,
}

/// The answers that one writer got.
struct Written {
    writer: u64,
    keys: BTreeMap<u64, Versions>,
    retried: u64,
    retried_across_leaders: u64,
}

/// The versions of one key.
#[derive(Default)]
struct Versions {
    acknowledged: u64,
    /// Later versions without an answer: they may or may not have been applied.
    unanswered: Vec<u64>,
}

impl Writers {
    /// Writes until [`Writers::stop`].
    pub fn start(client: impl Fn() -> Result<Client>, load: Load) -> Result<Self> {
        Self::start_limited(client, load, 0)
    }

    /// Writes `total` times, rounded up to a multiple of the writers.
    pub fn start_some(client: impl Fn() -> Result<Client>, load: Load, total: u64) -> Result<Self> {
        Self::start_limited(client, load, total.div_ceil(load.writers))
    }

    fn start_limited(client: impl Fn() -> Result<Client>, load: Load, each: u64) -> Result<Self> {
        let shared = Arc::new(Shared { each, ..Shared::default() });
        let mut tasks = JoinSet::new();
        for writer in 0..load.writers {
            tasks.spawn(write(client()?, writer, load, Arc::clone(&shared)));
        }
        Ok(Self { shared, tasks, load })
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops the writers; returns the answers that they got.
    pub async fn stop(self) -> Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits until the writers have made all their writes; returns the answers that they got.
    pub async fn finish(mut self) -> Result<History> {
        let mut written = Vec::new();
        while let Some(one) = self.tasks.join_next().await {
            written.push(one.context("a writer panicked")??);
        }
        Ok(History { written, load: self.load })
    }
}

impl History {
    /// The number of writes that took more than one attempt, and of those among them that another
    /// leader answered.
    pub fn retried(&self) -> (u64, u64) {
        let sum = |of: fn(&Written) -> u64| self.written.iter().map(of).sum();
        (sum(|written| written.retried), sum(|written| written.retried_across_leaders))
    }

    /// Checks every key with linearizable reads; returns the number of keys.
    pub async fn check(&self, client: &Client) -> Result<u64> {
        let mut checked = 0;
        for written in &self.written {
            let found = read_keys(client, written.writer, self.load.keys).await?;
            for (key, versions) in &written.keys {
                let held = found.get(key).copied().unwrap_or(0);
                let name = key_name(written.writer, *key);
                versions.check(held).with_context(|| format!("key {name}"))?;
                checked += 1;
            }
        }
        Ok(checked)
    }
}

impl Versions {
    fn check(&self, held: u64) -> Result<()> {
        let acknowledged = self.acknowledged;
        ensure!(held >= acknowledged, "holds version {held}, but {acknowledged} was acknowledged");
        ensure!(
            held == acknowledged || self.unanswered.contains(&held),
            "holds version {held}, which was never sent or was refused; \
             {acknowledged} was acknowledged"
        );
        Ok(())
    }
}

async fn write(client: Client, writer: u64, load: Load, shared: Arc<Shared>) -> Result<Written> {
    let mut session = client.open_session().await?;
    let filling = "x".repeat(load.value_bytes);
    let mut written =
        Written { writer, keys: BTreeMap::new(), retried: 0, retried_across_leaders: 0 };
    for version in 1_u64.. {
        let enough = shared.each != 0 && version > shared.each;
        if enough || shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let key = version % load.keys;
        let versions = written.keys.entry(key).or_default();
        let command = format!("set {} {version}:{filling}", key_name(writer, key));
        match session.apply(command).await {
            Ok(reply) => {
                ensure!(matches!(reply.outcome, Outcome::Ok(_)), "a write was answered {reply:?}");
                *versions = Versions { acknowledged: version, unanswered: Vec::new() };
                written.retried += u64::from(reply.attempts > 1);
                written.retried_across_leaders +=
                    u64::from(reply.attempts > 1 && reply.leader_changed);
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Refused { .. }) => {}
            Err(Error::Unknown { .. }) => versions.unanswered.push(version),
            Err(Error::SessionExpired { .. }) => {
                versions.unanswered.push(version);
                session = client.open_session().await?;
            }
            Err(other) => bail!("a write failed: {other}"),
        }
    }
    Ok(written)
}

fn key_name(writer: u64, key: u64) -> String {
    format!("w{writer}-{key:06}")
}

/// The versions of one writer's keys.
async fn read_keys(client: &Client, writer: u64, keys: u64) -> Result<BTreeMap<u64, u64>> {
    let prefix = format!("w{writer}-");
    let query = format!("scan {prefix} {}", keys + 1);
    let reply = client.query(query, Consistency::Linearizable).await?;
    let Outcome::Ok(answer) = reply.outcome else { bail!("a scan was answered {reply:?}") };
    let text = std::str::from_utf8(&answer).context("a scan is text")?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let parsed = line.strip_prefix(&prefix).and_then(|line| line.split_once(' '));
        let parsed = parsed.and_then(|(key, value)| {
            let (version, _) = value.split_once(':')?;
            Some((key.parse().ok()?, version.parse().ok()?))
        });
        let (key, version) = parsed.with_context(|| format!("a scan has the line `{line}`"))?;
        found.insert(key, version);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_what_was_acknowledged_or_may_have_followed() {
        let versions = Versions { acknowledged: 7, unanswered: vec![9] };
        for (held, good) in [(0, false), (6, false), (7, true), (8, false), (9, true)] {
            assert_eq!(versions.check(held).is_ok(), good, "{held}");
        }
    }
}

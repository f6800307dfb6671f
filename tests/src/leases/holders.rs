//! Clients that acquire locks, or wait for them, and write to what the lock protects.
//!
//! - A holder counts its lease on its own clock, from before the command, and renews in time.
//! - Some holders die: they neither renew nor release. Some are away for longer than the lease and
//!   then write without looking at the clock, as a process does that was paused.
//! - An owner's name is used once, so that a grant belongs to one attempt.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::caller::{Answer, Caller};
use super::locks::Lease;
use super::resource::Resource;
use crate::rng::Rng;

const LOCKS: u64 = 40;
/// What is left of a lease when its holder stops. Log time advances with the leader's ticks, so a
/// lease may begin, by the log's time, a tick before its command was sent. This is twice as much.
const MARGIN: Duration = Duration::from_millis(200);
/// How often a holder writes.
const WRITE_EVERY: Duration = Duration::from_millis(40);
/// How long a holder waits for its grant before it cancels.
const WAIT_PATIENCE: Duration = Duration::from_secs(15);
/// How soon a renewal that was not applied is sent again.
const RENEW_AGAIN: Duration = Duration::from_millis(100);

/// What all holders share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    pub(super) resource: Resource,
    pub(super) grants: Grants,
    pub(super) granted: AtomicU64,
    /// Renewals and releases that were rejected while the holder believed that it held.
    pub(super) early_ends: AtomicU64,
}

/// Grants that watchers saw, by owner.
#[derive(Default)]
pub(super) struct Grants {
    tokens: Mutex<BTreeMap<String, u64>>,
    more: Notify,
}

impl Grants {
    pub(super) fn add<'a>(&self, grants: impl Iterator<Item = (&'a str, u64)>) {
        let mut tokens = self.tokens.lock().expect("no holder of this lock panics");
        tokens.extend(grants.map(|(owner, token)| (owner.to_owned(), token)));
        drop(tokens);
        self.more.notify_waiters();
    }

    /// The token that was granted to this owner; `None` if it was not until then.
    async fn wait(&self, owner: &str, until: Instant) -> Option<u64> {
        loop {
            let more = self.more.notified();
            let token = self.tokens.lock().expect("no holder of this lock panics").remove(owner);
            if token.is_some() {
                return token;
            }
            timeout_at(until, more).await.ok()?;
        }
    }
}

pub(super) struct Holder {
    number: u64,
    caller: Caller,
    rng: Rng,
    shared: Arc<Shared>,
    leases: Vec<Lease>,
}

/// How a holder parts with its lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Releases,
    Dies,
    WritesLate,
}

/// A lock that this holder believes it holds until a time of its own clock.
struct Belief {
    ttl: Duration,
    until: Instant,
    renew_at: Instant,
}

impl Belief {
    fn from(sent: Instant, ttl: Duration) -> Self {
        Self { ttl, until: sent + ttl - MARGIN, renew_at: sent + ttl / 3 }
    }
}

impl Holder {
    pub(super) fn new(number: u64, caller: Caller, rng: Rng, shared: Arc<Shared>) -> Self {
        Self { number, caller, rng, shared, leases: Vec::new() }
    }

    /// Acquires and gives back until told to stop; returns all that it held.
    pub(super) async fn run(mut self) -> Result<Vec<Lease>> {
        for attempt in 0_u64.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let lock = format!("l{}", self.rng.below(LOCKS));
            let owner = format!("h{}-{attempt}", self.number);
            let ttl = Duration::from_millis(1_000 + self.rng.below(2_000));
            let lease = Lease { lock, owner, ..Lease::default() };
            if let Some((lease, belief)) = self.obtain(lease, ttl).await? {
                self.shared.granted.fetch_add(1, Ordering::Relaxed);
                self.hold(lease, belief).await?;
            } else {
                sleep(Duration::from_millis(50 + self.rng.below(200))).await;
            }
        }
        Ok(self.leases)
    }

    async fn obtain(&mut self, lease: Lease, ttl: Duration) -> Result<Option<(Lease, Belief)>> {
        let Lease { lock, owner, .. } = &lease;
        let (sent, ttl_ms) = (Instant::now(), ttl.as_millis());
        let verb = if self.rng.below(2) == 0 { "acquire" } else { "wait" };
        let answer = self.caller.ask(format!("{verb} {lock} {owner} {ttl_ms}")).await?;
        let Answer::Ok(answer) = answer else { return Ok(None) };
        let token = answer.strip_prefix("granted ").unwrap_or(&answer);
        if let Ok(token) = token.parse() {
            return Ok(Some((Lease { token, ..lease }, Belief::from(sent, ttl))));
        }
        let until = Instant::now() + WAIT_PATIENCE;
        match self.shared.grants.wait(owner, until).await {
            Some(token) => self.take_up(Lease { token, ..lease }, ttl).await,
            None => self.cancel(&lease).await.map(|()| None),
        }
    }

    /// Renews a lease that was granted to this holder while it waited: only from then on can it
    /// count the time.
    async fn take_up(&mut self, lease: Lease, ttl: Duration) -> Result<Option<(Lease, Belief)>> {
        let sent = Instant::now();
        let (lease, answer) = self.renew(lease, ttl, sent + ttl).await?;
        match answer {
            Answer::Ok(_) => Ok(Some((lease, Belief::from(sent, ttl)))),
            Answer::Rejected(_) | Answer::Refused | Answer::Unanswered => {
                self.leases.push(lease);
                Ok(None)
            }
        }
    }

    /// No longer waits. If the lock was granted meanwhile, the lease runs out.
    async fn cancel(&mut self, lease: &Lease) -> Result<()> {
        let Lease { lock, owner, .. } = lease;
        self.caller.ask(format!("cancel {lock} {owner}")).await.map(drop)
    }

    async fn renew(
        &mut self,
        mut lease: Lease,
        ttl: Duration,
        until: Instant,
    ) -> Result<(Lease, Answer)> {
        let command = format!("renew {} {} {}", lease.lock, lease.token, ttl.as_millis());
        let answer = self.caller.ask_until(command, until).await?;
        match &answer {
            Answer::Ok(until_ms) => {
                lease.until_ms = until_ms.parse().context("a renewal is answered with a time")?;
            }
            Answer::Unanswered => lease.renewed_perhaps = true,
            Answer::Rejected(_) | Answer::Refused => {}
        }
        Ok((lease, answer))
    }

    /// Writes and renews until the work is done or the lease is lost, then parts with the lock.
    async fn hold(&mut self, mut lease: Lease, mut belief: Belief) -> Result<()> {
        let mut done = Instant::now() + Duration::from_millis(100 + self.rng.below(500));
        // Some do not renew, and use all of the lease.
        if self.rng.below(20) == 0 {
            (done, belief.renew_at) = (belief.until, belief.until);
        }
        let shared = Arc::clone(&self.shared);
        while Instant::now() < done && !shared.stop.load(Ordering::Relaxed) {
            if Instant::now() >= belief.renew_at {
                let sent = Instant::now();
                let answer;
                (lease, answer) = self.renew(lease, belief.ttl, belief.until).await?;
                match answer {
                    Answer::Ok(_) => belief = Belief::from(sent, belief.ttl),
                    Answer::Refused | Answer::Unanswered => {
                        belief.renew_at = Instant::now() + RENEW_AGAIN;
                    }
                    Answer::Rejected(_) => {
                        self.note_end(&belief);
                        break;
                    }
                }
            }
            if Instant::now() >= belief.until
                || !shared.resource.write(&lease.lock, &lease.owner, lease.token, true)
            {
                break;
            }
            sleep(WRITE_EVERY).await;
        }
        self.part(lease, &belief).await
    }

    async fn part(&mut self, mut lease: Lease, belief: &Belief) -> Result<()> {
        match self.manner() {
            Manner::Dies => {}
            Manner::Releases => {
                let command = format!("release {} {}", lease.lock, lease.token);
                match self.caller.ask(command).await? {
                    Answer::Ok(_) => lease.released = true,
                    Answer::Rejected(_) => self.note_end(belief),
                    Answer::Refused | Answer::Unanswered => {}
                }
            }
            Manner::WritesLate => {
                sleep(belief.ttl + Duration::from_millis(self.rng.below(2_000))).await;
                self.shared.resource.write(&lease.lock, &lease.owner, lease.token, false);
            }
        }
        self.leases.push(lease);
        Ok(())
    }

    fn manner(&mut self) -> Manner {
        match self.rng.below(20) {
            0..=2 => Manner::Dies,
            3..=4 => Manner::WritesLate,
            _ => Manner::Releases,
        }
    }

    /// A rejection says that the lease is over.
    fn note_end(&self, belief: &Belief) {
        if Instant::now() < belief.until {
            self.shared.early_ends.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until every lock is free, as the leader has it.
pub(super) async fn wait_free(client: &lockstep_client::Client, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let held = super::query(client, "list  1000").await?;
        if held.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("locks are still held {patience:?} after their holders ended:\n{held}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

//! The locks and their rules.
//!
//! * A lock that is held is in the map, a free one is not; hence only a lock that is held has
//!   waiters.
//! * A lease ends by a command, or when the log's time has reached its end: then by the timer, or
//!   by the next command on the lock if that comes first.
//! * A command does a bounded amount of work, and so does a wake.

use std::collections::VecDeque;
use std::ops::Bound;
use std::time::Duration;

use lockstep_guest::{
    Context, Deadlines, DetMap, Failure, Info, Outcome, SnapshotHeader, SnapshotReader,
    SnapshotWriter, StateMachine, TOPIC_BYTES_MAX, Wake, emit,
};

use crate::command::{Action, Command, Query, WORD_BYTES_MAX};
use crate::snapshot;

/// Most locks that are held at a time: some ten megabytes of memory.
pub const LOCKS_MAX: usize = 50_000;

/// Most owners that wait for one lock. Whoever would be the hundredth waits for a hundred leases.
pub const WAITERS_OF_LOCK_MAX: usize = 100;

/// Most owners that wait for any lock: some ten megabytes of memory.
pub const WAITERS_MAX: usize = 50_000;

/// Most leases that end in one wake. Each takes two events, which cost the most: together about a
/// fiftieth of an entry's fuel. The next wake, 100 ms later, takes the next ones.
const ENDED_IN_A_WAKE_MAX: usize = 1_000;

const TOPIC_PREFIX: &str = "lock/";
const _: () = assert!(TOPIC_PREFIX.len() + WORD_BYTES_MAX <= TOPIC_BYTES_MAX);

/// All locks that are held.
#[derive(Debug, Default)]
pub struct Locks {
    /// By name.
    pub(crate) held: DetMap<String, Held>,
    /// When each lease ends; the keys are those of `held`.
    pub(crate) ends: Deadlines<String>,
    /// How many owners wait, for whichever lock.
    pub(crate) waiting: usize,
    /// The last token that was given away; 0 if none was.
    pub(crate) last_token: u64,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) owner: String,
    pub(crate) token: u64,
    /// Who waits, the next one first: no owner twice, and not the one that holds it.
    pub(crate) waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) owner: String,
    /// How long the lease will be.
    pub(crate) ttl_ms: u64,
}

impl StateMachine for Locks {
    const INFO: Info = Info::new("lock", env!("CARGO_PKG_VERSION"));

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        snapshot::check_config(config)?;
        Ok(Self::default())
    }

    fn apply(&mut self, ctx: &Context, command: &[u8]) -> Outcome {
        let done = Command::parse(command).and_then(|Command { name, action }| {
            if self.ends.get(name).is_some_and(|until| ctx.has_reached(until)) {
                self.expire(ctx, name);
            }
            match action {
                Action::Acquire { owner, ttl_ms } => self.acquire(ctx, name, owner, ttl_ms),
                Action::Wait { owner, ttl_ms } => self.wait(ctx, name, owner, ttl_ms),
                Action::Renew { token, ttl_ms } => self.renew(ctx, name, token, ttl_ms),
                Action::Release { token } => self.release(ctx, name, token),
                Action::Cancel { owner } => self.cancel(name, owner),
            }
        });
        done.map_or_else(Outcome::rejected, Outcome::ok)
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let answer = match Query::parse(request)? {
            Query::Who { name } => self.who(name),
            Query::List { prefix, limit } => self.list(prefix, limit),
            Query::Waiters { name } => self.waiters(name),
        };
        Ok(answer.into())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        snapshot::write(self, out)
    }

    fn restore(
        _: &SnapshotHeader,
        config: &[u8],
        from: &mut SnapshotReader,
    ) -> Result<Self, Failure> {
        snapshot::check_config(config)?;
        snapshot::read(from)
    }
}

impl Wake for Locks {
    fn wake(&mut self, ctx: &Context) {
        for name in self.ends.woken_up_to(ctx, ENDED_IN_A_WAKE_MAX) {
            self.expire(ctx, &name);
        }
    }
}

/// What the commands do. Each checks everything before it changes anything.
impl Locks {
    fn acquire(
        &mut self,
        ctx: &Context,
        name: &str,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<String, String> {
        let Some(held) = self.held.get(name) else {
            return Ok(self.grant_free(ctx, name, owner, ttl_ms)?.to_string());
        };
        let held_by = self.held_by(name, held, owner);
        Err(match held.position(owner) {
            Some(position) => format!("{held_by}; {owner} is waiting at position {position}"),
            None if held.owner == owner => held_by,
            None => format!("{held_by}; `wait` queues for it"),
        })
    }

    fn wait(
        &mut self,
        ctx: &Context,
        name: &str,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<String, String> {
        let Some(held) = self.held.get(name) else {
            return Ok(format!("granted {}", self.grant_free(ctx, name, owner, ttl_ms)?));
        };
        if held.owner == owner {
            return Err(self.held_by(name, held, owner));
        }
        let place = held.waiters.iter().position(|waiter| waiter.owner == owner);
        if place.is_none() && held.waiters.len() == WAITERS_OF_LOCK_MAX {
            return Err(format!(
                "{WAITERS_OF_LOCK_MAX} owners wait for lock {name}, which is the limit; try later"
            ));
        }
        if place.is_none() && self.waiting == WAITERS_MAX {
            return Err(format!("{WAITERS_MAX} owners wait, which is the limit; try later"));
        }
        let waiters = &mut self.held.get_mut(name).expect("it was found above").waiters;
        match place {
            Some(place) => {
                waiters[place].ttl_ms = ttl_ms;
                Ok(format!("waiting {}", place + 1))
            }
            None => {
                waiters.push_back(Waiter { owner: owner.to_owned(), ttl_ms });
                self.waiting += 1;
                Ok(format!("waiting {}", waiters.len()))
            }
        }
    }

    fn renew(
        &mut self,
        ctx: &Context,
        name: &str,
        token: u64,
        ttl_ms: u64,
    ) -> Result<String, String> {
        self.check_token(name, token)?;
        let until = end_of_lease(ctx, ttl_ms);
        self.ends.set(name.to_owned(), until);
        Ok(until.to_string())
    }

    fn release(&mut self, ctx: &Context, name: &str, token: u64) -> Result<String, String> {
        self.check_token(name, token)?;
        self.end(ctx, name, "released");
        Ok("released".to_owned())
    }

    fn cancel(&mut self, name: &str, owner: &str) -> Result<String, String> {
        match self.held.get(name) {
            Some(held) if held.owner == owner => {
                Err(format!("{owner} no longer waits: {}", self.held_by(name, held, owner)))
            }
            _ => match self.held.get_mut(name).and_then(|held| held.leave(owner)) {
                Some(_) => {
                    self.waiting -= 1;
                    Ok("cancelled".to_owned())
                }
                None => Err(format!("{owner} does not wait for lock {name}")),
            },
        }
    }

    fn check_token(&self, name: &str, token: u64) -> Result<(), String> {
        match self.held.get(name) {
            Some(held) if held.token == token => Ok(()),
            Some(held) => Err(format!(
                "token {token} does not hold lock {name}, which is held by {} with token {}",
                held.owner, held.token
            )),
            None => Err(format!("token {token} does not hold lock {name}, which is free")),
        }
    }

    /// Who holds it and how long, for a message to this owner.
    fn held_by(&self, name: &str, held: &Held, owner: &str) -> String {
        let until = self.until(name);
        if held.owner == owner {
            let token = held.token;
            format!("lock {name} is held by {owner} itself until {until}, with token {token}")
        } else {
            format!("lock {name} is held by {} until {until}", held.owner)
        }
    }
}

/// How a lock passes from hand to hand.
impl Locks {
    /// Grants a lock that is free; returns the token.
    fn grant_free(
        &mut self,
        ctx: &Context,
        name: &str,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<u64, String> {
        if self.held.len() == LOCKS_MAX {
            return Err(format!("{LOCKS_MAX} locks are held, which is the limit; try later"));
        }
        Ok(self.grant(ctx, name, Waiter { owner: owner.to_owned(), ttl_ms }, VecDeque::new()))
    }

    fn expire(&mut self, ctx: &Context, name: &str) {
        self.end(ctx, name, "expired");
    }

    /// Ends a lease, and grants the lock to the next owner that waits for it.
    fn end(&mut self, ctx: &Context, name: &str, how: &str) {
        let mut held = self.held.remove(name).expect("it has a lease, which ends");
        tell(name, &format!("{how} {} {}", held.owner, held.token));
        match held.waiters.pop_front() {
            Some(next) => {
                self.waiting -= 1;
                self.grant(ctx, name, next, held.waiters);
            }
            None => {
                self.ends.remove(name);
            }
        }
    }

    /// Begins a lease; returns the token.
    fn grant(&mut self, ctx: &Context, name: &str, to: Waiter, waiters: VecDeque<Waiter>) -> u64 {
        let Waiter { owner, ttl_ms } = to;
        self.last_token += 1;
        let token = self.last_token;
        let until = end_of_lease(ctx, ttl_ms);
        tell(name, &format!("granted {owner} {token} {until}"));
        self.held.insert(name.to_owned(), Held { owner, token, waiters });
        self.ends.set(name.to_owned(), until);
        token
    }
}

/// What the queries answer.
impl Locks {
    fn who(&self, name: &str) -> String {
        match self.held.get(name) {
            Some(held) => format!("{} {} {}", held.owner, held.token, self.until(name)),
            None => "free".to_owned(),
        }
    }

    fn list(&self, prefix: &str, limit: usize) -> String {
        self.held
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .map(|(name, held)| format!("{name} {} {}\n", self.who(name), held.waiters.len()))
            .collect()
    }

    fn waiters(&self, name: &str) -> String {
        let waiters = self.held.get(name).into_iter().flat_map(|held| &held.waiters);
        waiters.map(|waiter| format!("{} {}\n", waiter.owner, waiter.ttl_ms)).collect()
    }

    /// The end of the lease of a lock that is held.
    pub(crate) fn until(&self, name: &str) -> u64 {
        self.ends.get(name).expect("each lock that is held has a lease")
    }
}

impl Held {
    /// The position at which this owner waits, 1 being the next.
    fn position(&self, owner: &str) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.owner == owner).map(|place| place + 1)
    }

    /// Takes this owner out of the queue, if it is there.
    fn leave(&mut self, owner: &str) -> Option<Waiter> {
        let place = self.waiters.iter().position(|waiter| waiter.owner == owner)?;
        self.waiters.remove(place)
    }
}

fn end_of_lease(ctx: &Context, ttl_ms: u64) -> u64 {
    ctx.after(Duration::from_millis(ttl_ms))
}

fn tell(name: &str, what: &str) {
    emit(&format!("{TOPIC_PREFIX}{name}"), what.as_bytes());
}

//! What the locks protect: a resource that takes no write with a lower token than one before.
//!
//! It stands in for the file or the service of a real program. It remembers every write, so that
//! [`check`] can judge it by what the locks' events say.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

#[derive(Default)]
pub(super) struct Resource {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The highest token that was taken for each lock, and when it was taken first.
    highest: BTreeMap<String, (u64, Instant)>,
    writes: Vec<Write>,
}

/// One write, in the order in which the resource saw them.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) lock: String,
    pub(super) owner: String,
    pub(super) token: u64,
    pub(super) taken: bool,
    /// Whether the writer believed that it held the lock; otherwise it did not look.
    pub(super) believed: bool,
    /// How long before it a higher token had been taken; zero if none had.
    pub(super) behind: Duration,
}

/// What the writes show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    pub taken: u64,
    /// Refused, of writers that did not look at their clock.
    pub stale: u64,
    /// Refused, of writers that believed that they held the lock.
    pub surprised: u64,
    /// The longest such a writer was behind the next holder.
    pub behind_max: Duration,
}

impl Resource {
    /// Writes with a token; returns whether the resource took it.
    pub(super) fn write(&self, lock: &str, owner: &str, token: u64, believed: bool) -> bool {
        let now = Instant::now();
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        let Inner { highest, writes } = &mut *inner;
        let highest = highest.entry(lock.to_owned()).or_insert((token, now));
        let taken = token >= highest.0;
        let behind = if taken { Duration::ZERO } else { now - highest.1 };
        if token > highest.0 {
            *highest = (token, now);
        }
        let (lock, owner) = (lock.to_owned(), owner.to_owned());
        writes.push(Write { lock, owner, token, taken, believed, behind });
        taken
    }

    pub(super) fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.inner.lock().expect("no holder of this lock panics").writes)
    }
}

/// Checks that no lower token was taken after a higher one, and that each token was granted for
/// this lock to this owner. `granted` has the lock and the owner of each token.
pub(super) fn check(writes: &[Write], granted: &BTreeMap<u64, (String, String)>) -> Result<Writes> {
    let mut seen = Writes::default();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for Write { lock, owner, token, taken, believed, behind } in writes {
        let to = granted.get(token).map(|(lock, owner)| (lock.as_str(), owner.as_str()));
        ensure!(
            to == Some((lock, owner)),
            "{owner} wrote with token {token} of lock {lock}, which was granted to {to:?}"
        );
        if *taken {
            let before = highest.insert(lock, *token).unwrap_or(0);
            ensure!(
                before <= *token,
                "the resource of lock {lock} took token {token} after token {before}"
            );
            seen.taken += 1;
        } else if *believed {
            seen.surprised += 1;
            seen.behind_max = seen.behind_max.max(*behind);
        } else {
            seen.stale += 1;
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted() -> BTreeMap<u64, (String, String)> {
        [(1, "a", "ann"), (2, "b", "bob"), (3, "a", "cyd")]
            .map(|(token, lock, owner)| (token, (lock.to_owned(), owner.to_owned())))
            .into()
    }

    #[test]
    fn a_lower_token_is_refused() {
        let resource = Resource::default();
        assert!(resource.write("a", "ann", 1, true) && resource.write("a", "cyd", 3, true));
        assert!(resource.write("b", "bob", 2, true), "of another lock");
        assert!(!resource.write("a", "ann", 1, false) && !resource.write("a", "ann", 1, true));
        let seen = check(&resource.take_writes(), &granted()).expect("it is good");
        assert_eq!((seen.taken, seen.stale, seen.surprised), (3, 1, 1));
    }

    #[test]
    fn a_broken_history_is_found() {
        let resource = Resource::default();
        resource.write("a", "ann", 1, true);
        resource.write("a", "cyd", 3, true);
        resource.write("a", "ann", 1, true);
        let mut writes = resource.take_writes();
        writes[2].taken = true;
        let found = check(&writes, &granted()).expect_err("a lower token was taken").to_string();
        assert_eq!(found, "the resource of lock a took token 1 after token 3");
        writes[2] = Write { token: 2, taken: false, ..writes[2].clone() };
        let found = check(&writes, &granted()).expect_err("the token is bob's").to_string();
        assert!(found.starts_with("ann wrote with token 2 of lock a, which was"), "{found}");
    }
}

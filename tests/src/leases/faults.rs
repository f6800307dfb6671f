//! What happens to leaders meanwhile, drawn from a seed: they are killed, or paused.
//!
//! A killed leader is started again soon. A paused one keeps its connections and its belief that it
//! leads, and goes on after a while.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use lockstep_client::v1::group_status::Role;
use tokio::time::{Instant, sleep};

use super::lateness::Election;
use super::{GROUPS, LOCK, QUEUE};
use crate::cluster::Cluster;
use crate::observe::PATIENCE;
use crate::rng::Rng;
use crate::tell::{Teller, seconds};

/// The time without faults at the end of the clients' time.
const CALM: Duration = Duration::from_secs(5);
/// The shortest pause: several times what an election takes.
const PAUSE_MIN: Duration = Duration::from_secs(4);

/// One fault of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// How long to rest before it, with all nodes well.
    pub(super) after: Duration,
    /// Whose leader it strikes.
    pub(super) group: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGKILL; started again after this time.
    Kill(Duration),
    /// SIGSTOP; SIGCONT after this time.
    Pause(Duration),
}

/// What took place.
#[derive(Clone, Debug, Default)]
pub(super) struct Struck {
    pub(super) kills: u64,
    pub(super) pauses: u64,
    pub(super) elections: Vec<Election>,
}

/// The faults, one after the other: two kills, then a pause, which is as long as allowed every
/// other time.
pub(super) fn schedule(mut rng: Rng, pause_max: Duration) -> impl Iterator<Item = Fault> {
    (0_u64..).map(move |number| {
        let after = Duration::from_millis(3_000 + rng.below(5_000));
        let group = [LOCK, QUEUE][rng.below(2) as usize];
        let down = Duration::from_millis(rng.below(3_000));
        let spread = pause_max.saturating_sub(PAUSE_MIN).as_millis() as u64 / 4;
        let short = PAUSE_MIN + Duration::from_millis(rng.below(spread + 1));
        let kind = match number % 6 {
            2 => Kind::Pause(pause_max),
            5 => Kind::Pause(short.min(pause_max)),
            _ => Kind::Kill(down),
        };
        Fault { after, group, kind }
    })
}

/// Strikes until the time is over; all nodes run and serve when it returns.
pub(super) async fn strike(
    cluster: &mut Cluster,
    faults: impl Iterator<Item = Fault>,
    time: Duration,
    tell: &Teller,
) -> Result<Struck> {
    let over = Instant::now() + time - CALM.min(time / 4);
    let mut struck = Struck::default();
    for fault in faults {
        if Instant::now() + fault.after >= over {
            break;
        }
        sleep(fault.after).await;
        let victim = cluster.wait_serving(fault.group).await?;
        let (from_ms, since) = (now_ms(), Instant::now());
        match fault.kind {
            Kind::Kill(down) => {
                cluster.kill(victim)?;
                let took = next_leaders(cluster, victim, since).await?;
                struck.elections.push(Election { from_ms, to_ms: now_ms() });
                struck.kills += 1;
                tell.say(format!(
                    "node {victim}, which led {}, was killed; others lead after {}",
                    fault.group,
                    seconds(took)
                ));
                sleep(down).await;
                cluster.start_node(victim)?;
            }
            Kind::Pause(time) => {
                cluster.process(victim)?.pause()?;
                let took = next_leaders(cluster, victim, since).await?;
                struck.elections.push(Election { from_ms, to_ms: now_ms() });
                struck.pauses += 1;
                let time = time.min(over.saturating_duration_since(since)).max(PAUSE_MIN);
                tell.say(format!(
                    "node {victim}, which led {}, is paused for {}; others lead after {}",
                    fault.group,
                    seconds(time),
                    seconds(took)
                ));
                sleep((since + time).saturating_duration_since(Instant::now())).await;
                cluster.process(victim)?.resume()?;
            }
        }
        for group in GROUPS {
            cluster.wait_serving(group).await?;
        }
    }
    sleep(over.saturating_duration_since(Instant::now()) + CALM.min(time / 4)).await;
    Ok(struck)
}

/// Waits until nodes other than the victim, which is not asked, lead all groups.
async fn next_leaders(cluster: &mut Cluster, victim: u16, since: Instant) -> Result<Duration> {
    for group in GROUPS {
        let leads = async |cluster: &Cluster| {
            for node in cluster.running().into_iter().filter(|node| *node != victim) {
                let status = cluster.group(node, group).await;
                if status.is_some_and(|it| it.role() == Role::Leader && it.state == "serving") {
                    return Some(());
                }
            }
            None
        };
        let what = format!("a leader of {group} other than node {victim}");
        cluster.wait_for(&what, PATIENCE, leads).await?;
    }
    Ok(since.elapsed())
}

/// This machine's time, which nodes stamp, ms since 1970.
fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_schedule() {
        let pause_max = Duration::from_secs(120);
        let drawn = |seed| schedule(Rng::new(seed), pause_max).take(60).collect::<Vec<Fault>>();
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let of = |fault: &Fault| match fault.kind {
            Kind::Pause(time) => Some(time),
            Kind::Kill(_) => None,
        };
        let pauses: Vec<Duration> = drawn(7).iter().filter_map(of).collect();
        assert_eq!(pauses.len(), 20);
        assert!(pauses.iter().all(|time| (PAUSE_MIN..=pause_max).contains(time)), "{pauses:?}");
        assert!(pauses.contains(&pause_max));
    }
}

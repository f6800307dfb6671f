//! A writer at a steady pace counts what is acknowledged, and a guest (`native:ballast:BYTES`)
//! counts what it applies. The two counts show whether anything was lost or applied twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::{Client, Error, Outcome};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::observe::PATIENCE;
use crate::tell::{Teller, thousands};

/// How often a writer that rests checks whether it may go on.
const REST: Duration = Duration::from_millis(2);

/// A writer at work.
pub struct Steady {
    shared: Arc<Shared>,
    task: JoinHandle<Result<Counted>>,
}

struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Commands that were refused because a disk is full, and not applied.
    refused: AtomicU64,
    /// Milliseconds between two commands.
    pause_ms: AtomicU64,
    /// The writer rests once this many commands are acknowledged.
    rests_at: AtomicU64,
    command_bytes: usize,
}

/// What the writer counted in all.
#[derive(Clone, Copy, Default, Debug)]
struct Counted {
    acknowledged: u64,
    /// Commands that may or may not have been applied.
    unknown: u64,
    /// The guest's count at the last acknowledgement.
    last: u64,
}

impl Shared {
    fn rests(&self) -> bool {
        let enough = self.rests_at.load(Ordering::Relaxed);
        self.acknowledged.load(Ordering::Relaxed) >= enough && !self.stop.load(Ordering::Relaxed)
    }
}

impl Steady {
    /// Writes commands of this many bytes, this many milliseconds apart, until [`Steady::stop`].
    pub fn start(client: Client, command_bytes: usize, pause_ms: u64) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            pause_ms: pause_ms.into(),
            rests_at: AtomicU64::new(u64::MAX),
            command_bytes,
        });
        let task = tokio::spawn(write(client, Arc::clone(&shared)));
        Self { shared, task }
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    pub fn pace(&self, pause_ms: u64) {
        self.shared.pause_ms.store(pause_ms, Ordering::Relaxed);
    }

    /// Lets the writer rest once this many commands are acknowledged, until this number is raised.
    pub fn rest_at(&self, acknowledged: u64) {
        self.shared.rests_at.store(acknowledged, Ordering::Relaxed);
    }

    /// After disks have free space again: waits until commands resume by themselves, then sets the
    /// pace.
    pub async fn comes_back(
        &self,
        cluster: &mut Cluster,
        group: &str,
        pause_ms: u64,
    ) -> Result<()> {
        cluster.wait_serving(group).await?;
        let before = self.acknowledged();
        let goes_on = async |_: &Cluster| (self.acknowledged() > before + 10).then_some(());
        cluster.wait_for("commands to resume", PATIENCE, goes_on).await?;
        self.pace(pause_ms);
        Ok(())
    }

    /// The last step of a run: checks that nothing acknowledged is lost, that nothing was applied
    /// twice and that the nodes are equal, and stops them.
    pub async fn account(
        self,
        cluster: &mut Cluster,
        client: &Client,
        group: &str,
        tell: &mut Teller,
    ) -> Result<()> {
        tell.step("Check what was acknowledged");
        let counted = self.stop(client).await?;
        tell.shown(format!(
            "{} commands were acknowledged, {} had no answer; the guest applied {}",
            thousands(counted.acknowledged),
            counted.unknown,
            thousands(counted.last - 1),
        ));
        cluster.wait_serving(group).await?;
        cluster.capture(client, group).await?.equal()?;
        cluster.stop_all().await?;
        tell.shown(
            "the snapshots of all nodes at one checkpoint are equal; all stopped with exit code 0",
        );
        Ok(())
    }

    /// Stops the writer, writes once more, and compares the guest's count with what was
    /// acknowledged.
    async fn stop(self, client: &Client) -> Result<Counted> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let counted = self.task.await.context("the writer panicked")??;
        let session = client.open_session().await?;
        let last = count(session.apply("the last one").await.context("the last write")?.outcome)?;
        let (least, most) = (counted.acknowledged, counted.acknowledged + counted.unknown);
        ensure!(
            (least + 1..=most + 1).contains(&last),
            "the guest applied {} commands; {least} were acknowledged and {} had no answer",
            last - 1,
            counted.unknown
        );
        Ok(Counted { last, ..counted })
    }
}

async fn write(client: Client, shared: Arc<Shared>) -> Result<Counted> {
    let mut counted = Counted::default();
    let mut session = client.open_session().await?;
    for number in 0_u64.. {
        while shared.rests() {
            tokio::time::sleep(REST).await;
        }
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let command = format!("{number:016x}").repeat(shared.command_bytes / 16);
        match session.apply(command).await {
            Ok(reply) => {
                let applied = count(reply.outcome)?;
                ensure!(
                    applied > counted.last,
                    "the guest's count did not rise: {applied} after {}",
                    counted.last
                );
                (counted.last, counted.acknowledged) = (applied, counted.acknowledged + 1);
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::Refused { refusal, .. }) => {
                if refusal == "disk-full" {
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(Error::Unknown { .. }) => counted.unknown += 1,
            Err(Error::SessionExpired { .. }) => {
                counted.unknown += 1;
                session = client.open_session().await?;
            }
            Err(other) => bail!("a write failed: {other}"),
        }
        tokio::time::sleep(Duration::from_millis(shared.pause_ms.load(Ordering::Relaxed))).await;
    }
    Ok(counted)
}

fn count(outcome: Outcome) -> Result<u64> {
    let Outcome::Ok(answer) = outcome else { bail!("a write was answered {outcome:?}") };
    std::str::from_utf8(&answer)
        .ok()
        .and_then(|text| text.parse().ok())
        .context("an answer that is not a number")
}

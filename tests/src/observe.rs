//! Observing a cluster as its clients can, and waiting for conditions.
//!
//! - A wait has a time limit and a sentence that names its condition; if it times out, the error
//!   shows every node.
//! - A node that exits during a wait ends the wait at once.
//! - Nodes publish their status only now and then: a linearizable query gives the newest index.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lockstep_client::v1::group_status::Role;
use lockstep_client::v1::{GroupStatus, Snapshot, StatusResponse};
use lockstep_client::{Client, Consistency, Options};

use crate::cluster::Cluster;

/// How long an election, a start or a rejoin may take: far longer than any of them needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a wait checks its condition.
const POLL: Duration = Duration::from_millis(50);
/// How long it may take until every node has captured a checkpoint or skipped it.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);
/// Most checkpoints that are asked for until all nodes have captured one.
const CHECKPOINTS_MAX: u32 = 10;

/// One checkpoint, and what each node captured there.
#[derive(Clone, Debug)]
pub struct Captured {
    pub index: u64,
    pub by_node: BTreeMap<u16, Snapshot>,
}

impl Captured {
    /// The snapshot that all nodes have; an error that lists them if they differ.
    pub fn equal(&self) -> Result<&Snapshot> {
        let first = self.by_node.values().next().context("no node captured the checkpoint")?;
        if self.by_node.values().any(|other| other != first) {
            bail!("the snapshots at checkpoint {} differ: {:?}", self.index, self.by_node);
        }
        Ok(first)
    }
}

impl Cluster {
    /// A client of the cluster's only group.
    pub fn client(&self) -> Result<Client> {
        self.client_of("", Options::default())
    }

    /// A client of one group.
    pub fn client_of(&self, group: &str, options: Options) -> Result<Client> {
        let endpoints = self.nodes().into_iter().map(|node| self.address(node).to_owned());
        Ok(Client::connect(endpoints, Options { group: group.to_owned(), ..options })?)
    }

    /// The status of a node; `None` if it does not answer.
    pub async fn status(&self, node: u16) -> Option<StatusResponse> {
        let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
        let client = Client::connect([self.address(node)], options).ok()?;
        client.status(self.address(node)).await.ok()
    }

    /// The status of one of a node's groups.
    pub async fn group(&self, node: u16, group: &str) -> Option<GroupStatus> {
        self.status(node).await?.groups.into_iter().find(|status| status.name == group)
    }

    /// The running node that reports that it leads and serves, if one does. After a change of
    /// leader two nodes may report that for a moment; then the one with the higher term is meant.
    pub async fn leader(&self, group: &str) -> Option<u16> {
        let mut leader = None;
        for node in self.running() {
            let Some(status) = self.group(node, group).await else { continue };
            if status.role() == Role::Leader && status.state == "serving" {
                leader = leader.max(Some((status.term, node)));
            }
        }
        leader.map(|(_, node)| node)
    }

    /// Waits until `condition` returns a value.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        condition: impl AsyncFn(&Self) -> Option<T>,
    ) -> Result<T> {
        let since = Instant::now();
        loop {
            self.check_running().with_context(|| format!("waiting for {what}"))?;
            if let Some(found) = condition(self).await {
                return Ok(found);
            }
            if since.elapsed() >= patience {
                let view = self.view().await;
                bail!(
                    "timed out after {patience:?} waiting for {what}\n{view}logs: {}",
                    self.root().display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for a leader other than `not`.
    pub async fn wait_leader(&mut self, group: &str, not: Option<u16>) -> Result<u16> {
        let found = async |cluster: &Self| cluster.leader(group).await.filter(|l| Some(*l) != not);
        self.wait_for(&format!("a leader of {group}"), PATIENCE, found).await
    }

    /// Waits until every running node serves the group as a voter and one of them leads it; returns
    /// the leader.
    pub async fn wait_serving(&mut self, group: &str) -> Result<u16> {
        self.wait_serving_within(group, PATIENCE).await
    }

    /// Does what [`Cluster::wait_serving`] does, with a time limit of its own.
    pub async fn wait_serving_within(&mut self, group: &str, patience: Duration) -> Result<u16> {
        let all_serve = async |cluster: &Self| {
            for node in cluster.running() {
                let status = cluster.group(node, group).await?;
                let voter = matches!(status.role(), Role::Leader | Role::Follower);
                (voter && status.state == "serving").then_some(())?;
            }
            cluster.leader(group).await
        };
        self.wait_for(&format!("every node to serve {group}"), patience, all_serve).await
    }

    /// Waits until a node serves and has applied everything up to `index`.
    pub async fn wait_applied(
        &mut self,
        node: u16,
        group: &str,
        index: u64,
        patience: Duration,
    ) -> Result<()> {
        let there = async |cluster: &Self| {
            let status = cluster.group(node, group).await?;
            (status.state == "serving" && status.applied >= index).then_some(())
        };
        self.wait_for(&format!("node {node} to apply {index} of {group}"), patience, there).await
    }

    /// An index that is not before any command acknowledged so far.
    pub async fn settled_index(&self, client: &Client) -> Result<u64> {
        // The answer does not matter, only the index at which it was given.
        Ok(client.query("len", Consistency::Linearizable).await?.applied_index)
    }

    /// Takes a checkpoint after everything acknowledged so far and waits until every running node
    /// has its snapshot.
    pub async fn capture(&mut self, client: &Client, group: &str) -> Result<Captured> {
        let floor = self.settled_index(client).await?;
        // A replica that is still behind may come to the checkpoint while its guest is being built,
        // where it takes no snapshot.
        for node in self.running() {
            self.wait_applied(node, group, floor, CHECKPOINT_PATIENCE).await?;
        }
        let what = format!("every node to capture {group} after {floor}");
        for _ in 0..CHECKPOINTS_MAX {
            let skipped = self.checkpoints_skipped(group).await;
            self.checkpoint(client).await?;
            let all_or_skipped = async |cluster: &Self| match cluster.captured(group, floor).await {
                Some(captured) => Some(Some(captured)),
                // A replica that was still capturing skips the checkpoint: another one is needed.
                None => (cluster.checkpoints_skipped(group).await > skipped).then_some(None),
            };
            if let Some(captured) =
                self.wait_for(&what, CHECKPOINT_PATIENCE, all_or_skipped).await?
            {
                return Ok(captured);
            }
        }
        bail!("{CHECKPOINTS_MAX} checkpoints were not enough for {what}\n{}", self.view().await)
    }

    /// Asks for a checkpoint until it is accepted: after failed snapshots the next one has to wait.
    async fn checkpoint(&mut self, client: &Client) -> Result<()> {
        let taken = async |_: &Self| match client.checkpoint().await {
            Ok(_) => Some(Ok(())),
            Err(error) if error.to_string().contains("checkpoint-too-soon") => None,
            Err(error) => Some(Err(error)),
        };
        let taken = self.wait_for("a checkpoint to be taken", CHECKPOINT_PATIENCE, taken).await?;
        taken.context("asking for a checkpoint")
    }

    /// How many checkpoints the running nodes have skipped.
    async fn checkpoints_skipped(&self, group: &str) -> u64 {
        let mut skipped = 0;
        for node in self.running() {
            skipped += self.group(node, group).await.map_or(0, |status| status.checkpoints_skipped);
        }
        skipped
    }

    /// The newest checkpoint, at `floor` or later, of which every running node has a snapshot.
    async fn captured(&self, group: &str, floor: u64) -> Option<Captured> {
        let mut by_index: BTreeMap<u64, BTreeMap<u16, Snapshot>> = BTreeMap::new();
        let running = self.running();
        for node in &running {
            for snapshot in self.group(*node, group).await?.snapshots {
                by_index.entry(snapshot.index).or_default().insert(*node, snapshot);
            }
        }
        by_index
            .into_iter()
            .filter(|(index, by_node)| *index >= floor && by_node.len() == running.len())
            .map(|(index, by_node)| Captured { index, by_node })
            .next_back()
    }

    /// A line for every node and group, which a wait that times out shows.
    pub async fn view(&self) -> String {
        let mut text = String::new();
        for node in self.running() {
            let Some(status) = self.status(node).await else {
                let _ = writeln!(text, "  node {node} does not answer");
                continue;
            };
            for group in &status.groups {
                let _ = writeln!(
                    text,
                    "  node {node} {}: {} {:?} t{} commit {} applied {} log {}-{} snaps {:?} {}",
                    group.name,
                    group.state,
                    group.role(),
                    group.term,
                    group.commit,
                    group.applied,
                    group.first_index,
                    group.last_index,
                    group.snapshots.iter().map(|s| s.index).collect::<Vec<_>>(),
                    group.cause,
                );
            }
            for peer in &status.peer_errors {
                let _ = writeln!(text, "  node {node} of peer {}: {}", peer.node, peer.error);
            }
        }
        text
    }
}

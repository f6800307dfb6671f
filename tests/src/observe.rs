//! Looking at a cluster through its clients' door, and waiting for what is to come true.
//!
//! - A wait has a patience and a sentence; when it ends in vain the error shows every node.
//! - A node that ended while one waits ends the wait at once.
//! - Nodes publish their status twice a second; whoever needs the newest index asks a linearizable
//!   query.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lockstep_client::v1::group_status::Role;
use lockstep_client::v1::{GroupStatus, Snapshot, StatusResponse};
use lockstep_client::{Client, Consistency, Options};

use crate::cluster::Cluster;

/// What a cluster may take for an election, a start, a rejoin: far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a mark may take until every node captured it or let it pass.
const MARK_PATIENCE: Duration = Duration::from_secs(60);
/// Marks that may be asked for until one is captured by all.
const MARKS_MAX: u32 = 10;

/// One mark, and what each node captured there.
#[derive(Clone, Debug)]
pub struct Captured {
    pub index: u64,
    pub by_node: BTreeMap<u16, Snapshot>,
}

impl Captured {
    /// The one snapshot all nodes have, or who has which.
    pub fn equal(&self) -> Result<&Snapshot> {
        let first = self.by_node.values().next().context("no node captured the mark")?;
        if self.by_node.values().any(|other| other != first) {
            bail!("the snapshots at mark {} differ: {:?}", self.index, self.by_node);
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

    /// What a node says of itself; `None` if it says nothing.
    pub async fn status(&self, node: u16) -> Option<StatusResponse> {
        let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
        let client = Client::connect([self.address(node)], options).ok()?;
        client.status(self.address(node)).await.ok()
    }

    /// What a node says of one of its groups.
    pub async fn group(&self, node: u16, group: &str) -> Option<GroupStatus> {
        self.status(node).await?.groups.into_iter().find(|status| status.name == group)
    }

    /// The running node that leads, if one says so and serves. After a change two may say so for a
    /// moment; the higher term is right.
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

    /// Waits until a condition gives something.
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
                    "waited {patience:?} in vain for {what}\n{view}logs: {}",
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

    /// Waits until every running node serves the group as a voter and one of them leads it; which.
    pub async fn wait_serving(&mut self, group: &str) -> Result<u16> {
        self.wait_serving_within(group, PATIENCE).await
    }

    /// The same, with another patience.
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

    /// An index behind everything that was acknowledged so far.
    pub async fn settled_index(&self, client: &Client) -> Result<u64> {
        // The answer does not matter, only the index it was given at.
        Ok(client.query("len", Consistency::Linearizable).await?.applied_index)
    }

    /// Takes a mark behind everything acknowledged so far and waits until every running node has
    /// its snapshot.
    pub async fn capture(&mut self, client: &Client, group: &str) -> Result<Captured> {
        let floor = self.settled_index(client).await?;
        let what = format!("every node to capture {group} behind {floor}");
        for _ in 0..MARKS_MAX {
            let skipped = self.marks_skipped(group).await;
            self.mark(client).await?;
            let all_or_skipped = async |cluster: &Self| match cluster.captured(group, floor).await {
                Some(captured) => Some(Some(captured)),
                // A replica that was still capturing let the mark pass: another one is needed.
                None => (cluster.marks_skipped(group).await > skipped).then_some(None),
            };
            if let Some(captured) = self.wait_for(&what, MARK_PATIENCE, all_or_skipped).await? {
                return Ok(captured);
            }
        }
        bail!("{MARKS_MAX} marks were not enough for {what}\n{}", self.view().await)
    }

    /// Asks for a mark until one is taken: behind snapshots that failed the next one waits.
    async fn mark(&mut self, client: &Client) -> Result<()> {
        let taken = async |_: &Self| match client.mark().await {
            Ok(_) => Some(Ok(())),
            Err(error) if error.to_string().contains("mark-too-soon") => None,
            Err(error) => Some(Err(error)),
        };
        let taken = self.wait_for("a mark to be taken", MARK_PATIENCE, taken).await?;
        taken.context("asking for a mark")
    }

    /// Marks that running nodes let pass.
    async fn marks_skipped(&self, group: &str) -> u64 {
        let mut skipped = 0;
        for node in self.running() {
            skipped += self.group(node, group).await.map_or(0, |status| status.marks_skipped);
        }
        skipped
    }

    /// The newest mark from `floor` on that every running node has a snapshot of.
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

    /// Every node and group in a line: what a failed wait shows.
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
                    "  node {node} {}: {} {:?} t{} commit {}, applied {} log {}-{} marks {:?} {}",
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

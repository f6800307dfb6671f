//! Three etcd processes, as Debian ships them, with etcd's own defaults.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::Channel;

use self::wire::kv_client::KvClient;
use self::wire::maintenance_client::MaintenanceClient;
use super::load::{self, Keys, Ready, Tally, Window, ready};
use super::system::{NODES, PATIENCE, POLL};
use crate::process::Process;

#[expect(unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]
mod wire {
    include!("generated/etcdserverpb.rs");
}

const FSYNCS: &str = "etcd_disk_wal_fsync_duration_seconds_count ";
/// Puts under way while the key space is filled.
const FILLERS: u64 = 64;

/// The processes and their addresses.
pub(crate) struct Etcd {
    processes: Vec<Process>,
    addresses: Vec<String>,
}

/// The version of the `etcd` in the path, if there is one.
pub(crate) fn version() -> Option<String> {
    let output = std::process::Command::new("etcd").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("etcd Version: "))?;
    Some(line.trim().to_owned())
}

impl Etcd {
    /// Starts the processes on `host`, with their files in `dir`.
    pub(crate) fn start(dir: &Path, host: &str) -> Result<Self> {
        let peer = |node: usize| format!("http://{host}:{}", 7_400 + node);
        let members: Vec<String> =
            (1..=NODES).map(|node| format!("n{node}={}", peer(node))).collect();
        let (members, mut processes, mut addresses) = (members.join(","), Vec::new(), Vec::new());
        for node in 1..=NODES {
            let address = format!("{host}:{}", 7_300 + node);
            let (name, client, peer) =
                (format!("n{node}"), format!("http://{address}"), peer(node));
            let data = dir.join(format!("etcd-{node}")).display().to_string();
            let args = [
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--initial-cluster", &members],
                ["--initial-cluster-state", "new"],
                ["--initial-cluster-token", "bench"],
                ["--logger", "zap"],
                ["--log-level", "warn"],
            ];
            let log = dir.join(format!("etcd-{node}.log"));
            processes.push(Process::start(Path::new("etcd"), args.as_flattened(), &log)?);
            addresses.push(address);
        }
        Ok(Self { processes, addresses })
    }

    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Waits until one of them leads; returns which.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            for (number, address) in self.addresses.iter().enumerate() {
                if leads(address).await.unwrap_or(false) {
                    return Ok(number);
                }
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("etcd had no leader for {PATIENCE:?}")
    }

    /// Writes every key once.
    pub(crate) async fn fill(&self, leader: usize) -> Result<()> {
        let channel = load::dial(&self.addresses[leader], 1).await?.remove(0);
        let mut fillers = tokio::task::JoinSet::new();
        for first in 0..FILLERS {
            let mut client = KvClient::new(channel.clone());
            fillers.spawn(async move {
                let mut keys = Keys::of_client(0);
                for number in (first..load::KEYS).step_by(FILLERS as usize) {
                    client.put(put(load::key(number), keys.value())).await?;
                }
                Ok::<(), tonic::Status>(())
            });
        }
        while let Some(done) = fillers.join_next().await {
            done.context("a filler panicked")?.context("filling etcd")?;
        }
        Ok(())
    }

    /// Clients of the leader, spread over connections.
    pub(crate) async fn clients(
        &self,
        leader: usize,
        count: usize,
        connections: usize,
        reads: bool,
    ) -> Result<Vec<Ready>> {
        let channels = load::dial(&self.addresses[leader], connections).await?;
        let client = |number: usize| {
            let client = KvClient::new(channels[number % connections].clone());
            let keys = Keys::of_client(number);
            if reads {
                ready(move |window| read(client, keys, window))
            } else {
                ready(move |window| write(client, keys, window))
            }
        };
        Ok((0..count).map(client).collect())
    }

    /// How often each process has synced its log, by its own count.
    pub(crate) async fn fsyncs(&self) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for address in &self.addresses {
            let text = metrics(address).await.with_context(|| format!("metrics of {address}"))?;
            let count = text.lines().find_map(|line| line.strip_prefix(FSYNCS));
            let count = count.with_context(|| format!("{address} shows no metric {FSYNCS}"))?;
            counts.push(count.trim().parse::<f64>().context("a counter")? as u64);
        }
        Ok(counts)
    }
}

async fn write(mut client: KvClient<Channel>, mut keys: Keys, window: Window) -> Tally {
    let mut tally = Tally::default();
    while let Some(since) = window.start() {
        let key = keys.key();
        let answer = client.put(put(key, keys.value())).await;
        tally.ended(&window, since, answer).await;
    }
    tally
}

async fn read(mut client: KvClient<Channel>, mut keys: Keys, window: Window) -> Tally {
    let mut tally = Tally::default();
    while let Some(since) = window.start() {
        let answer = client.range(wire::RangeRequest { key: keys.key().into() }).await;
        let found = answer.map_err(|status| status.to_string()).and_then(|answer| {
            let found = answer.into_inner().kvs.first().is_some_and(|kv| !kv.value.is_empty());
            found.then_some(()).ok_or_else(|| "a key without a value".to_owned())
        });
        tally.ended(&window, since, found).await;
    }
    tally
}

fn put(key: String, value: &[u8]) -> wire::PutRequest {
    wire::PutRequest { key: key.into(), value: Bytes::copy_from_slice(value) }
}

async fn leads(address: &str) -> Result<bool> {
    let channel = load::dial(address, 1).await?.remove(0);
    let status = MaintenanceClient::new(channel).status(wire::StatusRequest {}).await?;
    let status = status.into_inner();
    let own = status.header.context("an answer without a header")?.member_id;
    Ok(status.leader != 0 && status.leader == own)
}

/// The metrics of a member, over HTTP.
async fn metrics(address: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    let all = socket.read_to_string(&mut text);
    tokio::time::timeout(Duration::from_secs(5), all).await.context("no answer")??;
    Ok(text)
}

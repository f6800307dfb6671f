//! The systems that are compared, and the cases they are compared in.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::echo::Echo;
use super::etcd::Etcd;
use super::load::Ready;
use super::replicas::Replicas;
use crate::cluster;
use crate::process::Process;

pub(crate) const NODES: usize = 3;
/// How long a cluster may take until it serves.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a wait checks whether the cluster serves.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// A system that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// Lockstep with the guest `kv`.
    Lockstep,
    /// Lockstep with a built-in state machine.
    Native,
    Etcd,
    Echo,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Lockstep, Kind::Native, Kind::Etcd, Kind::Echo];

/// A case: how many clients do what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Case {
    pub name: &'static str,
    pub what: What,
    /// How many clients, or streams.
    pub clients: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum What {
    /// Unary calls, one after the other.
    Write,
    /// Unary calls that read linearizably.
    Read,
    /// This many commands under way on each stream.
    Stream { in_flight: usize },
    /// This many commands under way on each stream of the client library, with all that it does for
    /// its users.
    Pipeline { in_flight: usize },
}

pub(crate) const CASES: [Case; 6] = [
    Case { name: "write-1", what: What::Write, clients: 1 },
    Case { name: "write-64", what: What::Write, clients: 64 },
    Case { name: "write-256", what: What::Write, clients: 256 },
    Case { name: "read-256", what: What::Read, clients: 256 },
    Case { name: "stream-8", what: What::Stream { in_flight: 256 }, clients: 8 },
    Case { name: "pipeline-8", what: What::Pipeline { in_flight: 256 }, clients: 8 },
];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Native => "native",
            Self::Etcd => "etcd",
            Self::Echo => "echo",
        }
    }

    /// Whether the system has anything to measure in this case.
    pub(crate) fn does(self, what: What) -> bool {
        match (self, what) {
            (Self::Lockstep | Self::Native, _) => true,
            (Self::Etcd, What::Stream { .. } | What::Pipeline { .. }) => false,
            (Self::Etcd, What::Write | What::Read) => true,
            (Self::Echo, What::Read | What::Pipeline { .. }) => false,
            (Self::Echo, What::Write | What::Stream { .. }) => true,
        }
    }
}

/// A system that runs.
pub(crate) enum System {
    Lockstep(Replicas),
    Etcd(Etcd),
    Echo(Echo),
}

impl System {
    /// Starts the system's processes on `host`, with their files in `dir`.
    pub(crate) fn start(kind: Kind, dir: &Path, host: &str) -> Result<Self> {
        Ok(match kind {
            Kind::Lockstep => {
                let module = cluster::guest_file("kv")?.display().to_string();
                Self::Lockstep(Replicas::start(dir, host, &module)?)
            }
            Kind::Native => Self::Lockstep(Replicas::start(dir, host, "native:register")?),
            Kind::Etcd => Self::Etcd(Etcd::start(dir, host)?),
            Kind::Echo => Self::Echo(Echo::start(dir, host)?),
        })
    }

    pub(crate) fn processes(&self) -> &[Process] {
        match self {
            Self::Lockstep(replicas) => replicas.processes(),
            Self::Etcd(etcd) => etcd.processes(),
            Self::Echo(echo) => echo.processes(),
        }
    }

    /// Waits until the system serves; returns which process leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        match self {
            Self::Lockstep(replicas) => replicas.leader().await,
            Self::Etcd(etcd) => etcd.leader().await,
            Self::Echo(echo) => echo.wait().await.map(|()| 0),
        }
    }

    /// Gives every key a value.
    pub(crate) async fn fill(&self, leader: usize) -> Result<()> {
        match self {
            Self::Lockstep(replicas) => replicas.fill(leader).await,
            Self::Etcd(etcd) => etcd.fill(leader).await,
            Self::Echo(_) => Ok(()),
        }
    }

    /// Clients of the leader, ready to run.
    pub(crate) async fn clients(
        &self,
        case: Case,
        leader: usize,
        connections: usize,
    ) -> Result<Vec<Ready>> {
        let (count, reads) = (case.clients, case.what == What::Read);
        let connections = connections.min(count);
        match (self, case.what) {
            (Self::Lockstep(replicas), What::Write | What::Read) => {
                replicas.clients(leader, count, connections, reads).await
            }
            (Self::Lockstep(replicas), What::Stream { in_flight }) => {
                replicas.streams(leader, count, in_flight).await
            }
            (Self::Lockstep(replicas), What::Pipeline { in_flight }) => {
                replicas.pipelines(leader, count, in_flight).await
            }
            (Self::Etcd(etcd), What::Write | What::Read) => {
                etcd.clients(leader, count, connections, reads).await
            }
            (Self::Echo(echo), What::Write) => echo.clients(count, connections).await,
            (Self::Echo(echo), What::Stream { in_flight }) => echo.streams(count, in_flight).await,
            (Self::Etcd(_), What::Stream { .. } | What::Pipeline { .. })
            | (Self::Echo(_), What::Read | What::Pipeline { .. }) => {
                bail!("this system does not do {}", case.name)
            }
        }
    }

    /// How often each process has synced its log since its start; `None` if the system syncs
    /// nothing.
    pub(crate) async fn fsyncs(&self) -> Result<Option<Vec<u64>>> {
        match self {
            Self::Lockstep(replicas) => replicas.fsyncs().await.map(Some),
            Self::Etcd(etcd) => etcd.fsyncs().await.map(Some),
            Self::Echo(_) => Ok(None),
        }
    }
}

//! Three `lockstep serve` processes with one group and the default configuration.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_client::v1::group_status::Role;
use lockstep_client::v1::lockstep_client::LockstepClient;
use lockstep_client::{Client, Options, Outcome, Reply, Session, v1};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::load::{self, Keys, Ready, Tally, Window, ready};
use super::system::{NODES, PATIENCE, POLL};
use crate::cluster;
use crate::process::Process;

/// How long to wait until every node has published its status: each does so at least once a second.
const STATUS_AGE: Duration = Duration::from_millis(1_200);

/// The processes and their addresses.
pub(crate) struct Replicas {
    processes: Vec<Process>,
    addresses: Vec<String>,
}

impl Replicas {
    /// Starts the processes on `host`, with their files in `dir`. `module` is as in `node.toml`.
    pub(crate) fn start(dir: &Path, host: &str, module: &str) -> Result<Self> {
        let binary = cluster::binary()?;
        let addresses: Vec<String> =
            (1..=NODES).map(|node| format!("{host}:{}", 7_100 + node)).collect();
        let mut processes = Vec::new();
        for node in 1..=NODES {
            let mut text = format!(
                "cluster = \"bench\"\nnode = {node}\ndata-dir = \"lockstep-{node}\"\n\n[nodes]\n"
            );
            for (number, address) in addresses.iter().enumerate() {
                writeln!(text, "{} = \"{address}\"", number + 1).expect("a string takes all");
            }
            write!(text, "\n[[groups]]\nname = \"kv\"\nmodule = \"{module}\"\n")
                .expect("a string takes all");
            let file = dir.join(format!("lockstep-{node}.toml"));
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            let config = file.display().to_string();
            let log = dir.join(format!("lockstep-{node}.log"));
            processes.push(Process::start(&binary, &["serve", "--config", &config], &log)?);
        }
        Ok(Self { processes, addresses })
    }

    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// Waits until all nodes serve and one leads; returns which.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let since = Instant::now();
        let mut seen = String::new();
        while since.elapsed() < PATIENCE {
            let states = self.states().await;
            let serving = states.iter().flatten().filter(|group| group.state == "serving").count();
            let leads = |state: &Option<v1::GroupStatus>| {
                state.as_ref().is_some_and(|group| group.role() == Role::Leader)
            };
            match states.iter().position(leads) {
                Some(leader) if serving == NODES => return Ok(leader),
                Some(_) | None => seen = describe(&states),
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("no leader and {NODES} serving nodes within {PATIENCE:?}: {seen}")
    }

    /// Writes every key once, over a stream.
    pub(crate) async fn fill(&self, leader: usize) -> Result<()> {
        let channel = load::dial(&self.addresses[leader], 1).await?.remove(0);
        let mut client = connect(channel);
        let mut keys = Keys::of_client(0);
        for first in (0..load::KEYS).step_by(500) {
            let commands = (first..first + 500).map(|tag| v1::StreamCommand {
                tag,
                sequence: 0,
                command: load::set(&load::key(tag), keys.value()),
            });
            let message =
                v1::ApplyStreamRequest { commands: commands.collect(), ..Default::default() };
            let answers = client.apply_stream(tokio_stream::iter([message])).await;
            let mut answers = answers.context("filling lockstep")?.into_inner();
            let mut good = 0;
            while let Some(message) = answers.message().await.context("filling lockstep")? {
                good += message.answers.iter().filter(|answer| is_good(answer)).count();
            }
            ensure!(good == 500, "filling lockstep: only {good} of 500 commands were applied");
        }
        Ok(())
    }

    /// Unary clients of the leader, spread over connections; each writer has a session of its own.
    pub(crate) async fn clients(
        &self,
        leader: usize,
        count: usize,
        connections: usize,
        reads: bool,
    ) -> Result<Vec<Ready>> {
        let channels = load::dial(&self.addresses[leader], connections).await?;
        let mut clients = Vec::new();
        for number in 0..count {
            let mut client = connect(channels[number % connections].clone());
            let keys = Keys::of_client(number);
            clients.push(if reads {
                ready(move |window| read(client, keys, window))
            } else {
                let session = open_session(&mut client, number).await?;
                ready(move |window| write(client, session, keys, window))
            });
        }
        Ok(clients)
    }

    /// Streams to the leader, each with a connection and a session of its own.
    pub(crate) async fn streams(
        &self,
        leader: usize,
        count: usize,
        in_flight: usize,
    ) -> Result<Vec<Ready>> {
        let channels = load::dial(&self.addresses[leader], count).await?;
        let mut clients = Vec::new();
        for (number, channel) in channels.into_iter().enumerate() {
            let mut client = connect(channel);
            let session = open_session(&mut client, number).await?;
            let keys = Keys::of_client(number);
            clients.push(ready(move |window| stream(client, session, keys, in_flight, window)));
        }
        Ok(clients)
    }

    /// Pipelines of `lockstep-client` to the leader, each with a connection and a session of its
    /// own.
    pub(crate) async fn pipelines(
        &self,
        leader: usize,
        count: usize,
        in_flight: usize,
    ) -> Result<Vec<Ready>> {
        let mut clients = Vec::new();
        for number in 0..count {
            let client = Client::connect([&self.addresses[leader]], Options::default())?;
            let session = client.open_session().await.context("opening a session")?;
            let keys = Keys::of_client(number);
            clients.push(ready(move |window| pipeline(session, keys, in_flight, window)));
        }
        Ok(clients)
    }

    /// Clients of one node, each with a connection of its own.
    pub(crate) async fn connect(
        &self,
        node: usize,
        connections: usize,
    ) -> Result<Vec<LockstepClient<Channel>>> {
        let channels = load::dial(&self.addresses[node], connections).await?;
        Ok(channels.into_iter().map(connect).collect())
    }

    /// How often each node has synced its log, by its own count. Exact only while no calls are
    /// under way.
    pub(crate) async fn fsyncs(&self) -> Result<Vec<u64>> {
        tokio::time::sleep(STATUS_AGE).await;
        let states = self.states().await.into_iter();
        let counts = states.map(|state| state.map(|group| group.log_fsyncs));
        counts.collect::<Option<_>>().context("a node gave no status")
    }

    async fn states(&self) -> Vec<Option<v1::GroupStatus>> {
        let mut states = Vec::new();
        for address in &self.addresses {
            states.push(state(address).await.ok());
        }
        states
    }
}

async fn state(address: &str) -> Result<v1::GroupStatus> {
    let channel = load::dial(address, 1).await?.remove(0);
    let status = connect(channel).status(v1::StatusRequest::default()).await?;
    status.into_inner().groups.pop().context("a node without a group")
}

fn describe(states: &[Option<v1::GroupStatus>]) -> String {
    let words = states.iter().map(|state| match state {
        Some(group) => format!("{} {} {}", group.role().as_str_name(), group.state, group.cause),
        None => "silent".to_owned(),
    });
    words.collect::<Vec<_>>().join("; ")
}

fn connect(channel: Channel) -> LockstepClient<Channel> {
    const MESSAGE_BYTES_MAX: usize = 8 << 20;
    LockstepClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(super) async fn open_session(
    client: &mut LockstepClient<Channel>,
    number: usize,
) -> Result<u64> {
    let request = v1::OpenSessionRequest { group: String::new(), nonce: number as u64 };
    let response = client.open_session(request).await.context("opening a session")?;
    Ok(response.into_inner().session)
}

async fn write(
    mut client: LockstepClient<Channel>,
    session: u64,
    mut keys: Keys,
    window: Window,
) -> Tally {
    use v1::apply_response::Outcome as Wire;
    let (mut tally, mut sequence) = (Tally::default(), 0);
    while let Some(since) = window.start() {
        sequence += 1;
        let request = v1::ApplyRequest {
            group: String::new(),
            session,
            sequence,
            lowest_unanswered: sequence,
            command: keys.set(),
            relief: false,
        };
        let answer = client.apply(request).await.map_err(|status| status.to_string());
        let applied = answer.and_then(|answer| match answer.into_inner().outcome {
            Some(Wire::Ok(_)) => Ok(()),
            other @ (Some(Wire::Rejected(_)) | None) => Err(format!("{other:?}")),
        });
        tally.ended(&window, since, applied).await;
    }
    tally
}

async fn read(mut client: LockstepClient<Channel>, mut keys: Keys, window: Window) -> Tally {
    use v1::query_response::Answer;
    let mut tally = Tally::default();
    while let Some(since) = window.start() {
        let request = v1::QueryRequest {
            group: String::new(),
            request: format!("get {}", keys.key()).into(),
            local: false,
        };
        let answer = client.query(request).await.map_err(|status| status.to_string());
        let found = answer.and_then(|answer| match answer.into_inner().answer {
            Some(Answer::Ok(value)) if value.len() == load::VALUE_BYTES => Ok(()),
            other => Err(format!("{other:?}")),
        });
        tally.ended(&window, since, found).await;
    }
    tally
}

/// Keeps `in_flight` commands under way: sends as many new ones as it gets answers, at once.
async fn stream(
    mut client: LockstepClient<Channel>,
    session: u64,
    mut keys: Keys,
    in_flight: usize,
    window: Window,
) -> Tally {
    let mut tally = Tally::default();
    let mut open: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut next = 1;
    let mut message = |count: usize, open: &mut BTreeMap<u64, Instant>, since: Instant| {
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            open.insert(next, since);
            commands.push(v1::StreamCommand { tag: next, sequence: next, command: keys.set() });
            next += 1;
        }
        let lowest_unanswered = open.first_key_value().map_or(next, |(lowest, _)| *lowest);
        v1::ApplyStreamRequest { session, lowest_unanswered, commands, ..Default::default() }
    };
    // At most as many messages wait as commands are under way.
    let (outgoing, body) = mpsc::channel(in_flight);
    let Some(since) = window.start() else { return tally };
    let mut sent = outgoing.send(message(in_flight, &mut open, since)).await.is_ok();
    let mut answers = match client.apply_stream(ReceiverStream::new(body)).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            tally.failed(status).await;
            return tally;
        }
    };
    while sent && !open.is_empty() {
        let batch = match answers.message().await {
            Ok(Some(batch)) => batch.answers,
            Ok(None) => return end(tally, "the node ended the stream").await,
            Err(status) => return end(tally, &status.to_string()).await,
        };
        let count = batch.len();
        for answer in batch {
            let since = open.remove(&answer.tag);
            match since {
                Some(since) if is_good(&answer) => tally.answered(&window, since),
                Some(_) | None => tally.failed(format!("{answer:?}")).await,
            }
        }
        if let Some(now) = window.start() {
            sent = outgoing.send(message(count, &mut open, now)).await.is_ok();
        }
    }
    tally
}

/// Keeps `in_flight` commands under way; waits for answers in the order of the commands.
async fn pipeline(session: Session, mut keys: Keys, in_flight: usize, window: Window) -> Tally {
    let mut tally = Tally::default();
    let pipeline = session.pipeline();
    let mut open = VecDeque::new();
    loop {
        while open.len() < in_flight
            && let Some(since) = window.start()
        {
            match pipeline.submit(keys.set()).await {
                Ok(pending) => open.push_back((since, pending)),
                Err(error) => tally.failed(error).await,
            }
        }
        let Some((since, pending)) = open.pop_front() else { return tally };
        match pending.await {
            Ok(Reply { outcome: Outcome::Ok(_), .. }) => tally.answered(&window, since),
            Ok(reply) => tally.failed(format!("{reply:?}")).await,
            Err(error) => tally.failed(error).await,
        }
    }
}

async fn end(mut tally: Tally, why: &str) -> Tally {
    tally.failed(why).await;
    tally
}

fn is_good(answer: &v1::StreamAnswer) -> bool {
    matches!(answer.answer, Some(v1::stream_answer::Answer::Ok(_)))
}

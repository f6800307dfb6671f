//! The text that Prometheus reads, made from the groups' reports at each scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_core::limits;
use lockstep_core::memory::MemoryUse;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::group::log_lane::LogTimes;
use crate::group::{GroupHandle, GroupReport};
use crate::metrics::port::PortRows;
use crate::metrics::process::ProcessRows;
use crate::metrics::{RECEIVE_ENDS, REPLY_ENDS, SEND_ENDS};
use crate::router::Router;
use crate::rpc::port::PortState;
use crate::rpc::server::is_ready;
use crate::rpc::status::state_word;
use crate::store::reserve::{PRODUCERS, REASONS};

/// All metrics of a node. While the node starts, only those of the process and of the port exist.
pub struct NodeMetrics {
    registry: Registry,
    sources: Arc<OnceLock<Sources>>,
}

/// Where the metrics of a started node come from.
pub(crate) struct Sources {
    pub router: Router,
    pub clock: Arc<dyn Clock>,
    pub log: LogTimes,
    /// True once the node is about to stop and turns clients away.
    pub closing: watch::Receiver<bool>,
}

impl NodeMetrics {
    pub fn new(port: Arc<PortState>) -> Self {
        let mut registry = Registry::default();
        let sources = Arc::<OnceLock<Sources>>::default();
        registry.sub_registry_with_prefix("process").register_collector(Box::new(ProcessRows));
        let ours = registry.sub_registry_with_prefix("lockstep");
        ours.register_collector(Box::new(PortRows(port)));
        ours.register_collector(Box::new(Reports(Arc::clone(&sources))));
        Self { registry, sources }
    }

    /// Adds the groups' metrics to the text from now on.
    pub(crate) fn started(&self, sources: Sources) {
        // The value cannot be set already: a node starts once.
        let _ = self.sources.set(sources);
    }

    /// All metrics, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a string takes everything");
        out
    }
}

/// Converts OpenMetrics text to Prometheus' older text format, which describes a counter under the
/// name of its rows (it ends with `_total`) and has no lines for units and for the end.
pub(super) fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = Some(described);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take().and_then(|help| help.split_once(' ')) {
                out.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Collects the metrics that come from a started node.
struct Reports(Arc<OnceLock<Sources>>);

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}

type Labels = Vec<(&'static str, String)>;

/// Encodes metrics, each with its rows of all groups.
struct Rows<'a, 'b> {
    encoder: DescriptorEncoder<'a>,
    reports: &'b [GroupReport],
}

impl Collector for Reports {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut rows = Rows { encoder, reports: &[] };
        let sources = self.0.get();
        rows.of_process(sources)?;
        let Some(Sources { router, clock, log, closing: _ }) = sources else { return Ok(()) };
        let report = |group: &GroupHandle| {
            let mut report = group.report();
            // A group that has ended has updated its state, but not its report.
            report.status.state = group.watch().borrow().clone();
            report
        };
        let reports: Vec<GroupReport> = router.groups().map(report).collect();
        let Rows { encoder, .. } = rows;
        let mut rows = Rows { encoder, reports: &reports };
        rows.of_log(log)?;
        group_rows(&mut rows)?;
        snapshot_rows(&mut rows, clock.wall_ms())?;
        space_rows(&mut rows)?;
        transfer_rows(&mut rows)
    }
}

fn group_rows(rows: &mut Rows) -> fmt::Result {
    rows.gauge("group_state", "1 for the replica's current state", |report| {
        let state = state_word(&report.status.state, report.status.leaderless_ticks);
        vec![(vec![("state", state.to_owned())], 1)]
    })?;
    rows.gauge("group_leads", "1 on the leader", |report| {
        let leads = report.status.role == lockstep_core::group::Role::Leader;
        one(u64::from(leads && !report.status.state.is_stopped()))
    })?;
    rows.counter("leader_changes", "Leader changes seen by this replica", |report| {
        one(report.status.leader_changes)
    })?;
    rows.times("commit_seconds", "On a leader, time from proposal to commit", |r| &r.commits)?;
    rows.times("apply_seconds", "Time to apply one entry", |report| &report.applies)?;
    rows.gauge("raft_term", "The raft term", |report| one(report.status.term))?;
    rows.gauge("raft_commit_index", "The commit index", |report| one(report.status.commit))?;
    rows.gauge("applied_index", "Last index that the guest applied", |r| one(r.status.applied))?;
    rows.gauge("log_first_index", "First index of the group's log", |r| one(r.status.first_index))?;
    rows.gauge("log_last_index", "Last index of the group's log", |r| one(r.status.last_index))?;
    rows.gauge("log_bytes", "Bytes of the node's log, shared by its groups", |r| one(r.log_bytes))?;
    rows.gauge("log_short_bytes", "Bytes to free before commands are accepted again", |report| {
        one(report.status.shortage.map_or(0, |shortage| shortage.lacks()))
    })?;
    rows.gauge("log_stalled_seconds", "How long an operation on the log has hung", |report| {
        let labels = |dir: &str| vec![("directory", dir.to_owned())];
        report.log_hangs.iter().map(|hangs| (labels(&hangs.dir), hangs.ms / 1000)).collect()
    })?;
    rows.gauge("snapshots_stalled_seconds", "How long the snapshots' disk has hung", |report| {
        let labels = |dir: &str| vec![("directory", dir.to_owned())];
        report.snapshots_hang.iter().map(|hangs| (labels(&hangs.dir), hangs.ms / 1000)).collect()
    })?;
    let outrun = "Most snapshots in a row that this leader sent to a follower still behind";
    rows.gauge("catch_up_snapshots", outrun, |report| {
        let sent = report.status.peers.iter().map(|peer| u64::from(peer.snapshots_in_a_row));
        one(sent.max().unwrap_or(0))
    })?;
    rows.gauge("leaderless_seconds", "Seconds without a known leader", |report| {
        one(report.status.leaderless_ticks * limits::TICK_MS / 1000)
    })?;
    rows.gauge("log_time_ahead_seconds", "How far log time is ahead of the clocks", |report| {
        one(report.status.log_time_ahead_ms / 1000)
    })?;
    rows.gauge("log_damaged_segments", "Damaged segments that prevent a restart", |report| {
        one(report.log_damaged)
    })?;
    rows.counter("log_fsyncs", "Syncs of the node's log", |report| one(report.log_fsyncs))?;
    session_rows(rows)?;
    watch_rows(rows)?;
    rows.counter("guest_faults", "Guest calls that trapped or failed", |r| one(r.guest_faults))?;
    rows.gauge("snapshot_traps_in_a_row", "Snapshots that trapped since the last success", |r| {
        one(r.snapshot_traps)
    })?;
    rows.counter("guest_log_lines_dropped", "Guest log lines dropped by a rate limit", |report| {
        one(report.guest_log_dropped)
    })?;
    let alarms =
        "States found to have diverged: an entry failed on one replica only, or snapshots differ";
    rows.counter("divergence_alarms", alarms, |r| one(r.status.alarms))?;
    memory_rows(rows)
}

fn memory_rows(rows: &mut Rows) -> fmt::Result {
    rows.gauge("guest_memory_bytes", "Linear memory of the guest", |r| one(r.guest_memory_bytes))?;
    let memory = |report: &GroupReport, bytes: fn(MemoryUse) -> u64| {
        report.status.memory.map(bytes).map_or(Vec::new(), one)
    };
    rows.gauge("guest_memory_limit_bytes", "Most memory that the guest may have", |report| {
        memory(report, |memory| memory.most)
    })?;
    rows.gauge("guest_memory_soft_bytes", "Memory at which commands are refused", |report| {
        memory(report, MemoryUse::soft)
    })?;
    rows.counter("relief_commands", "Commands accepted here with the relief flag", |report| {
        one(report.status.relief_commands)
    })?;
    rows.counter("guest_rebuilds", "Rebuilds of the guest to free memory", |report| {
        one(report.status.rebuilds.done)
    })?;
    rows.counter("guest_rebuilds_in_vain", "Guest rebuilds that freed little memory", |report| {
        one(report.status.rebuilds.in_vain)
    })?;
    rows.counter("guest_rebuilds_gave_back_bytes", "Memory freed by guest rebuilds", |report| {
        one(report.status.rebuilds.bytes)
    })
}

fn session_rows(rows: &mut Rows) -> fmt::Result {
    rows.gauge("sessions", "Open sessions of the group", |report| one(report.sessions))?;
    rows.counter("sessions_evicted", "Sessions evicted in favour of new ones", |report| {
        one(report.sessions_evicted)
    })?;
    rows.counter("sessions_refused", "Session openings refused for lack of space", |report| {
        one(report.sessions_refused)
    })
}

fn watch_rows(rows: &mut Rows) -> fmt::Result {
    rows.gauge("watches", "Open watches of the group's events", |r| one(r.watches.open))?;
    rows.counter("watched_events", "Events sent to watches", |report| one(report.watches.sent))?;
    rows.counter("watches_compacted", "Watches whose position was no longer kept", |report| {
        one(report.watches.compacted)
    })
}

fn snapshot_rows(rows: &mut Rows, now_ms: u64) -> fmt::Result {
    rows.counter("snapshots_skipped", "Checkpoints skipped during another snapshot", |report| {
        one(report.status.checkpoints_skipped)
    })?;
    rows.counter("snapshots_failed", "Snapshots of this replica that failed", |report| {
        one(report.status.captures_failed)
    })?;
    rows.gauge("snapshot_age_seconds", "Time since the last good snapshot taken here", |report| {
        match report.last_snapshot_wall_ms {
            0 => Vec::new(),
            at => one(now_ms.saturating_sub(at) / 1000),
        }
    })?;
    rows.seconds("snapshot_seal_seconds", "Time to finish and seal the last snapshot", |report| {
        one(report.last_capture_ms)
    })?;
    rows.seconds("snapshot_stall_seconds", "Time the last snapshot delayed applying", |report| {
        one(report.snapshot_stall_ms)
    })?;
    rows.seconds("restore_seconds", "Duration of the last restore", |r| one(r.last_restore_ms))?;
    rows.counter("verification_failures", "Snapshot objects found missing or corrupt", |report| {
        one(report.stored.verification_failures)
    })?;
    rows.gauge("corrupt_objects", "Corrupt listed snapshots not repaired yet", |report| {
        one(report.status.corrupt.len() as u64)
    })
}

fn space_rows(rows: &mut Rows) -> fmt::Result {
    rows.gauge("snapshot_bytes", "Bytes of snapshots on disk, by class", |report| {
        let newest = report.status.snapshots.first().map(|desc| (desc.term, desc.index));
        let listed = report.stored.objects.iter().filter(|object| object.listed);
        let of_newest = listed.filter(|object| Some((object.term, object.index)) == newest);
        let live: u64 = of_newest.map(|object| object.bytes).sum();
        let usage = report.stored.usage;
        let class = |name: &str, bytes| (vec![("class", name.to_owned())], bytes);
        vec![
            class("live", live),
            class("recovery_point", usage.listed.saturating_sub(live)),
            class("unlisted", usage.unlisted),
            class("staged", usage.staged),
            class("suspended", usage.suspended),
        ]
    })?;
    rows.gauge("snapshot_budget_used_bytes", "Bytes of the snapshot budget in use", |report| {
        one(report.stored.budget_used)
    })?;
    let places = "Groups that hold, or wait for, a place to take or restore a snapshot";
    rows.gauge("snapshot_places", places, |report| {
        let row = |work: &str, state: &str, count: usize| {
            let labels = vec![("work", work.to_owned()), ("state", state.to_owned())];
            (labels, count as u64)
        };
        let rows = |work, (held, asked)| [row(work, "held", held), row(work, "asked", asked)];
        let stored = &report.stored;
        let captures = rows("capture", stored.captures);
        captures.into_iter().chain(rows("restore", stored.restores)).collect()
    })?;
    rows.gauge("log_disk_available_bytes", "Free bytes of the log's filesystem", |report| {
        one(report.log_disk_available)
    })?;
    rows.gauge("disk_available_bytes", "Free bytes of the snapshots' filesystem", |report| {
        report.stored.space.map(|space| one(space.available)).unwrap_or_default()
    })?;
    rows.counter("reservations_refused", "Snapshots refused a reservation, by reason", |report| {
        // All rows exist from the start: a counter that first appears at 1 shows no increase.
        let all = PRODUCERS.iter().flat_map(|p| REASONS.iter().map(|reason| (*p, *reason)));
        let row = |(producer, reason): (&'static str, &'static str)| {
            let count = report.stored.tally.refusals.get(&(producer, reason)).copied();
            let labels = vec![("producer", producer.to_owned()), ("reason", reason.to_owned())];
            (labels, count.unwrap_or(0))
        };
        all.map(row).collect()
    })?;
    rows.counter("removals_failed", "Failed deletions of snapshot files", |report| {
        one(report.stored.tally.unremoved)
    })?;
    rows.counter("reclaimed_files", "Snapshot files deleted to free space", |report| {
        by("producer", PRODUCERS, &report.stored.tally.reclaimed)
    })
}

fn transfer_rows(rows: &mut Rows) -> fmt::Result {
    rows.counter("transfers_sent", "Outbound transfers, by how they ended", |report| {
        by("end", REPLY_ENDS.into_iter().chain(SEND_ENDS), &report.transfers.sent)
    })?;
    rows.counter("transfers_received", "Inbound transfers, by how they ended", |report| {
        by("end", REPLY_ENDS.into_iter().chain(RECEIVE_ENDS), &report.transfers.received)
    })?;
    rows.counter("transfer_sent_bytes", "Payload sent", |r| one(r.transfers.sent_bytes))?;
    rows.counter("transfer_received_bytes", "Payload received", |r| {
        one(r.transfers.received_bytes)
    })?;
    rows.counter("transfers_resumed", "Inbound transfers that were resumed", |report| {
        one(report.transfers.resumed)
    })?;
    rows.counter("transfer_resumed_bytes", "Payload that resuming did not send again", |report| {
        one(report.transfers.resumed_bytes)
    })?;
    rows.counter("transfers_suspended", "Broken inbound transfers kept to be resumed", |report| {
        one(report.stored.tally.suspended)
    })?;
    rows.counter("transfers_abandoned", "Suspended transfers that were given up", |report| {
        one(report.stored.tally.abandoned)
    })?;
    rows.seconds("transfer_sent_seconds", "Time of last accepted outbound transfer", |report| {
        one(report.transfers.last_sent_ms)
    })?;
    rows.seconds("transfer_received_seconds", "Time of last accepted inbound transfer", |report| {
        one(report.transfers.last_received_ms)
    })
}

fn one(value: u64) -> Vec<(Labels, u64)> {
    vec![(Vec::new(), value)]
}

/// One row for each known value of the label, and for each other value that was counted.
fn by(
    label: &'static str,
    known: impl IntoIterator<Item = &'static str>,
    counts: &BTreeMap<&'static str, u64>,
) -> Vec<(Labels, u64)> {
    let zeros = known.into_iter().map(|word| (word, 0));
    let all: BTreeMap<&str, u64> =
        zeros.chain(counts.iter().map(|(word, count)| (*word, *count))).collect();
    all.into_iter().map(|(word, count)| (vec![(label, word.to_owned())], count)).collect()
}

impl Rows<'_, '_> {
    /// Encodes the metrics that exist before the node has started.
    fn of_process(&mut self, started: Option<&Sources>) -> fmt::Result {
        let help = "The running version";
        let gauge = MetricType::Gauge;
        let mut build = self.encoder.encode_descriptor("build_info", help, None, gauge)?;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1_u64).encode(build.encode_family(&version)?)?;
        let (name, help) = ("ready", "1 while a group takes requests; 0 at a start and a stop");
        let row = self.encoder.encode_descriptor(name, help, None, gauge)?;
        let ready = started.is_some_and(|node| is_ready(&node.router, *node.closing.borrow()));
        ConstGauge::new(u64::from(ready)).encode(row)?;
        let (name, help) = ("stderr_lines_lost", "Log lines lost as standard error was not read");
        let counter = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(crate::logging::lines_lost()).encode(counter)
    }

    fn of_log(&mut self, log: &LogTimes) -> fmt::Result {
        let all = [
            ("log_write_seconds", "Time to write and sync a batch of the log", &log.writes),
            ("log_fsync_seconds", "Time of each sync that a batch waited for", &log.syncs),
        ];
        for (name, help, times) in all {
            let kind = MetricType::Histogram;
            times.encode(self.encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }

    /// A histogram for each group.
    fn times(&mut self, name: &str, help: &str, of: fn(&GroupReport) -> &Histogram) -> fmt::Result {
        let mut encoder =
            self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for report in self.reports {
            let labels = [("group", report.status.name.as_str())];
            of(report).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        of: impl Fn(&GroupReport) -> Vec<(Labels, u64)>,
    ) -> fmt::Result {
        self.rows(name, help, MetricType::Gauge, of, ConstGauge::new)
    }

    /// A gauge in seconds whose values are given in milliseconds.
    fn seconds(
        &mut self,
        name: &str,
        help: &str,
        of: impl Fn(&GroupReport) -> Vec<(Labels, u64)>,
    ) -> fmt::Result {
        let seconds = |ms: u64| ConstGauge::new(Duration::from_millis(ms).as_secs_f64());
        self.rows(name, help, MetricType::Gauge, of, seconds)
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        of: impl Fn(&GroupReport) -> Vec<(Labels, u64)>,
    ) -> fmt::Result {
        self.rows(name, help, MetricType::Counter, of, ConstCounter::new)
    }

    fn rows<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        of: impl Fn(&GroupReport) -> Vec<(Labels, u64)>,
        metric: impl Fn(u64) -> M,
    ) -> fmt::Result {
        let mut encoder = self.encoder.encode_descriptor(name, help, None, kind)?;
        for report in self.reports {
            for (labels, value) in of(report) {
                let mut all = vec![("group", report.status.name.clone())];
                all.extend(labels);
                metric(value).encode(encoder.encode_family(&all)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_describes_counters_by_their_rows() {
        let open = "# HELP a_b Things\n# TYPE a_b counter\na_b_total{g=\"x\"} 1\n\
            # HELP c_seconds Time\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\n\
            c_seconds 0.5\n# EOF\n";
        let old = "# HELP a_b_total Things\n# TYPE a_b_total counter\na_b_total{g=\"x\"} 1\n\
            # HELP c_seconds Time\n# TYPE c_seconds gauge\nc_seconds 0.5\n";
        assert_eq!(classic(open), old);
    }
}

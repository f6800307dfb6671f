//! Metrics of this process, under the names that Prometheus' own client libraries use.
//!
//! They are read from `/proc` at each scrape. A value that `/proc` does not have gets no row.

use std::fmt;
use std::path::Path;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::fs::{DiskFs, Fs};

/// Ticks per second of the times in `/proc`: the same on every current architecture.
const TICKS_A_SECOND: f64 = 100.0;
/// Fields of `/proc/self/stat`, counted from the one after the process's name: ticks in user mode,
/// ticks in system mode, and the tick at which the process started.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const START_TICK: usize = 19;

/// Collects the metrics of the process, which have no labels.
#[derive(Debug)]
pub(super) struct ProcessRows;

/// What `/proc` says of the process; `None` = nothing.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
struct Process {
    cpu_seconds: Option<f64>,
    /// When the process started, since 1970.
    start_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Process {
    fn now() -> Self {
        let (stat, status, limits) = (text("self/stat"), text("self/status"), text("self/limits"));
        let mut process = Self::read(&stat, &text("stat"), &status, &limits);
        process.open_fds = DiskFs.list(Path::new("/proc/self/fd")).ok().map(|fds| fds.len() as u64);
        process
    }

    /// Parses the text of `self/stat`, `stat`, `self/status` and `self/limits`.
    fn read(stat: &str, machine: &str, status: &str, limits: &str) -> Self {
        // The process's name, in brackets, may itself contain brackets and spaces.
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let seconds =
            |field: usize| Some(fields.get(field)?.parse::<u64>().ok()? as f64 / TICKS_A_SECOND);
        let kibibytes = |key| Some(number(status, key)?.saturating_mul(1024));
        Self {
            cpu_seconds: seconds(USER_TICKS).and_then(|user| Some(user + seconds(SYSTEM_TICKS)?)),
            start_seconds: number(machine, "btime ")
                .and_then(|boot| Some(boot as f64 + seconds(START_TICK)?)),
            resident_bytes: kibibytes("VmRSS:"),
            virtual_bytes: kibibytes("VmSize:"),
            open_fds: None,
            max_fds: number(limits, "Max open files"),
        }
    }
}

/// The number that follows `key` at the beginning of a line.
fn number(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The text of a file in `/proc`; empty if it cannot be read.
fn text(name: &str) -> String {
    let mut bytes = Vec::new();
    let Ok(file) = DiskFs.open(&Path::new("/proc").join(name), false) else { return String::new() };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = file.read_at(&mut buffer, bytes.len() as u64) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Collector for ProcessRows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let process = Process::now();
        let gauges = [
            ("resident_memory_bytes", "Resident memory size in bytes", process.resident_bytes),
            ("virtual_memory_bytes", "Virtual memory size in bytes", process.virtual_bytes),
            ("open_fds", "Number of open file descriptors", process.open_fds),
            ("max_fds", "Maximum number of open file descriptors", process.max_fds),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let row = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(row)?;
            }
        }
        if let Some(seconds) = process.start_seconds {
            let help = "Start time of the process since unix epoch in seconds";
            let name = "start_time_seconds";
            let row = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(seconds).encode(row)?;
        }
        if let Some(seconds) = process.cpu_seconds {
            let help = "Total user and system CPU time spent in seconds";
            let row = encoder.encode_descriptor("cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(row)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_tells_is_read() {
        let stat = "4711 (a ) b) S 1 4711 4711 0 -1 4194304 100 0 0 0 250 125 0 0 20 0 9 0 \
            9000 123 456";
        let status = "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max open files            1024                 4096                 files\n";
        let process = Process::read(stat, "cpu  1 2\nbtime 1700000000\n", status, limits);
        let expected = Process {
            cpu_seconds: Some(3.75),
            start_seconds: Some(1_700_000_090.0),
            resident_bytes: Some(1 << 20),
            virtual_bytes: Some(2 << 20),
            open_fds: None,
            max_fds: Some(1024),
        };
        assert_eq!(process, expected);
    }

    #[test]
    fn what_is_missing_has_no_row() {
        let unlimited = "Max open files            unlimited            unlimited        files\n";
        assert_eq!(Process::read("", "", "", unlimited), Process::default());
        assert_eq!(Process::read("1 (a) S 1", "btime x", "VmRSS:", ""), Process::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_all_rows() {
        let now = Process::now();
        assert!(now.resident_bytes > Some(1 << 20) && now.virtual_bytes > now.resident_bytes);
        assert!(now.open_fds > Some(2) && now.max_fds > now.open_fds, "{now:?}");
        assert!(now.start_seconds > Some(1.5e9) && now.cpu_seconds.is_some(), "{now:?}");
    }
}

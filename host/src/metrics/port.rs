//! Metrics of a node's port: its connections and calls, and how many it turned away.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::rpc::port::PortState;

/// Collects the metrics of the port. A node has one port, so they have no label `group`.
pub(super) struct PortRows(pub Arc<PortState>);

impl fmt::Debug for PortRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortRows")
    }
}

impl Collector for PortRows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = self.0.now();
        let help = "Open connections, of clients and of peers";
        let mut all = encoder.encode_descriptor("connections", help, None, MetricType::Gauge)?;
        for (whose, count) in [("client", now.clients), ("peer", now.peers)] {
            ConstGauge::new(count).encode(all.encode_family(&[("whose", whose)])?)?;
        }
        let help = "Memory that clients' calls hold";
        let bytes = encoder.encode_descriptor("client_memory_bytes", help, None, MetricType::Gauge);
        ConstGauge::new(now.client_bytes).encode(bytes?)?;
        let no_memory = "Refusals of client memory to a request or answer, each retry counted";
        let counters = [
            ("connections_evicted", "Silent connections closed to admit new ones", now.evicted),
            ("connections_turned_away", "Connections that found no free place", now.turned_away),
            ("requests_without_memory", no_memory, now.no_memory),
            ("answers_cut_off", "Calls cut off: the client did not read the answer", now.cut_off),
        ];
        for (name, help, count) in counters {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(counter)?;
        }
        let help = "Calls that ended, by method and gRPC code";
        let mut calls = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (method, code, count) in self.0.requests.counts() {
            let labels = [("method", method), ("code", code)];
            ConstCounter::new(count).encode(calls.encode_family(&labels)?)?;
        }
        let (name, help) = ("request_seconds", "Duration of unary calls, to the last byte");
        let mut times = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (method, took) in self.0.requests.times() {
            took.encode(times.encode_family(&[("method", method)])?)?;
        }
        Ok(())
    }
}

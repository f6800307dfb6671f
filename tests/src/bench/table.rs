//! The tables for people.

use std::fmt::Write as _;

use super::figures::{Figures, Row};
use super::system::{Case, Kind, What};
use crate::tell::thousands;

/// The goals, as multiples of etcd: writes with 256 clients, and streams.
const UNARY_GOAL: f64 = 1.0;
const STREAM_GOAL: f64 = 5.0;

/// The medians, with a row for each case and system.
pub(crate) fn medians(rows: &[Row]) -> String {
    let mut text = String::from(
        "case       system     calls/s    lowest   highest   p50 ms   p99 ms  \
         of etcd  fsyncs/1000      cpu µs/call     errors\n",
    );
    text.push_str(
        "                                                                     \
         \u{20}        leader   all   leader others bench\n",
    );
    let mut before = "";
    for row in rows {
        if !before.is_empty() && before != row.case.name {
            text.push('\n');
        }
        let name = if before == row.case.name { "" } else { row.case.name };
        before = row.case.name;
        let median = row.median();
        let (lowest, highest) = row.spread();
        let of_etcd = etcd(rows, row.case)
            .filter(|_| row.kind != Kind::Etcd)
            .map_or(String::new(), |etcd| format!("{:.2}", median.per_second / etcd.per_second));
        let writes = row.case.what != What::Read;
        let fsyncs = median.fsyncs.filter(|_| writes);
        let (leader, all) = fsyncs
            .map_or((String::new(), String::new()), |fsyncs| (few(fsyncs.leader), few(fsyncs.all)));
        let others = match row.kind {
            Kind::Echo => String::new(),
            Kind::Lockstep | Kind::Native | Kind::Etcd => format!("{:.0}", median.cpu.others),
        };
        writeln!(
            text,
            "{name:<10} {:<9} {:>8}  {:>8}  {:>8}  {:>7.2}  {:>7.2}  {of_etcd:>7} \
             {leader:>7} {all:>5}  {:>7.0} {others:>6} {:>5.0} {:>10}",
            row.kind.name(),
            whole(median.per_second),
            whole(lowest),
            whole(highest),
            median.p50 / 1e3,
            median.p99 / 1e3,
            median.cpu.leader,
            median.cpu.bench,
            if median.errors > 0.0 { whole(median.errors) } else { String::new() },
        )
        .expect("a string takes everything");
    }
    text
}

/// A line for each goal, which says whether it is reached.
pub(crate) fn goals(rows: &[Row]) -> String {
    let mut text = String::new();
    let best = rows
        .iter()
        .filter(|row| row.kind == Kind::Etcd && row.case.what == What::Write)
        .map(|row| row.median().per_second)
        .max_by(f64::total_cmp);
    for row in rows.iter().filter(|row| matches!(row.kind, Kind::Lockstep | Kind::Native)) {
        let have = row.median().per_second;
        let (base, goal, of) = match row.case.what {
            What::Write if row.case.clients == 256 => {
                (etcd(rows, row.case).map(|etcd| etcd.per_second), UNARY_GOAL, "etcd's")
            }
            What::Stream { .. } | What::Pipeline { .. } => (best, STREAM_GOAL, "etcd's best"),
            What::Write | What::Read => continue,
        };
        let Some(base) = base else { continue };
        let ratio = have / base;
        writeln!(
            text,
            "{} {} {}: {ratio:.2} times {of} {}; wanted {goal:.1}",
            if ratio >= goal { "✓" } else { "✗" },
            row.kind.name(),
            row.case.name,
            whole(base),
        )
        .expect("a string takes everything");
    }
    text
}

/// The line for one run.
pub(crate) fn line(figures: &Figures) -> String {
    format!(
        "{:>8} calls/s   p50 {:>7.2} ms   p99 {:>7.2} ms",
        whole(figures.per_second),
        figures.p50 / 1e3,
        figures.p99 / 1e3,
    )
}

fn etcd(rows: &[Row], case: Case) -> Option<Figures> {
    rows.iter().find(|row| row.kind == Kind::Etcd && row.case == case).map(Row::median)
}

/// A number, with one decimal if it is small.
fn few(number: f64) -> String {
    if number < 9.95 { format!("{number:.1}") } else { whole(number) }
}

fn whole(number: f64) -> String {
    thousands(number.round() as u64)
}

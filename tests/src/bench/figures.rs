//! The figures of one case of one system, and their medians over the rounds.

use super::system::{Case, Kind, What};

/// The figures of one run, or medians of several.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub per_second: f64,
    /// Latency, microseconds.
    pub p50: f64,
    pub p99: f64,
    pub errors: f64,
    /// Syncs of the log per 1000 writes.
    pub fsyncs: Option<Fsyncs>,
    /// Processor time per call, microseconds.
    pub cpu: Cpu,
    /// The load of the machine when the case began.
    pub load: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fsyncs {
    pub leader: f64,
    pub all: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub leader: f64,
    /// The other processes together.
    pub others: f64,
    /// This program.
    pub bench: f64,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub case: Case,
    pub kind: Kind,
    pub rounds: Vec<Figures>,
}

impl Row {
    /// The median of each figure on its own.
    pub(crate) fn median(&self) -> Figures {
        let of = |pick: fn(&Figures) -> f64| median(self.rounds.iter().map(pick).collect());
        let fsyncs = self.rounds.iter().all(|round| round.fsyncs.is_some());
        let fsync = |pick: fn(&Fsyncs) -> f64| {
            median(self.rounds.iter().filter_map(|round| round.fsyncs.as_ref().map(pick)).collect())
        };
        Figures {
            per_second: of(|round| round.per_second),
            p50: of(|round| round.p50),
            p99: of(|round| round.p99),
            // The sum, because no error may go unnoticed.
            errors: self.rounds.iter().map(|round| round.errors).sum(),
            fsyncs: fsyncs.then(|| Fsyncs { leader: fsync(|f| f.leader), all: fsync(|f| f.all) }),
            cpu: Cpu {
                leader: of(|round| round.cpu.leader),
                others: of(|round| round.cpu.others),
                bench: of(|round| round.cpu.bench),
            },
            load: of(|round| round.load),
        }
    }

    /// The lowest and the highest rate.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let rates = || self.rounds.iter().map(|round| round.per_second);
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }
}

impl Figures {
    /// One line of JSON. Nothing in it needs escaping.
    pub(crate) fn json(&self, case: &Case, kind: Kind, round: &str) -> String {
        let what = match case.what {
            What::Write => "writes",
            What::Read => "linearizable reads",
            What::Stream { .. } => "writes over streams",
            What::Pipeline { .. } => "writes over streams, through lockstep-client",
        };
        let fsyncs = match &self.fsyncs {
            Some(Fsyncs { leader, all }) => format!("{{\"leader\":{leader:.1},\"all\":{all:.1}}}"),
            None => "null".to_owned(),
        };
        format!(
            "{{\"round\":{round},\"system\":\"{}\",\"case\":\"{}\",\"what\":\"{what}\",\
             \"clients\":{},\"per_second\":{:.1},\"p50_us\":{:.0},\"p99_us\":{:.0},\"errors\":{},\
             \"fsyncs_per_1000\":{fsyncs},\"cpu_us_per_call\":{{\"leader\":{:.1},\
             \"others\":{:.1},\"bench\":{:.1}}},\"load\":{:.2}}}",
            kind.name(),
            case.name,
            case.clients,
            self.per_second,
            self.p50,
            self.p99,
            self.errors,
            self.cpu.leader,
            self.cpu.others,
            self.cpu.bench,
            self.load,
        )
    }
}

/// The number in the middle, or the mean of the two in the middle; 0 if there is none.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let (low, high) = (numbers.len().saturating_sub(1) / 2, numbers.len() / 2);
    match (numbers.get(low), numbers.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        (_, None) | (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let rows: [(&[f64], f64); 4] =
            [(&[], 0.0), (&[7.0], 7.0), (&[9.0, 1.0, 5.0], 5.0), (&[1.0, 9.0, 3.0, 5.0], 4.0)];
        for (numbers, want) in rows {
            assert_eq!(median(numbers.to_vec()), want, "{numbers:?}");
        }
    }
}

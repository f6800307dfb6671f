//! Links between nodes. Fault model: a frame may be delayed, dropped, delivered twice, or overtaken
//! by later ones; a direction may be cut. The frames of a crashed process still arrive.

use std::collections::BTreeSet;

use lockstep_core::ids::NodeId;

use crate::counters::Counters;
use crate::rng::Rng;

/// How bad the network is, in percent of frames.
#[derive(Clone, Copy, Default, Debug)]
pub struct Weather {
    pub drop: u64,
    pub duplicate: u64,
    pub reorder: u64,
}

#[derive(Default)]
pub struct Network {
    /// Directions that are cut: sender and receiver.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub weather: Weather,
    /// When the last frame of each direction arrives: later ones do not overtake it unless
    /// `weather` has them reordered.
    last: std::collections::BTreeMap<(NodeId, NodeId), u64>,
}

const DELAY_US: (u64, u64) = (200, 8_000);
const LATE_US: (u64, u64) = (10_000, 400_000);

impl Network {
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// When the copies of a frame that is sent now arrive; none if it is lost.
    pub fn arrivals(
        &mut self,
        from: NodeId,
        to: NodeId,
        now: u64,
        rng: &mut Rng,
        counters: &mut Counters,
    ) -> Vec<u64> {
        if self.is_cut(from, to) {
            counters.add("frames cut off");
            return Vec::new();
        }
        if rng.percent(self.weather.drop) {
            counters.add("frames dropped");
            return Vec::new();
        }
        let last = self.last.entry((from, to)).or_default();
        let at = (now + rng.between(DELAY_US.0, DELAY_US.1)).max(*last + 1);
        let mut arrivals = Vec::new();
        if rng.percent(self.weather.reorder) {
            counters.add("reordered frames");
            arrivals.push(now + rng.between(LATE_US.0, LATE_US.1));
        } else {
            *last = at;
            arrivals.push(at);
        }
        if rng.percent(self.weather.duplicate) {
            counters.add("duplicated frames");
            arrivals.push(now + rng.between(LATE_US.0, LATE_US.1));
        }
        arrivals
    }
}

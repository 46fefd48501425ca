//! Interleaving: which row of which shard stands at a position.

use super::{ENDLESS, Frame, Positions};

/// Shards read in turn. Lane j of `cycle` reads the shards j, j + cycle, j + 2·cycle, … one after another, and each lane that is not exhausted gives `run` rows
/// in its turn.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    run: u64,
    /// For each lane: pieces of the child as (rows before in the lane, first child row).
    lanes: Vec<Vec<(u64, u64)>>,
    rows: u64,
    /// Phases; within one, the same lanes take turns.
    phases: Vec<Phase>,
}

#[derive(Clone, Debug)]
struct Phase {
    /// Position at which the phase starts.
    start: u64,
    /// Rows that each of its lanes delivered before.
    before: u64,
    /// The lanes taking turns.
    lanes: Vec<usize>,
}

impl Lanes {
    /// `shards`: row ranges of the child, in order.
    pub(crate) fn new(shards: &[std::ops::Range<u64>], cycle: usize, run: u64) -> Self {
        let cycle = cycle.clamp(1, shards.len().max(1));
        let mut lanes = vec![Vec::new(); cycle];
        let mut lengths = vec![0; cycle];
        for (i, shard) in shards.iter().enumerate().filter(|(_, shard)| !shard.is_empty()) {
            lanes[i % cycle].push((lengths[i % cycle], shard.start));
            lengths[i % cycle] += shard.end - shard.start;
        }
        let (mut phases, mut start, mut before) = (Vec::new(), 0, 0);
        let mut alive: Vec<usize> = (0..cycle).filter(|&lane| lengths[lane] > 0).collect();
        while let Some(shortest) = alive.iter().map(|&lane| lengths[lane]).min() {
            // Whole turns of all lanes alive, then one last turn in which the shortest give what they have left.
            let whole = (shortest - before) / run * run;
            phases.push(Phase { start, before, lanes: alive.clone() });
            start += whole * alive.len() as u64;
            before += whole;
            if alive.iter().any(|&lane| lengths[lane] < before + run) {
                phases.push(Phase { start, before, lanes: alive.clone() });
                start += alive.iter().map(|&lane| (lengths[lane] - before).min(run)).sum::<u64>();
                before += run;
            }
            alive.retain(|&lane| lengths[lane] > before);
        }
        phases.dedup_by(|next, phase| next.start == phase.start && next.before == phase.before);
        Self { run, lanes, rows: lengths.iter().sum(), phases: phases.into_iter().collect() }.with_lengths(lengths)
    }

    /// Ends each lane with a piece that starts at its length.
    fn with_lengths(mut self, lengths: Vec<u64>) -> Self {
        for (lane, length) in self.lanes.iter_mut().zip(lengths) {
            lane.push((length, ENDLESS));
        }
        self
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    fn length(&self, lane: usize) -> u64 {
        self.lanes[lane].last().map_or(0, |piece| piece.0)
    }

    pub(super) fn row_at(&self, position: u64) -> u64 {
        let phase = &self.phases[self.phases.partition_point(|phase| phase.start <= position) - 1];
        let within = position - phase.start;
        let round = within / (self.run * phase.lanes.len() as u64);
        let mut rest = within % (self.run * phase.lanes.len() as u64);
        let given = phase.before + round * self.run;
        for &lane in &phase.lanes {
            let gives = (self.length(lane) - given).min(self.run);
            if rest < gives {
                let row = given + rest;
                let pieces = &self.lanes[lane];
                let (before, first) = pieces[pieces.partition_point(|piece| piece.0 <= row) - 1];
                return first + row - before;
            }
            rest -= gives;
        }
        unreachable!("position {position} of {} rows", self.rows)
    }

    pub(super) fn map(&self, positions: Positions, frame: Option<Frame>) -> Positions {
        let mut mapped = positions.map(|p| self.row_at(p));
        if let Some(frame) = frame {
            // A lane's block is asked for again one round later at the latest.
            let round = self.lanes.len() as u64 * self.run;
            let round = round.saturating_mul(frame.many).div_ceil(frame.few * frame.batch) + 1;
            mapped.hold.iter_mut().for_each(|hold| *hold += round);
        }
        mapped
    }
}

//! Plans which rows the next ticket has: those of a step where rows are positions, or those of streams at their own pace where they are not.

use std::ops::Range;

use super::{BlockKey, BlockStage, Chunk, READ_AHEAD, Run, State, Ticket};
use crate::error::Error;
use crate::loader::arrival::ArrivalDriver;
use crate::loader::pipeline::Leaf;
use crate::plan::Remainder;
use crate::plan::order::{Ahead, Arrivals, ENDLESS, Frame, NeedsRows, PADDING, PickedBlock, Positions};
use crate::plan::steps::Steps;

impl State {
    /// Plans one more ticket, if it is time to. Returns whether it did.
    pub(super) fn plan_more(&mut self, run: &Run) -> bool {
        let unstarted = self.tickets.len() as u64;
        let bytes: u64 = self.tickets.iter().map(|ticket| ticket.bytes).sum();
        let room = READ_AHEAD.min(run.shared.account.total() / 4);
        let near = unstarted < 2;
        let far = unstarted < run.shared.pipeline.tickets_ahead() && self.needs.is_empty() && bytes < room;
        let pipeline = &run.shared.pipeline;
        // Batches of few bytes have many tickets under way, whose blocks may be large: what becomes of them decides how far each stream is wanted.
        let many = self.started - self.popped + unstarted >= pipeline.tickets_unseen();
        let held = || self.tickets.iter().map(|ticket| ticket.held).chain(self.under_way.iter().copied()).sum::<u64>();
        let blind = pipeline.expands && many && held() >= room;
        if self.planned_all || self.failed || blind || !(near || far) {
            return false;
        }
        let steps = pipeline.steps;
        let arrived = if self.order.arrives() { self.arrivals.iter().find_map(Arrivals::total) } else { None };
        let failure = arrived.and_then(|_| self.drivers.values().find_map(ArrivalDriver::error));
        if let (Some(arrived), true) = (arrived, failure.is_some()) {
            // The segment that it broke off in is permuted as a short one.
            self.broken_off = self.order.first_arrival_for(arrived).map(|row| (self.epoch, row));
        }
        let rows = match (self.order.rows(), arrived) {
            (Some(rows), arrived) => rows.min(arrived.unwrap_or(ENDLESS)),
            (None, arrived) => arrived.unwrap_or(ENDLESS),
        };
        let ended = match (rows, steps.remainder) {
            _ if pipeline.expands => self.streams_end(steps, rows),
            // What came before damage is delivered whole.
            (rows, Remainder::Drop | Remainder::Refuse) if failure.is_some() => self.step >= rows.div_ceil(steps.batch),
            (rows, _) => self.step >= steps.per_epoch(rows),
        };
        if ended || self.cut == Some(self.epoch) {
            self.end_epoch(failure);
            return true;
        }
        let mut ahead = Vec::new();
        let planned = if pipeline.expands {
            self.plan_streams(run, rows, &mut ahead)
        } else {
            self.plan_step(run, steps.slots(self.step, rows), rows, &mut ahead)
        };
        match planned {
            // No stream needs rows: batches wait to be taken.
            Ok(chunks) if chunks.is_empty() && pipeline.expands => false,
            Ok(chunks) => {
                self.pass_over();
                self.add_ticket(run, chunks, ahead);
                self.step += 1;
                true
            }
            Err(NeedsRows { leaf, rows }) => {
                let (epoch, place) = (self.epoch, self.place);
                let Leaf::Arriving(source) = &pipeline.leaves[leaf] else {
                    unreachable!("only these show rows little by little")
                };
                let driver = self
                    .drivers
                    .entry(leaf)
                    .or_insert_with(|| ArrivalDriver::new(source.clone(), epoch, run.shared.seed, place));
                driver.want(rows)
            }
        }
    }

    /// Drops rows that arrived again, and were delivered before the run began.
    pub(super) fn pass_over(&mut self) {
        let passed = std::mem::take(&mut self.passed);
        if passed.is_empty() {
            return;
        }
        let positions = Positions::new(passed.collect(), 0);
        let Ok(picked) = self.order.pick(positions, self.epoch, None, &self.arrivals) else { return };
        let chunk = Chunk { parts: vec![picked], stream: 0, position: 0 };
        for (key, count) in self.count_rows(&[chunk], self.epoch) {
            self.deliver_rows(key, count);
        }
    }

    /// The rows of a step whose positions are known.
    pub(super) fn plan_step(
        &mut self,
        run: &Run,
        slots: Range<u64>,
        rows: u64,
        ahead: &mut Vec<Ahead>,
    ) -> Result<Vec<Chunk>, NeedsRows> {
        let frame = Frame::of_epoch(run.shared.pipeline.steps.batch);
        let (mut chunks, mut at) = (Vec::new(), slots.start);
        while at < slots.end {
            let mut stop = slots.end.min(at.saturating_add(run.shared.chunk_rows as u64));
            if at < rows {
                stop = stop.min(rows);
            }
            let (pass, start) = if at < rows { (self.epoch, at) } else { (self.epoch | PADDING, (at - rows) % rows) };
            // Filling up may go round a small data set more than once.
            let stop = if at < rows { stop } else { stop.min(at + rows - start) };
            let positions = Positions::new((start..start + (stop - at)).collect(), self.step);
            let frame = (pass == self.epoch).then_some(frame);
            let picked = self.order.pick(positions, pass, frame, &self.arrivals)?;
            chunks.push(Chunk { parts: vec![picked], stream: 0, position: at });
            at = stop;
        }
        if slots.end <= rows {
            self.order.ahead(slots, self.epoch, Some(frame), ahead);
        }
        Ok(chunks)
    }

    /// Whether all streams are planned to their ends.
    pub(super) fn streams_end(&self, steps: Steps, rows: u64) -> bool {
        (steps.first_stream()..).zip(&self.planned).all(|(stream, &at)| at >= steps.stream_rows(stream, rows))
    }

    /// Plans the next rows of each stream that needs some, where it is not known what becomes of them: a share each, or a window as one chunk if
    /// functions work on windows.
    ///
    /// Streams lose rows at different rates, so they go at their own pace, and each is read only as far as it is wanted. Rows of shards without an
    /// index come in one sequence only; there all streams keep step.
    pub(super) fn plan_streams(
        &mut self,
        run: &Run,
        rows: u64,
        ahead: &mut Vec<Ahead>,
    ) -> Result<Vec<Chunk>, NeedsRows> {
        let (steps, arrives) = (run.shared.pipeline.steps, self.order.arrives());
        let (share, unit) = (steps.stream_share(), run.shared.pipeline.unit());
        let windows = run.shared.pipeline.window_rows.is_some();
        // Positions of the epoch that all streams give in a ticket.
        let batch = steps.batch * (unit / share);
        let (mut chunks, mut planned) = (Vec::new(), self.planned.clone());
        for (number, at) in planned.iter_mut().enumerate() {
            let stream = steps.first_stream() + number as u64;
            let sated = self.rebatch.as_ref().is_some_and(|rebatch| rebatch.is_sated(number, self.epoch, *at));
            if sated && !arrives {
                continue;
            }
            let end = steps.stream_rows(stream, rows).min((*at / unit + 1) * unit);
            // The ticket takes the place of the step (or of the steps of a window) that these rows would be in if nothing were lost.
            let offset = (self.step as i64).wrapping_sub((*at / unit) as i64).wrapping_mul(batch as i64);
            let frame = Some(Frame::of_epoch(batch).moved(offset.into()));
            let (mut parts, position) = (Vec::new(), *at);
            while *at < end {
                let stop = end.min(at.saturating_add(run.shared.chunk_rows as u64));
                let runs: Vec<Range<u64>> = steps.positions_of(stream, *at..stop).collect();
                let positions = Positions::new(runs.iter().cloned().flatten().collect(), self.step);
                let picked = self.order.pick(positions, self.epoch, frame, &self.arrivals)?;
                if windows {
                    parts.push(picked);
                } else {
                    chunks.push(Chunk { parts: vec![picked], stream: number, position: *at });
                }
                for run in runs {
                    self.order.ahead(run, self.epoch, frame, ahead);
                }
                *at = stop;
            }
            if !parts.is_empty() {
                chunks.push(Chunk { parts, stream: number, position });
            }
        }
        self.planned = planned;
        Ok(chunks)
    }

    /// Puts the marker after the last step, and goes on to the next epoch if it may be asked for.
    pub(super) fn end_epoch(&mut self, failure: Option<Error>) {
        self.planned_all = !self.go_on || failure.is_some();
        let ticket = Ticket {
            epoch: self.epoch,
            step: self.step,
            chunks: Vec::new(),
            blocks: Vec::new(),
            missing: 0,
            bytes: 0,
            held: 0,
            end: Some(failure),
        };
        self.tickets.push_back(ticket);
        self.epoch += 1;
        self.step = 0;
        self.base = self.first + self.tickets.len() as u64;
        self.planned.fill(0);
        self.place = None;
        self.passed = 0..0;
        self.drivers.clear();
        let none = self.arrivals.iter().map(|_| Arrivals::from_row(0)).collect();
        self.arrived.push_back((self.epoch - 1, std::mem::replace(&mut self.arrivals, none)));
    }

    pub(super) fn add_ticket(&mut self, run: &Run, chunks: Vec<Chunk>, ahead: Vec<Ahead>) {
        let number = self.first + self.tickets.len() as u64;
        let arrives = self.order.arrives();
        let epoch = self.epoch;
        let block_epoch = if arrives { epoch } else { 0 };
        // Blocks and their holds, each block once.
        let mut keys: Vec<(BlockKey, u64)> = Vec::new();
        for chunk in &chunks {
            chunk.parts.iter().for_each(|part| {
                part.for_each_rows(&mut |rows| {
                    keys.extend(rows.blocks.iter().map(|&PickedBlock { block, hold, .. }| {
                        (
                            BlockKey { leaf: rows.leaf, block, epoch: block_epoch },
                            self.base.wrapping_add(hold).max(number),
                        )
                    }));
                })
            });
        }
        keys.sort_unstable();
        // Of equal keys the last has the largest hold.
        keys.dedup_by(|next, kept| {
            next.0 == kept.0 && {
                kept.1 = next.1;
                true
            }
        });
        let (mut missing, mut bytes, mut held) = (0, 0, 0);
        for &(key, hold) in &keys {
            let (entry, new) = self.entry(run, key, hold);
            // Whether or not it was read ahead, from here on it stays.
            held += if std::mem::replace(&mut entry.is_ahead, false) { entry.bytes } else { 0 };
            if matches!(entry.stage, BlockStage::Ready(_)) {
                continue;
            }
            entry.waiting.push(number);
            missing += 1;
            if matches!(entry.stage, BlockStage::Wanted) {
                bytes += if new { entry.bytes } else { 0 };
                self.needs.push_back(key);
            }
        }
        for Ahead { leaf, block, hold } in ahead {
            let key = BlockKey { leaf, block, epoch: 0 };
            // A block that a ticket asked for stays for tickets alone: it can be read again.
            if self.blocks.get(&key).is_some_and(|entry| !entry.is_ahead) {
                continue;
            }
            let (_, new) = self.entry(run, key, self.base.wrapping_add(hold).max(number));
            if new {
                self.ahead.push_back(key);
            }
        }
        run.shared.counters.plan.add(chunks.iter().map(Chunk::positions).sum(), 0);
        let blocks = keys.into_iter().map(|(key, _)| key).collect();
        self.tickets.push_back(Ticket { epoch, step: self.step, chunks, blocks, missing, bytes, held, end: None });
    }
}

//! Tickets from planned to handed on: they are started when their blocks are there, evaluated part by part, and turned into batches in their order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::{BlockStage, Chunk, EvaluatedChunk, Evaluation, Kept, Out, Ready, Run, State};
use crate::engine::pool::{Level, Prepared, no_panic};
use crate::loader::assemble::Assembly;
use crate::loader::evaluate::{Blocks, Env, Evaluated};
use crate::loader::pipeline::Pipeline;
use crate::plan::ReadPoint;
use crate::plan::state::Progress;
use crate::plan::steps::Steps;

/// Tickets of windows that are evaluated at a time.
const WINDOWS_UNDER_WAY: u64 = 2;

impl State {
    /// Whether there is room for the batches of one more ticket: within the window of undelivered batches. A ticket of windows gives many batches;
    /// there is also room for it in addition to those of the ticket before, so that the loop takes the batches of one while the other is evaluated.
    fn may_start(&self, run: &Run) -> bool {
        let under_way = self.started - self.popped;
        let room = under_way + self.undelivered() + (self.ready.len() as u64) < run.shared.pipeline.window;
        if run.shared.pipeline.window_rows.is_none() {
            return room;
        }
        // Nobody knows how many batches a ticket of windows gives: more of them would be evaluated long before they are wanted.
        under_way == 0 && self.ready.len() <= self.yielded || room && under_way < WINDOWS_UNDER_WAY
    }

    /// Starts tickets whose blocks are there, as far as there is room for their batches.
    pub(super) fn start_tickets(&mut self, run: &Run) -> bool {
        let mut any = false;
        while !self.failed && self.may_start(run) {
            let Some(ticket) = self.tickets.front_mut().filter(|ticket| ticket.missing == 0) else { break };
            let (chunks, blocks) = (std::mem::take(&mut ticket.chunks), std::mem::take(&mut ticket.blocks));
            let (epoch, step, end) = (ticket.epoch, ticket.step, ticket.end.take());
            self.under_way.push_back(ticket.held);
            self.tickets.pop_front();
            let number = self.first;
            self.first += 1;
            self.started += 1;
            any = true;
            let data = blocks.iter().filter_map(|key| match &self.blocks.get(key)?.stage {
                BlockStage::Ready(block) => Some(((key.leaf, key.block), block.clone())),
                _ => None,
            });
            let data = Blocks::sorted(data.collect());
            let counts = self.count_rows(&chunks, epoch);
            let evaluation = Evaluation { epoch, step, chunks: Vec::new(), end, kept: Arc::new(data), counts };
            if chunks.is_empty() {
                self.evaluated.put(number, evaluation);
                while let Some(evaluation) = self.evaluated.pop() {
                    self.hand_on(run, evaluation);
                }
                self.begin_ready(run);
                continue;
            }
            self.in_flight += 1;
            self.todo.extend(evaluate(run, number, evaluation, chunks));
        }
        any
    }

    /// Takes an evaluated ticket in order: gives back blocks, and makes batches of its rows.
    pub(super) fn hand_on(&mut self, run: &Run, evaluation: Evaluation) {
        let number = self.popped;
        self.popped += 1;
        self.under_way.pop_front();
        self.release(number, &evaluation);
        if self.failed {
            return;
        }
        let (epoch, ended) = (evaluation.epoch, evaluation.end.is_some());
        let end_error = evaluation.end.clone().flatten();
        let assemblies = match &mut self.rebatch {
            Some(rebatch) => rebatch.push(evaluation),
            None if ended => Vec::new(),
            None => Assembly::of_step(evaluation).into_iter().collect(),
        };
        self.yielded = assemblies.len();
        for mut assembly in assemblies {
            self.keep_settled(run.shared.pipeline.steps, &mut assembly);
            for progress in [&mut assembly.before, &mut assembly.progress] {
                progress.read_from = self.read_point_behind(&run.shared.pipeline, progress);
            }
            if assembly.error.is_some() {
                // Nothing comes behind an error.
                self.planned_all = true;
                self.go_on = false;
            }
            self.ready.push_back(Ready::Batch(Box::new(assembly)));
        }
        if self.rebatch.as_ref().is_some_and(|rebatch| rebatch.is_full(epoch)) {
            self.cut = Some(epoch);
        }
        if ended {
            self.arrived.retain(|(delivered, _)| *delivered > epoch);
            self.ready.push_back(Ready::End(end_error.map_or(Out::EndOfEpoch(epoch), Out::Failed)));
        }
    }

    /// Keeps states from going beyond the last batch before rows that a failure moved: if a failure broke an epoch off, rows come in another order
    /// once it is fixed.
    fn keep_settled(&mut self, steps: Steps, assembly: &mut Assembly) {
        if !self.order.arrives() {
            return;
        }
        let epoch = assembly.before.epoch;
        let settled = self.settled.take().filter(|settled| settled.epoch == epoch);
        let mut settled = settled.unwrap_or_else(|| assembly.before.clone());
        let first = self.broken_off.filter(|(broken, _)| *broken == epoch).map(|(_, row)| row / steps.batch);
        for progress in [&mut assembly.before, &mut assembly.progress] {
            let is_beyond = first.is_some_and(|step| {
                let position = step * steps.stream_share();
                let cursors = || progress.cursors.iter().map(|cursor| (cursor.position, cursor.expanded));
                progress.cursors.is_empty() && progress.step > step || cursors().any(|cursor| cursor > (position, 0))
            });
            if is_beyond {
                progress.clone_from(&settled);
            } else {
                settled.clone_from(progress);
            }
        }
        self.settled = Some(settled);
    }

    /// Where a pass over shards without an index would have to continue after a batch.
    fn read_point_behind(&self, pipeline: &Pipeline, progress: &Progress) -> Option<ReadPoint> {
        let steps = pipeline.steps;
        // One sequence feeds all streams: it begins with the step that the first of them is planned from.
        let step = progress.cursors.iter().map(|cursor| pipeline.planned_for(*cursor) / steps.stream_share()).min();
        let row = self.order.first_arrival_for(step.unwrap_or(progress.step) * steps.batch)?;
        let of_epoch = self.arrived.iter().find(|(epoch, _)| *epoch == progress.epoch);
        let arrivals = of_epoch.map_or(&self.arrivals, |(_, arrivals)| arrivals);
        arrivals.iter().find_map(|arrivals| arrivals.place_of(row))
    }
}

/// Tasks that evaluate the chunks of a ticket, part by part. The last task of a chunk joins its parts, and the last task of all hands the ticket on.
fn evaluate(run: &Run, number: u64, evaluation: Evaluation, chunks: Vec<Chunk>) -> impl Iterator<Item = Prepared> {
    struct Work {
        evaluation: Mutex<Evaluation>,
        chunks: Vec<ChunkWork>,
        left: AtomicUsize,
        kept: Kept,
        epoch: u64,
    }
    struct ChunkWork {
        chunk: Chunk,
        parts: Vec<OnceLock<Evaluated>>,
        left: AtomicUsize,
        result: OnceLock<EvaluatedChunk>,
    }
    let chunk_work = |chunk: Chunk| ChunkWork {
        parts: chunk.parts.iter().map(|_| OnceLock::new()).collect(),
        left: AtomicUsize::new(chunk.parts.len()),
        result: OnceLock::new(),
        chunk,
    };
    let tasks: Vec<(usize, usize)> =
        chunks.iter().enumerate().flat_map(|(i, chunk)| (0..chunk.parts.len()).map(move |part| (i, part))).collect();
    let work = Arc::new(Work {
        left: AtomicUsize::new(chunks.len()),
        chunks: chunks.into_iter().map(chunk_work).collect(),
        kept: evaluation.kept.clone(),
        epoch: evaluation.epoch,
        evaluation: Mutex::new(evaluation),
    });
    tasks.into_iter().map(move |(i, part)| {
        let work = work.clone();
        run.prepare(Level::Transform, move |run, scratch| {
            let pipeline = &run.shared.pipeline;
            let ChunkWork { chunk, parts, left, result } = &work.chunks[i];
            let env = Env {
                stages: &pipeline.stages,
                enumerated: &pipeline.enumerated,
                blocks: &work.kept,
                epoch: work.epoch,
                window: chunk.position / pipeline.unit(),
                counters: &run.shared.counters,
                leave_out: run.shared.skip.is_some(),
            };
            let evaluated = no_panic(|| env.evaluate(&chunk.parts[part], scratch)).unwrap_or_else(Evaluated::failed);
            let evaluated = if pipeline.on_windows.is_empty() {
                evaluated
            } else {
                _ = parts[part].set(evaluated);
                if left.fetch_sub(1, Ordering::AcqRel) > 1 {
                    return;
                }
                let parts = parts.iter().filter_map(OnceLock::get).cloned().zip(&chunk.parts);
                let parts = parts.map(|(evaluated, picked)| (evaluated, picked.positions())).collect();
                no_panic(|| env.evaluate_window(parts, &pipeline.on_windows, scratch)).unwrap_or_else(Evaluated::failed)
            };
            run.shared.counters.transform.add(evaluated.rows.len() as u64, 0);
            let Chunk { stream, position, .. } = *chunk;
            let left_out = chunk.left_out(&evaluated, !run.shared.pipeline.on_windows.is_empty());
            _ = result.set(EvaluatedChunk { stream, position, positions: chunk.positions(), evaluated, left_out });
            if work.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            // The last chunk: all others have let go of the work, or are about to.
            let mut evaluation = work.evaluation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut evaluation = std::mem::replace(&mut *evaluation, Evaluation::nothing());
            evaluation.chunks = work.chunks.iter().filter_map(|chunk| chunk.result.get()).cloned().collect();
            run.update(|state| {
                state.in_flight -= 1;
                state.evaluated.put(number, evaluation);
            });
        })
    })
}

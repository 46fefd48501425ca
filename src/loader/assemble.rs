//! Makes finished batches of evaluated rows: one allocation for each column, filled by several tasks, delivered to its device.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::delivery::Parcel;
use super::evaluate::{Blocks, Env, Evaluated, locate};
use super::replay::origins;
use super::run::{Evaluation, Kept, Run};
use super::skip::{Drawn, is_bad_record};
use crate::batch::collate::{self, Filling, Rows, Sample, Slots};
use crate::batch::{Batch, Data};
use crate::engine::budget::Grant;
use crate::engine::pool::{Level, no_panic};
use crate::error::{Error, Result};
use crate::plan::Sums;
use crate::plan::ledger::id_term;
use crate::plan::state::Progress;
use crate::transform::image::Scratch;

/// The rows of one batch, in order.
#[derive(Default)]
pub(crate) struct Assembly {
    /// Its place in the order of what is delivered.
    pub(crate) number: u64,
    pub(crate) step: u64,
    /// Where the run stands before this batch, which is where it continues if the batch is cut short, and after it.
    pub(crate) before: Progress,
    pub(crate) progress: Progress,
    pub(crate) rows: Vec<Rows>,
    /// The error that comes after these rows in place of more rows.
    pub(crate) error: Option<Error>,
    pub(crate) drawn: Drawn,
    /// The row after each slot that a bad record left empty, where rows are positions.
    pub(crate) gaps: Vec<u64>,
    /// Blocks that the rows point into.
    pub(crate) kept: Vec<Kept>,
    /// Whether the functions of whole batches were applied.
    pub(crate) is_applied: bool,
    /// Bytes of the budget that the batch takes, once they are known.
    pub(crate) bytes: u64,
}

/// A finished batch of one lane, with its share of the budget.
pub(crate) struct Finished {
    pub(crate) batch: Option<Batch>,
    pub(crate) grant: Option<Grant>,
    pub(crate) parcel: Parcel,
}

impl Finished {
    fn nothing() -> Self {
        Self { batch: None, grant: None, parcel: Parcel::default() }
    }
}

/// The result of an assembly.
pub(crate) struct Assembled {
    pub(crate) lanes: Vec<Finished>,
    /// The error that comes after the batch.
    pub(crate) error: Option<Error>,
    pub(crate) drawn: Drawn,
}

impl Assembly {
    /// The batch of a step whose rows are positions.
    pub(crate) fn of_step(evaluation: Evaluation) -> Option<Self> {
        let Evaluation { epoch, step, chunks, kept, .. } = evaluation;
        let (mut rows, mut error, mut drawn) = (Vec::with_capacity(chunks.len()), None, Drawn::default());
        let mut gaps = Vec::new();
        for chunk in chunks {
            for (position, _) in &chunk.evaluated.skipped {
                gaps.push(drawn.samples + u64::from(*position) - gaps.len() as u64);
            }
            drawn.add(&chunk);
            error = chunk.evaluated.error;
            if chunk.evaluated.rows.len() > 0 {
                rows.push(chunk.evaluated.rows);
            }
            if error.is_some() {
                break;
            }
        }
        let some = !rows.is_empty() || error.is_some() || !drawn.skipped.is_empty();
        let before = Progress { epoch, step, ..Progress::default() };
        let behind = Progress { step: step + 1, ..before.clone() };
        // A step that an error cuts short is taken again as a whole.
        let progress = if error.is_some() { before.clone() } else { behind };
        let kept = vec![kept];
        some.then(|| Self { step, before, progress, rows, error, drawn, gaps, kept, ..Self::default() })
    }

    /// Applies the functions of whole batches, allocates, and starts filling. Runs on the pool.
    pub(crate) fn begin(mut self, run: &Run, scratch: &mut Scratch) {
        let number = self.number;
        // One that found no memory comes a second time; its functions were applied the first time.
        if !std::mem::replace(&mut self.is_applied, true)
            && let Err(error) = no_panic(|| self.apply_on_batches(run, scratch))
        {
            run.ungranted.fetch_sub(1, Ordering::AcqRel);
            return run.finished(number, Err(error));
        }
        if self.rows.is_empty() {
            run.ungranted.fetch_sub(1, Ordering::AcqRel);
            let lanes: Vec<_> = run.ways.iter().map(|_| Finished::nothing()).collect();
            let error = self.error.or_else(|| missing_part(run, self.step, &lanes, &self.drawn));
            return run.finished(number, Ok(Assembled { lanes, error, drawn: self.drawn }));
        }
        let kept = self.kept.clone();
        match self.lay_out(run) {
            Ok(LaidOut::Filling(filling, tasks)) => {
                run.ungranted.fetch_sub(1, Ordering::AcqRel);
                filling.fill(run, tasks, scratch);
            }
            Ok(LaidOut::NoRoom(assembly)) => run.stall(*assembly),
            Err(error) => {
                run.ungranted.fetch_sub(1, Ordering::AcqRel);
                let error = locate(error, kept.iter().flat_map(|kept| kept.values()));
                run.finished(number, Err(error));
            }
        }
    }

    fn apply_on_batches(&mut self, run: &Run, scratch: &mut Scratch) -> Result<()> {
        let pipeline = &run.shared.pipeline;
        if pipeline.on_batches.is_empty() || self.rows.is_empty() {
            return Ok(());
        }
        let env = Env {
            stages: &pipeline.stages,
            enumerated: &pipeline.enumerated,
            blocks: &Blocks::default(),
            epoch: self.progress.epoch,
            window: 0,
            counters: &run.shared.counters,
            leave_out: run.shared.skip.is_some(),
        };
        let mut evaluated = Evaluated {
            rows: Rows::concat(&self.rows)?,
            origin: None,
            shares: None,
            skipped: Vec::new(),
            error: self.error.take(),
        };
        for &stage in &pipeline.on_batches {
            evaluated = env.apply(&pipeline.stages[stage], evaluated, scratch)?;
        }
        self.error = evaluated.error;
        self.rows.clear();
        let len = evaluated.rows.len();
        let chunk = run.shared.chunk_rows;
        self.rows.extend(
            (0..len).step_by(chunk.min(len).max(1)).map(|start| evaluated.rows.slice(start, chunk.min(len - start))),
        );
        Ok(())
    }

    /// Divides the rows among the lanes and allocates their batches.
    fn lay_out(mut self, run: &Run) -> Result<LaidOut> {
        let shared = &run.shared;
        let layouts = &shared.pipeline.layouts;
        let lanes = run.ways.len();
        let total: usize = self.rows.iter().map(Rows::len).sum();
        let share = |lane| cut(&self.rows, total * lane / lanes, total * (lane + 1) / lanes);
        let shares: Vec<(Vec<Rows>, u64)> = run
            .ways
            .iter()
            .enumerate()
            .map(|(lane, way)| {
                let rows = share(lane);
                let bytes = way.host_bytes(layouts, &rows);
                (rows, bytes)
            })
            .collect();
        self.bytes = shares.iter().map(|(_, bytes)| bytes).sum();
        let Some(mut grant) = shared.account.grant(self.bytes, 0) else { return Ok(LaidOut::NoRoom(Box::new(self))) };
        let mut allocators = Vec::with_capacity(lanes);
        for (way, (rows, _)) in run.ways.iter().zip(&shares) {
            if rows.is_empty() {
                allocators.push(None);
                continue;
            }
            let Some(allocator) = way.allocator(&shared.account)? else { return Ok(LaidOut::NoRoom(Box::new(self))) };
            allocators.push(Some(allocator));
        }
        shared.account.keep_spare(self.bytes * (shared.pipeline.window + 1));
        let (mut parts, mut tasks) = (Vec::with_capacity(lanes), Vec::new());
        let mut first_row = 0;
        for ((rows, bytes), allocator) in shares.into_iter().zip(allocators) {
            let Some(allocator) = allocator else {
                parts.push(None);
                continue;
            };
            let start = first_row;
            let samples = rows.iter().flat_map(|rows| rows.samples.iter().copied()).collect();
            let share = grant.split_off(bytes);
            let (filling, slots) = collate::begin(layouts, &rows, &allocator)?;
            let (tokens, padding) = filling.padding();
            shared.counters.collate.pad(tokens, padding);
            for (rows, slots) in rows.into_iter().zip(slots) {
                let at = first_row;
                first_row += rows.len();
                tasks.push(Fill { at, rows, slots });
            }
            parts.push(Some(Part { filling, samples, start, grant: share }));
        }
        let work = Work {
            number: self.number,
            step: self.step,
            before: self.before,
            progress: self.progress,
            left: AtomicUsize::new(tasks.len()),
            parts: Mutex::new(Some(parts)),
            bad: Mutex::default(),
            error: self.error,
            drawn: Mutex::new(self.drawn),
            total,
            gaps: self.gaps,
            kept: self.kept,
        };
        Ok(LaidOut::Filling(Arc::new(work), tasks))
    }
}

/// The result of an assembly that asked for memory.
enum LaidOut {
    /// The batch, and what is to be written into it.
    Filling(Arc<Work>, Vec<Fill>),
    /// The assembly again: the budget or a ring has no room for it now.
    NoRoom(Box<Assembly>),
}

/// A batch while its slots are filled.
struct Work {
    number: u64,
    step: u64,
    before: Progress,
    progress: Progress,
    left: AtomicUsize,
    parts: Mutex<Option<Vec<Option<Part>>>>,
    /// Rows that could not be written, counted over all lanes.
    bad: Mutex<Vec<(usize, Error)>>,
    /// The error that comes after the last row.
    error: Option<Error>,
    drawn: Mutex<Drawn>,
    total: usize,
    gaps: Vec<u64>,
    /// Blocks that the rows point into.
    kept: Vec<Kept>,
}

/// One chunk of rows to be written.
struct Fill {
    /// Number of the chunk's first row, counted over all lanes.
    at: usize,
    rows: Rows,
    slots: Slots,
}

/// A lane's part of the batch.
struct Part {
    filling: Filling,
    samples: Vec<Sample>,
    /// The part's first row.
    start: usize,
    grant: Grant,
}

impl Work {
    fn fill(self: Arc<Self>, run: &Run, mut tasks: Vec<Fill>, scratch: &mut Scratch) {
        // The last chunk is filled here: where there is only one, nothing is handed over.
        let last = tasks.pop();
        for task in tasks {
            let work = self.clone();
            run.submit(Level::Collate, move |run, scratch| work.fill_chunk(run, task, scratch));
        }
        if let Some(task) = last {
            self.fill_chunk(run, task, scratch);
        }
    }

    fn fill_chunk(&self, run: &Run, Fill { at, rows, slots }: Fill, scratch: &mut Scratch) {
        let layouts = &run.shared.pipeline.layouts;
        let counters = &run.shared.counters;
        let start = Instant::now();
        let bad = no_panic(|| Ok(collate::fill(layouts, &rows, slots, &|error| may_leave_out(run, error), scratch)))
            .unwrap_or_else(|e| vec![(0, e.stage("image"))]);
        let images = layouts.iter().any(|layout| layout.image.is_some());
        let counter = if images { &counters.image } else { &counters.collate };
        counter.busy(start.elapsed());
        if images {
            counters.image.add(rows.len() as u64, 0);
        }
        counters.collate.add(rows.len() as u64, 0);
        if !bad.is_empty() {
            let blocks = || self.kept.iter().flat_map(|kept| kept.values());
            let bad = bad.into_iter().map(|(row, error)| (at + row, locate(error, blocks())));
            self.bad.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(bad);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            run.finished(self.number, no_panic(|| self.finish(run)));
        }
    }

    fn finish(&self, run: &Run) -> Result<Assembled> {
        let parts = self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().expect("finished once");
        let mut drawn = std::mem::take(&mut *self.drawn.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut bad = std::mem::take(&mut *self.bad.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        bad.sort_by_key(|(row, _)| *row);
        let ends = bad.iter().position(|(_, error)| !may_leave_out(run, error)).map(|end| bad.split_off(end));
        let ended = ends
            .and_then(|ends| ends.into_iter().next())
            .map(|(row, error)| (row, if is_bad_record(&error) { error.or_leave_out() } else { error }));
        let progress = if ended.is_some() { &self.before } else { &self.progress };
        let (end, error) = ended.map_or_else(|| (self.total, self.error.clone()), |(row, error)| (row, Some(error)));
        let term = |row: usize| {
            let part = parts.iter().flatten().rfind(|part| part.start <= row).expect("rows belong to parts");
            let sample = part.samples[row - part.start];
            id_term(sample.id, sample.part, sample.pass)
        };
        drawn.skipped.extend(bad.iter().map(|(row, error)| (error.clone(), term(*row))));
        let counters = &run.shared.counters;
        let start = Instant::now();
        let mut finished = Vec::with_capacity(parts.len());
        for (part, way) in parts.into_iter().zip(&run.ways) {
            let Some(Part { filling, samples, start, grant }) = part else {
                finished.push(Finished::nothing());
                continue;
            };
            let kept = kept(start, samples.len().min(end.saturating_sub(start)), &bad);
            let len = kept.iter().map(ExactSizeIterator::len).sum();
            if len == 0 {
                finished.push(Finished::nothing());
                continue;
            }
            let sums = self.sums(run, kept.iter().cloned().flatten().map(|row| (start + row, samples[row])));
            let samples: Vec<u64> =
                kept.iter().flat_map(|rows| &samples[rows.clone()]).map(|sample| sample.id).collect();
            let columns = filling.finish(&kept)?;
            let bytes = columns.iter().map(|column| match &column.data {
                Data::Host(buffer) => buffer.bytes().len() as u64,
                _ => 0,
            });
            let bytes = bytes.sum();
            counters.collate.add(0, bytes);
            counters.deliver.add(len as u64, bytes);
            let (progress, identity) = (progress.clone(), run.shared.pipeline.identity.clone());
            let origins =
                if run.shared.traced { origins(&run.shared.pipeline, &self.kept, &samples) } else { Vec::new() };
            let mut batch = Batch { columns, len, step: self.step, samples, sums, progress, identity, origins };
            let parcel = way.send(&mut batch)?;
            finished.push(Finished { batch: Some(batch), grant: Some(grant), parcel });
        }
        counters.deliver.busy(start.elapsed());
        let error = error.or_else(|| missing_part(run, self.step, &finished, &drawn));
        Ok(Assembled { lanes: finished, error, drawn })
    }

    /// The sums of some rows, counted over all lanes.
    fn sums(&self, run: &Run, rows: impl Iterator<Item = (usize, Sample)>) -> Sums {
        let steps = run.shared.pipeline.steps;
        let first = self.step * steps.batch + steps.rank * (steps.batch / steps.world);
        let mut sums = Sums::default();
        for (row, Sample { id, pass, part, checksum }) in rows {
            let slot = row + self.gaps.partition_point(|&behind| behind <= row as u64);
            sums.deliver(id, part, pass, first + slot as u64, checksum);
        }
        sums
    }
}

fn may_leave_out(run: &Run, error: &Error) -> bool {
    run.shared.skip.is_some() && is_bad_record(error)
}

/// The rows of a part that starts at row `start`, without those that are bad, as ranges counted from `start`.
fn kept(start: usize, len: usize, bad: &[(usize, Error)]) -> Vec<Range<usize>> {
    let (mut kept, mut from) = (Vec::new(), 0);
    let gaps = bad.iter().map(|(row, _)| *row).filter(|row| (start..start + len).contains(row)).map(|row| row - start);
    for gap in gaps.chain([len]) {
        if from < gap {
            kept.push(from..gap);
        }
        from = gap + 1;
    }
    kept
}

/// The error of a step in which a rank or device has no samples, because all of its were bad, while others have some.
fn missing_part(run: &Run, step: u64, lanes: &[Finished], drawn: &Drawn) -> Option<Error> {
    let alone = run.shared.pipeline.steps.world == 1 && lanes.len() == 1 || run.shared.pipeline.expands;
    let (bad, _) = drawn.skipped.last().filter(|_| !alone && lanes.iter().any(|lane| lane.batch.is_none()))?;
    Some(bad.clone().advice(format!(
        "it leaves a rank or device without any sample of step {step}, while others have some: mend the shards, or take larger batches"
    )))
}

/// The rows from `start` to `end` of chunks laid end to end.
fn cut(chunks: &[Rows], start: usize, end: usize) -> Vec<Rows> {
    let (mut before, mut out) = (0, Vec::new());
    for chunk in chunks {
        let (from, to) = (start.max(before), end.min(before + chunk.len()));
        if from < to {
            let whole = from == before && to == before + chunk.len();
            out.push(if whole { chunk.clone() } else { chunk.slice(from - before, to - from) });
        }
        before += chunk.len();
    }
    out
}

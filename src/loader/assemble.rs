//! Evaluated rows to finished batches: one allocation a column, filled by several tasks, delivered to its device.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::evaluate::{Env, Evaluated};
use super::run::{Evaluation, Kept, Run};
use crate::batch::collate::{self, Filling, Rows, Slots};
use crate::batch::{Batch, BatchColumn};
use crate::engine::budget::Grant;
use crate::engine::pool::{Level, no_panic};
use crate::error::{Error, Result};
use crate::plan::{Cursor, State};
use crate::transform::image::Scratch;

/// The rows of one batch, in order.
pub(crate) struct Assembly {
    /// Its place in the order of what is delivered.
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    pub(crate) rows: Vec<Rows>,
    /// What comes behind these rows in place of more.
    pub(crate) error: Option<Error>,
    pub(crate) cursors: Vec<Cursor>,
    /// Blocks that the rows point into.
    pub(crate) kept: Vec<Kept>,
    /// Bytes of the batch, once they are known.
    pub(crate) bytes: u64,
}

/// A finished batch of one lane, with its share of the budget.
pub(crate) struct Finished {
    pub(crate) batch: Option<Batch>,
    pub(crate) grant: Option<Grant>,
}

impl Assembly {
    /// The batch of a step whose rows are positions.
    pub(crate) fn of_step(evaluation: Evaluation) -> Option<Self> {
        let Evaluation { epoch, step, chunks, kept, .. } = evaluation;
        let (mut rows, mut error) = (Vec::with_capacity(chunks.len()), None);
        for chunk in chunks {
            error = chunk.evaluated.error;
            if chunk.evaluated.rows.len() > 0 {
                rows.push(chunk.evaluated.rows);
            }
            if error.is_some() {
                break;
            }
        }
        let some = !rows.is_empty() || error.is_some();
        some.then(|| Self { number: 0, epoch, step, rows, error, cursors: Vec::new(), kept: vec![kept], bytes: 0 })
    }

    /// Applies the functions of whole batches, allocates, and starts filling. Runs on the pool.
    pub(crate) fn begin(mut self, run: &Run, scratch: &mut Scratch) {
        let number = self.number;
        // One that found no memory comes a second time; its functions were applied the first time.
        let first_time = self.bytes == 0;
        if first_time && let Err(error) = no_panic(|| self.apply_on_batches(run, scratch)) {
            run.ungranted.fetch_sub(1, Ordering::AcqRel);
            return run.finished(number, Err(error));
        }
        if self.rows.is_empty() {
            run.ungranted.fetch_sub(1, Ordering::AcqRel);
            let lanes = run.devices.iter().map(|_| Finished { batch: None, grant: None }).collect();
            return run.finished(number, Ok((lanes, self.error)));
        }
        let layouts = &run.shared.pipeline.layouts;
        self.bytes = collate::batch_bytes(layouts, &self.rows);
        let Some(grant) = run.shared.account.grant(self.bytes, 0) else { return run.stall(self) };
        run.ungranted.fetch_sub(1, Ordering::AcqRel);
        match self.lay_out(run, grant) {
            Ok((filling, tasks)) => filling.fill(run, tasks, scratch),
            Err(error) => run.finished(number, Err(error)),
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
            blocks: &Kept::default(),
            epoch: self.epoch,
            counters: &run.shared.counters,
        };
        let mut evaluated = Evaluated { rows: Rows::concat(&self.rows)?, origin: None, error: self.error.take() };
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

    /// Shares the rows out to the lanes and allocates their batches.
    fn lay_out(self, run: &Run, mut grant: Grant) -> Result<(Arc<Work>, Vec<Fill>)> {
        let shared = &run.shared;
        let lanes = run.devices.len();
        let total: usize = self.rows.iter().map(Rows::len).sum();
        let (mut parts, mut tasks) = (Vec::with_capacity(lanes), Vec::new());
        let mut first_row = 0;
        for lane in 0..lanes {
            let (start, end) = (total * lane / lanes, total * (lane + 1) / lanes);
            let rows = cut(&self.rows, start, end);
            if rows.is_empty() {
                parts.push(None);
                continue;
            }
            let samples = rows.iter().flat_map(|rows| rows.samples.iter().map(|sample| sample.id)).collect();
            let bytes = collate::batch_bytes(&shared.pipeline.layouts, &rows);
            let share = grant.split_off(bytes);
            let (filling, slots) = collate::begin(&shared.pipeline.layouts, &rows, shared.allocator)?;
            for (rows, slots) in rows.into_iter().zip(slots) {
                let at = first_row;
                first_row += rows.len();
                tasks.push(Fill { at, rows, slots });
            }
            parts.push(Some(Part { filling, samples, start, grant: share }));
        }
        let state = State {
            version: 1,
            fingerprint: shared.pipeline.fingerprint,
            seed: shared.seed,
            streams: shared.pipeline.steps.streams,
            epoch: self.epoch,
            step: self.step + 1,
            cursors: self.cursors,
        };
        let work = Work {
            number: self.number,
            epoch: self.epoch,
            step: self.step,
            left: AtomicUsize::new(tasks.len()),
            parts: Mutex::new(Some(parts)),
            failed: Mutex::new(self.error.map(|error| (total, error))),
            total,
            state,
            _kept: self.kept,
        };
        Ok((Arc::new(work), tasks))
    }
}

/// A batch while its slots are filled.
struct Work {
    number: u64,
    epoch: u64,
    step: u64,
    left: AtomicUsize,
    parts: Mutex<Option<Vec<Option<Part>>>>,
    /// The first row that failed, counted over all lanes.
    failed: Mutex<Option<(usize, Error)>>,
    total: usize,
    state: State,
    _kept: Vec<Kept>,
}

/// One chunk of rows to be written.
struct Fill {
    /// Number of its first row, counted over all lanes.
    at: usize,
    rows: Rows,
    slots: Slots,
}

/// A lane's part of it.
struct Part {
    filling: Filling,
    samples: Vec<u64>,
    /// Its first row.
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
        let filled = no_panic(|| Ok(collate::fill(layouts, &rows, slots, scratch)))
            .unwrap_or_else(|e| Err((0, e.stage("image"))));
        let images = layouts.iter().any(|layout| layout.image.is_some());
        let counter = if images { &counters.image } else { &counters.collate };
        counter.busy(start.elapsed());
        if images {
            counters.image.add(rows.len() as u64, 0);
        }
        counters.collate.add(rows.len() as u64, 0);
        if let Err((row, error)) = filled {
            let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if failed.as_ref().is_none_or(|(first, _)| at + row < *first) {
                *failed = Some((at + row, error));
            }
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            run.finished(self.number, no_panic(|| self.finish(run)));
        }
    }

    fn finish(&self, run: &Run) -> Result<(Vec<Finished>, Option<Error>)> {
        let parts = self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().expect("finished once");
        let failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let (keep, error) = failed.map_or((self.total, None), |(row, error)| (row, Some(error)));
        let counters = &run.shared.counters;
        let start = Instant::now();
        let mut finished = Vec::with_capacity(parts.len());
        for (part, device) in parts.into_iter().zip(&run.devices) {
            let Some(Part { filling, mut samples, start, grant }) = part else {
                finished.push(Finished { batch: None, grant: None });
                continue;
            };
            samples.truncate(keep.saturating_sub(start));
            let len = samples.len();
            if len == 0 {
                finished.push(Finished { batch: None, grant: None });
                continue;
            }
            counters.collate.add(0, grant.bytes());
            counters.deliver.add(len as u64, grant.bytes());
            let columns = filling.finish(len, run.shared.allocator)?;
            let columns = deliver(columns, device)?;
            let batch = Batch { columns, len, epoch: self.epoch, step: self.step, samples, state: self.state.clone() };
            finished.push(Finished { batch: Some(batch), grant: Some(grant) });
        }
        counters.deliver.busy(start.elapsed());
        Ok((finished, error))
    }
}

/// Brings columns to their device.
#[cfg(feature = "tch")]
fn deliver(columns: Vec<BatchColumn>, device: &crate::device::Delivery) -> Result<Vec<BatchColumn>> {
    use crate::batch::Data;
    use crate::batch::buffer::torch::TorchMemory;
    let columns = columns.into_iter().map(|mut column| {
        column.data = match column.data {
            Data::Host(buffer) => {
                let memory = buffer.into_owner().downcast::<TorchMemory>().expect("this build allocates with libtorch");
                Data::Tensor(device.copy(memory.into_tensor()).map_err(|e| e.column(column.column.name().clone()))?)
            }
            other => other,
        };
        Ok(column)
    });
    columns.collect()
}

/// Without libtorch batches stay where they are.
#[cfg(not(feature = "tch"))]
#[expect(clippy::unnecessary_wraps, reason = "with libtorch a copy can fail")]
fn deliver(columns: Vec<BatchColumn>, _device: &crate::device::Delivery) -> Result<Vec<BatchColumn>> {
    Ok(columns)
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

//! Emulated accelerators: each takes its part of every batch and holds it for the time of a step.
//!
//! As in MLPerf Storage an accelerator is a thread that asks for a batch, works for a fixed time without using a core, and meets the others at a barrier
//! after every step. Its utilisation is the time in steps over all its time, from the end of the first step on: what the loader does before it
//! has delivered anything is measured as the first batch.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Bench, Measured, Meter, quantile};
use crate::device::Device;
use crate::engine::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::{Epoch, Loader};

/// What is emulated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) accelerators: u32,
    /// Steps of each, the first included.
    pub(super) steps: u64,
    pub(super) step: Duration,
    /// Samples of an accelerator's batch.
    pub(super) batch: usize,
}

/// Steps without time in front of a run, for the memory of all batches that are on their way or held at a time.
const WARM_UP: u64 = 5;

/// All runs of a plan.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Emulation {
    pub(super) accelerators: u32,
    pub(super) step_s: f64,
    pub(super) runs: Vec<Ran>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ran {
    /// Steps that each accelerator took.
    pub(super) steps: Vec<u64>,
    /// Time in steps over all time, summed over accelerators.
    pub(super) utilisation: f64,
    /// The same from the end of the first step on.
    pub(super) utilisation_after_first: f64,
    /// The same again, where a step counts as long as it was to be, however late its thread was woken.
    pub(super) utilisation_stated: f64,
    pub(super) samples_per_s: f64,
    pub(super) wait_p50_s: f64,
    pub(super) wait_p99_s: f64,
    pub(super) wait_max_s: f64,
    pub(super) wall_s: f64,
}

/// What one accelerator saw.
#[derive(Debug, Default)]
struct Seen {
    waits: Vec<Duration>,
    /// What its steps really took: a thread that sleeps is woken late where workers have the cores.
    steps: Vec<Duration>,
    /// From the end of its first step to that of its last.
    behind_first: Duration,
}

/// Where all accelerators meet after each step. Unlike the standard library's it can be broken, so that nobody waits for one that has failed.
struct Barrier {
    of: u32,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meeting {
    here: u32,
    number: u64,
    is_broken: bool,
}

impl Barrier {
    fn new(of: u32) -> Self {
        Self { of, meeting: Mutex::default(), changed: Condvar::new() }
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for all others; whether they came.
    fn meet(&self) -> bool {
        let mut meeting = self.meeting();
        meeting.here += 1;
        if meeting.here == self.of {
            (meeting.here, meeting.number) = (0, meeting.number + 1);
            let is_whole = !meeting.is_broken;
            // Those that are woken want the lock at once.
            drop(meeting);
            self.changed.notify_all();
            return is_whole;
        }
        let number = meeting.number;
        while meeting.number == number && !meeting.is_broken {
            meeting = self.changed.wait(meeting).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        // One that is broken behind this meeting shows at the next.
        meeting.number != number
    }

    fn break_up(&self) {
        self.meeting().is_broken = true;
        self.changed.notify_all();
    }
}

/// Breaks the barrier up when an accelerator ends before its last step, be it by a panic.
struct Ending<'a> {
    barrier: &'a Barrier,
    is_whole: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.barrier.break_up();
        }
    }
}

/// Takes all steps of one accelerator; `None` if another one ended them.
fn accelerate(mut batches: Epoch, plan: &Plan, barrier: &Barrier) -> Result<Option<Seen>> {
    let mut ending = Ending { barrier, is_whole: false };
    let mut seen = Seen::default();
    let (mut held, mut behind_first) = (None, None);
    for step in 0..plan.steps {
        let asked = Instant::now();
        let Some(batch) = batches.next() else { return Ok(None) };
        seen.waits.push(asked.elapsed());
        let batch = batch?;
        if batch.len() != plan.batch {
            // Rows in front of a bad one come as a batch of their own; its error is next.
            let short = format!("step {step} has {} samples instead of {}", batch.len(), plan.batch);
            return Err(batches.next().and_then(Result::err).unwrap_or_else(|| Error::new(ErrorKind::Corrupt, short)));
        }
        let begun = Instant::now();
        // The batch is held for the whole step. That of the step before is let go within this one, as a loop lets go of a variable.
        drop(held.replace(batch));
        std::thread::sleep(plan.step.saturating_sub(begun.elapsed()));
        seen.steps.push(begun.elapsed());
        if !barrier.meet() {
            return Ok(None);
        }
        behind_first.get_or_insert_with(Instant::now);
    }
    seen.behind_first = behind_first.map_or(Duration::ZERO, |first| first.elapsed());
    ending.is_whole = true;
    Ok(Some(seen))
}

/// Runs all accelerators to their last step.
fn run_all(loader: &mut Loader, plan: &Plan) -> Result<Vec<Seen>> {
    let barrier = Barrier::new(plan.accelerators);
    let parts = loader.split(&vec![Device::Cpu; plan.accelerators as usize])?;
    let seen: Vec<Result<Option<Seen>>> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            let thread = std::thread::Builder::new().name(format!("accelerator-{number}"));
            match thread.spawn_scoped(scope, || accelerate(part, plan, &barrier)) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    barrier.break_up();
                    return vec![Err(Error::config(format!("cannot start accelerator {number}")).because(e))];
                }
            }
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    // An error says why; that others ended because of it, nothing.
    let seen = seen.into_iter().collect::<Result<Vec<_>>>()?;
    let whole: Option<Vec<Seen>> = seen.into_iter().collect();
    whole.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the loader ended before the last step"))
}

/// Emulates once, on a loader of its own, whose batches go on as long as steps are to be taken.
pub(super) fn emulate(bench: &Bench<'_>, scheduler: Scheduler, plan: &Plan) -> Result<(Measured, Ran, Loader)> {
    let mut loader = bench.endless(plan.batch * plan.accelerators as usize, scheduler)?;
    // Batches of many accelerators are gigabytes, of which the kernel clears each page at its first use: seconds, which a training has behind it soon, and a short
    // run would be measured by.
    run_all(&mut loader, &Plan { steps: WARM_UP, step: Duration::ZERO, ..*plan })?;
    let meter = Meter::start(&loader);
    let seen = run_all(&mut loader, plan)?;
    let used = meter.stop(&loader);
    let step = plan.step.as_secs_f64();
    let sum = |durations: &mut dyn Iterator<Item = Duration>| durations.sum::<Duration>().as_secs_f64();
    let all = used.wall_s * f64::from(plan.accelerators);
    let stepped = sum(&mut seen.iter().flat_map(|seen| seen.steps.iter().copied()));
    let behind_first = sum(&mut seen.iter().map(|seen| seen.behind_first));
    let stepped_behind_first = sum(&mut seen.iter().flat_map(|seen| seen.steps[1..].iter().copied()));
    let steps: Vec<u64> = seen.iter().map(|seen| seen.steps.len() as u64).collect();
    let batches: u64 = steps.iter().sum();
    let mut waits: Vec<Duration> = seen.into_iter().flat_map(|seen| seen.waits).collect();
    let waited: Duration = waits.iter().sum();
    waits.sort_unstable();
    let samples = batches * plan.batch as u64;
    let ran = Ran {
        utilisation: stepped / all,
        utilisation_after_first: stepped_behind_first / behind_first,
        utilisation_stated: step * (batches - u64::from(plan.accelerators)) as f64 / behind_first,
        samples_per_s: samples as f64 / used.wall_s,
        wait_p50_s: quantile(&waits, 0.5),
        wait_p99_s: quantile(&waits, 0.99),
        wait_max_s: quantile(&waits, 1.0),
        wall_s: used.wall_s,
        steps,
    };
    let measured = Measured {
        wait_share: waited.as_secs_f64() / all,
        utilisation: ran.utilisation,
        utilisation_after_first: ran.utilisation_after_first,
        ..Measured::of(&loader, &used, samples, &waits)
    };
    Ok((measured, ran, loader))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use arrow::array::Int64Array;

    use super::*;
    use crate::dataset::{Dataset, TfRecord};
    use crate::format::tfrecord::{Compression, Writer};

    fn numbers(rows: i64) -> Dataset {
        Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..rows)) as _)]).unwrap()
    }

    fn plan(accelerators: u32, steps: u64) -> Plan {
        Plan { accelerators, steps, step: Duration::from_micros(50), batch: 4 }
    }

    #[test]
    fn all_accelerators_take_as_many_steps() {
        let mut loader = numbers(100).repeat_forever().batch(12).loader().build().unwrap();
        let seen = run_all(&mut loader, &plan(3, 40)).unwrap();
        let counts: Vec<_> = seen.iter().map(|seen| (seen.waits.len(), seen.steps.len())).collect();
        assert_eq!(counts, [(40, 40); 3]);
        assert!(seen.iter().flat_map(|seen| &seen.steps).all(|step| *step >= Duration::from_micros(50)));
    }

    #[test]
    fn nobody_is_a_step_ahead_of_the_others() {
        let (barrier, steps) = (Barrier::new(4), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..200 {
                        let before = steps.fetch_add(1, Ordering::SeqCst);
                        assert!((step * 4..step * 4 + 4).contains(&before), "{before} in step {step}");
                        assert!(barrier.meet());
                    }
                });
            }
        });
    }

    #[test]
    fn one_that_fails_ends_all_with_its_error() {
        let dataset = numbers(100)
            .map("check", [crate::schema::int64("x")], |_, row, out| match row.get::<i64>("x")? {
                61 => Err(Error::new(ErrorKind::Transform, "sixty-one")),
                x => out.set("x", x),
            })
            .batch(12);
        let mut loader = dataset.loader().build().unwrap();
        let error = run_all(&mut loader, &plan(3, 40)).unwrap_err();
        assert!(error.to_string().contains("sixty-one"), "{error}");
    }

    #[test]
    fn a_damaged_shard_ends_all_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Vec::new(), Compression::None);
        (0..60u8).for_each(|record| writer.write(&[record; 100]).unwrap());
        let mut shard = writer.finish().unwrap();
        // In the payload of record 40: a header of 12 bytes, and 4 behind.
        shard[40 * 116 + 50] ^= 1;
        let path = folder.path().join("shard.tfrecord");
        std::fs::write(&path, shard).unwrap();
        let dataset = Dataset::open_with([path.display().to_string()], TfRecord::new().records()).unwrap();
        let mut loader = dataset.repeat_forever().batch(12).loader().index_dir(folder.path()).build().unwrap();
        let error = run_all(&mut loader, &plan(3, 40)).unwrap_err();
        assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(40)), "{error}");
    }

    #[test]
    fn data_that_ends_early_ends_all() {
        let mut loader = numbers(96).batch(12).loader().build().unwrap();
        let error = run_all(&mut loader, &plan(3, 40)).unwrap_err();
        assert!(error.to_string().contains("before the last step"), "{error}");
        let mut loader = numbers(100).batch(12).loader().build().unwrap();
        let error = run_all(&mut loader, &plan(3, 40)).unwrap_err();
        assert!(error.to_string().contains("instead of 4"), "{error}");
    }

    #[test]
    fn a_panic_leaves_nobody_at_the_barrier() {
        let barrier = Barrier::new(2);
        let ended = std::thread::scope(|scope| {
            let waits = scope.spawn(|| barrier.meet());
            let panics = scope.spawn(|| {
                let _ending = Ending { barrier: &barrier, is_whole: false };
                panic!("an accelerator's");
            });
            (waits.join().unwrap(), panics.join().is_err())
        });
        assert_eq!(ended, (false, true));
    }
}

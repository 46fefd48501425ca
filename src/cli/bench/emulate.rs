//! Emulated accelerators: each takes its part of every batch and holds it for the time of a step.
//!
//! As in MLPerf Storage an accelerator takes a batch, and then works for a fixed time without using a core. All of them meet at a
//! barrier after every step: it has ended when it has lasted its time for the one that began it last, and the clock counts from then on, however late
//! threads are woken. Utilisation is the time in steps over all time, from the end of the first step on: what the loader does before it has delivered
//! anything is measured as the first batch. An accelerator waits from the end of a step until it has its next batch, so that its waits and steps
//! are all time but for what it waits for others at the barrier, and what a run's beginning and end take.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Bench, Measured, Meter, quantile};
use crate::batch::Batch;
use crate::device::Device;
use crate::engine::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::Loader;

/// How long steps are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    Step(Duration),
    /// So long that the accelerators ask for this share of what they take when no step needs time, as measured just before each run.
    Demand(f64),
}

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

/// How long the loader's maximum is measured, at least, where the run behind it is no shorter.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

/// How late timers fire on virtual machines. An accelerator's own clock does not: so long before a step's end one thread stays awake.
const TIMERS_LATE: Duration = Duration::from_micros(150);

/// All runs of a plan.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Emulation {
    pub(super) accelerators: u32,
    /// Threads that drive them.
    pub(super) host_threads: usize,
    /// A step of the run of median utilisation; all have the same unless a demand is stated.
    pub(super) step_s: f64,
    /// Utilisation of the same accelerators where there is nothing to wait for: what the machine loses by waking their threads.
    pub(super) without_loader: f64,
    pub(super) runs: Vec<Ran>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ran {
    /// What the same accelerators took just before when no step needed time: the loader's maximum, as it is asked for here.
    pub(super) maximum_samples_per_s: f64,
    /// The same just after: a machine that became slower meanwhile was asked for more than stated.
    pub(super) maximum_after_samples_per_s: f64,
    /// What they ask for of it.
    pub(super) demand_share: f64,
    /// Steps that each accelerator took.
    pub(super) steps: u64,
    pub(super) step_s: f64,
    /// Time in steps over all time. With the share of waits it is 1 at most: the rest is waiting for other accelerators, and a run's beginning and end.
    pub(super) utilisation: f64,
    /// The same from the end of the first step on.
    pub(super) utilisation_after_first: f64,
    pub(super) samples_per_s: f64,
    /// From the end of a step, when all are ready for their next batches, until one has its own; of the first step, from when its thread runs.
    pub(super) wait_p50_s: f64,
    pub(super) wait_p99_s: f64,
    pub(super) wait_max_s: f64,
    pub(super) wall_s: f64,
}

/// What the accelerators of one thread saw.
#[derive(Debug, Default)]
struct Seen {
    waits: Vec<Duration>,
    /// When each step ended for all.
    ends: Vec<Instant>,
}

/// Where the threads of all accelerators are while these step.
struct Barrier {
    of: usize,
    step: Duration,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meeting {
    here: usize,
    /// Steps that ended, and when the last one did.
    number: u64,
    ended: Option<Instant>,
    is_broken: bool,
}

impl Barrier {
    fn new(of: usize, step: Duration) -> Self {
        Self { of, step, meeting: Mutex::default(), changed: Condvar::new() }
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A step of one thread's accelerators, which begins now, and `within` which something else is done. When it ended for all; `None` if one of them does not come.
    ///
    /// The one that begins last wakes the others, so that each thread is woken once a step.
    fn step(&self, within: impl FnOnce()) -> Option<Instant> {
        let mut meeting = self.meeting();
        meeting.here += 1;
        let (number, is_last) = (meeting.number, meeting.here == self.of);
        drop(meeting);
        let end = Instant::now() + self.step;
        within();
        if is_last {
            std::thread::sleep(end.saturating_duration_since(Instant::now() + TIMERS_LATE));
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            meeting = self.meeting();
            *meeting = Meeting { here: 0, number: number + 1, ended: Some(end), ..*meeting };
            // Those that are woken want the lock at once.
            drop(meeting);
            self.changed.notify_all();
            return Some(end);
        }
        meeting = self.meeting();
        while meeting.number == number && !meeting.is_broken {
            meeting = self.changed.wait(meeting).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        // One that fails behind this step is missed at the next.
        meeting.ended.filter(|_| meeting.number != number)
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

/// Takes all steps of one thread's accelerators, each with its own batches; `None` if another thread ended them.
fn accelerate<B>(
    mut parts: Vec<impl Iterator<Item = Result<B>>>,
    len: impl Fn(&B) -> usize,
    plan: &Plan,
    barrier: &Barrier,
) -> Result<Option<Seen>> {
    let mut ending = Ending { barrier, is_whole: false };
    let mut seen = Seen::default();
    let mut held = Vec::new();
    // All are ready at once, and those behind the first of a thread wait for as long as that one does.
    let mut ready = Instant::now();
    for step in 0..plan.steps {
        let mut taken = Vec::with_capacity(parts.len());
        for batches in &mut parts {
            let Some(batch) = batches.next() else { return Ok(None) };
            seen.waits.push(ready.elapsed());
            let batch = batch?;
            if len(&batch) != plan.batch {
                // Rows in front of a bad one come as a batch of their own; its error is next.
                let short = format!("step {step} has {} samples instead of {}", len(&batch), plan.batch);
                let error = batches.next().and_then(Result::err);
                return Err(error.unwrap_or_else(|| Error::new(ErrorKind::Corrupt, short)));
            }
            taken.push(batch);
        }
        // Batches are held for the whole step. Those of the step before are let go within this one, as a loop lets go of a variable.
        let Some(ended) = barrier.step(|| drop(std::mem::replace(&mut held, taken))) else { return Ok(None) };
        seen.ends.push(ended);
        ready = ended;
    }
    ending.is_whole = true;
    Ok(Some(seen))
}

/// Threads for so many accelerators: half of the cores at most. On fewer cores than accelerators, waking a thread for each would be most of what is measured.
pub(super) fn num_threads(accelerators: u32) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (accelerators as usize).min((cores / 2).max(1))
}

/// Runs accelerators to their last step, each with its own batches, on so many threads.
fn run_all<B>(
    parts: Vec<impl Iterator<Item = Result<B>> + Send>,
    threads: usize,
    len: impl Fn(&B) -> usize + Copy + Send,
    plan: &Plan,
) -> Result<Vec<Seen>> {
    // Linux wakes a thread that sleeps up to 50 us late to save interrupts, unless it asks for better; threads have it from the one that starts them.
    _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let barrier = &Barrier::new(threads, plan.step);
    let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    parts.into_iter().enumerate().for_each(|(number, part)| shares[number % threads].push(part));
    let seen: Vec<Result<Option<Seen>>> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, share) in shares.into_iter().enumerate() {
            let thread = std::thread::Builder::new().name(format!("accelerators-{number}"));
            match thread.spawn_scoped(scope, move || accelerate(share, len, plan, barrier)) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    barrier.break_up();
                    return vec![
                        Err(Error::config(format!("cannot start thread {number} of accelerators")).because(e)),
                    ];
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

impl Plan {
    fn samples_per_step(&self) -> usize {
        self.batch * self.accelerators as usize
    }

    /// Samples that they ask for in a second.
    pub(super) fn demand(&self) -> f64 {
        self.samples_per_step() as f64 / self.step.as_secs_f64()
    }

    /// The step with which they ask for so many samples a second.
    fn step_for(&self, demand: f64) -> Duration {
        Duration::from_secs_f64(self.samples_per_step() as f64 / demand)
    }
}

/// Runs accelerators on a loader's batches.
fn run_on(loader: &mut Loader, plan: &Plan) -> Result<Vec<Seen>> {
    let parts = loader.split(&vec![Device::Cpu; plan.accelerators as usize])?;
    run_all(parts, num_threads(plan.accelerators), Batch::len, plan)
}

/// Steps a second, from the end of the first on.
fn behind_first(ends: &[Instant]) -> f64 {
    let (Some(first), Some(last)) = (ends.first(), ends.last()) else { return f64::NAN };
    (ends.len() - 1) as f64 / (*last - *first).as_secs_f64()
}

/// Samples a second of the accelerators of a plan when no step needs time. They hold as many batches as with time, which counts: what one loop takes and lets go at
/// once stays in the cores' caches.
fn maximum_on(loader: &mut Loader, plan: &Plan) -> Result<f64> {
    let long_enough = (plan.step * u32::try_from(plan.steps).unwrap_or(u32::MAX)).min(LONG_ENOUGH);
    // The memory of all these batches is gigabytes for large ones, of which the kernel clears each page at its first use: seconds, which a training has behind it
    // soon, and a short run would be measured by.
    let mut steps = WARM_UP;
    run_on(loader, &Plan { steps, step: Duration::ZERO, ..*plan })?;
    loop {
        let began = Instant::now();
        let seen = run_on(loader, &Plan { steps, step: Duration::ZERO, ..*plan })?;
        if began.elapsed() >= long_enough {
            return Ok(behind_first(&seen[0].ends) * plan.samples_per_step() as f64);
        }
        steps *= 2;
    }
}

/// See [`Ran::maximum_samples_per_s`].
pub(super) fn maximum(bench: &Bench<'_>, scheduler: Scheduler, plan: &Plan) -> Result<f64> {
    maximum_on(&mut bench.endless(plan.samples_per_step(), scheduler)?, plan)
}

/// The utilisation of accelerators that have nothing to wait for.
pub(super) fn without_loader(plan: &Plan) -> Result<f64> {
    let parts = (0..plan.accelerators).map(|_| std::iter::repeat_with(|| Ok(()))).collect();
    let seen = run_all(parts, num_threads(plan.accelerators), |_| plan.batch, plan)?;
    Ok(behind_first(&seen[0].ends) * plan.step.as_secs_f64())
}

/// Emulates once, on a loader of its own, whose batches go on as long as steps are to be taken.
pub(super) fn emulate(
    bench: &Bench<'_>,
    scheduler: Scheduler,
    accelerators: u32,
    pace: Pace,
) -> Result<(Measured, Ran, Loader)> {
    // Where the maximum says how long steps are, it is measured as that of a long run.
    let mut plan = bench.plan(accelerators, if let Pace::Step(step) = pace { step } else { LONG_ENOUGH });
    let mut loader = bench.endless(plan.samples_per_step(), scheduler)?;
    let maximum_samples_per_s = maximum_on(&mut loader, &plan)?;
    if let Pace::Demand(share) = pace {
        plan = bench.plan(accelerators, plan.step_for(share * maximum_samples_per_s));
    }
    let meter = Meter::start(&loader);
    let seen = run_on(&mut loader, &plan)?;
    let used = meter.stop(&loader);
    let maximum_after_samples_per_s = maximum_on(&mut loader, &plan)?;
    let (steps, step) = (plan.steps, plan.step.as_secs_f64());
    // Each step ends for all at once.
    let utilisation_after_first = behind_first(&seen[0].ends) * step;
    let mut waits: Vec<Duration> = seen.into_iter().flat_map(|seen| seen.waits).collect();
    let waited: Duration = waits.iter().sum();
    waits.sort_unstable();
    let samples = waits.len() as u64 * plan.batch as u64;
    let ran = Ran {
        maximum_samples_per_s,
        maximum_after_samples_per_s,
        demand_share: plan.demand() / maximum_samples_per_s,
        steps,
        step_s: step,
        utilisation: step * steps as f64 / used.wall_s,
        utilisation_after_first,
        samples_per_s: samples as f64 / used.wall_s,
        wait_p50_s: quantile(&waits, 0.5),
        wait_p99_s: quantile(&waits, 0.99),
        wait_max_s: quantile(&waits, 1.0),
        wall_s: used.wall_s,
    };
    let measured = Measured {
        wait_share: waited.as_secs_f64() / (used.wall_s * f64::from(plan.accelerators)),
        utilisation: ran.utilisation,
        utilisation_after_first,
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

    fn on_threads(loader: &mut Loader, threads: usize) -> Result<Vec<Seen>> {
        run_all(loader.split(&[Device::Cpu; 3])?, threads, Batch::len, &plan(3, 40))
    }

    #[test]
    fn all_accelerators_take_as_many_steps() {
        let mut loader = numbers(100).repeat_forever().batch(12).loader().build().unwrap();
        for threads in 1..=3 {
            let seen = on_threads(&mut loader, threads).unwrap();
            assert_eq!(seen.iter().map(|seen| seen.waits.len()).sum::<usize>(), 3 * 40);
            assert_eq!((seen.len(), seen[0].ends.len()), (threads, 40));
            assert!(seen.iter().all(|of_one| of_one.ends == seen[0].ends), "a step ends for all at once");
            assert!(seen[0].ends.windows(2).all(|ends| ends[1] - ends[0] >= Duration::from_micros(50)));
        }
    }

    #[test]
    fn accelerators_of_a_thread_wait_from_the_end_of_a_step() {
        let plan = plan(2, 5);
        let late = |after: Duration| {
            std::iter::repeat_with(move || {
                std::thread::sleep(after);
                Ok(())
            })
        };
        let parts = Vec::from([2, 0].map(|after| late(Duration::from_millis(after))));
        let barrier = Barrier::new(1, plan.step);
        let seen = accelerate(parts, |()| plan.batch, &plan, &barrier).unwrap().unwrap();
        let waits: Vec<&[Duration]> = seen.waits.chunks(2).collect();
        // The second had its batch at once when it was asked, and asked as early as the first.
        assert!(waits.iter().all(|waits| waits[1] >= waits[0] && waits[0] >= Duration::from_millis(2)), "{waits:?}");
        // No time is both waited and worked.
        for (ends, waits) in seen.ends.windows(2).zip(&waits[1..]) {
            assert!(waits[1] + plan.step <= ends[1] - ends[0], "{waits:?}");
        }
    }

    #[test]
    fn a_step_ends_when_it_has_lasted_for_the_last_that_began_it() {
        let barrier = Barrier::new(2, Duration::from_millis(20));
        let (early, (late, begun)) = std::thread::scope(|scope| {
            let early = scope.spawn(|| barrier.step(|| ()));
            let late = scope.spawn(|| {
                while barrier.meeting().here == 0 {
                    std::thread::yield_now();
                }
                let begun = Instant::now();
                (barrier.step(|| ()), begun)
            });
            (early.join().unwrap(), late.join().unwrap())
        });
        assert_eq!(early, late);
        assert!(late.unwrap() - begun >= Duration::from_millis(20));
        assert!((0.0..=1.0).contains(&without_loader(&plan(3, 20)).unwrap()));
    }

    #[test]
    fn nobody_is_a_step_ahead_of_the_others() {
        let (barrier, steps) = (Barrier::new(4, Duration::ZERO), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..200 {
                        let before = steps.fetch_add(1, Ordering::SeqCst);
                        assert!((step * 4..step * 4 + 4).contains(&before), "{before} in step {step}");
                        assert!(barrier.step(|| ()).is_some());
                    }
                });
            }
        });
    }

    #[test]
    fn one_that_fails_ends_all_with_its_error() {
        let dataset = numbers(96)
            .map("check", [crate::schema::int64("x")], |_, row, out| match row.get::<i64>("x")? {
                61 => Err(Error::new(ErrorKind::Transform, "sixty-one")),
                x => out.set("x", x),
            })
            .batch(12);
        let mut loader = dataset.loader().build().unwrap();
        let error = on_threads(&mut loader, 3).unwrap_err();
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
        let error = on_threads(&mut loader, 3).unwrap_err();
        assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(40)), "{error}");
    }

    #[test]
    fn data_that_ends_early_ends_all() {
        let mut loader = numbers(96).batch(12).loader().build().unwrap();
        let error = on_threads(&mut loader, 3).unwrap_err();
        assert!(error.to_string().contains("before the last step"), "{error}");
        let mut loader = numbers(99).batch(12).loader().build().unwrap();
        let error = on_threads(&mut loader, 3).unwrap_err();
        assert!(error.to_string().contains("instead of 4"), "{error}");
    }

    #[test]
    fn a_panic_leaves_nobody_at_the_barrier() {
        let barrier = Barrier::new(2, Duration::ZERO);
        let ended = std::thread::scope(|scope| {
            let waits = scope.spawn(|| barrier.step(|| ()));
            let panics = scope.spawn(|| {
                let _ending = Ending { barrier: &barrier, is_whole: false };
                panic!("an accelerator's");
            });
            (waits.join().unwrap(), panics.join().is_err())
        });
        assert_eq!(ended, (None, true));
    }
}

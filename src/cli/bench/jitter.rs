//! Measures what a loader costs the loop that it feeds: by how much it delays the short pieces of work that launch kernels.
//!
//! A mock training step takes a batch and then launches one piece after the other, each a fixed number of dependent multiplications that take about
//! [`LAUNCH`] on an idle core. The step takes half as long as the loader needs for a batch, so the loader is never ahead and works at full speed.
//! Whatever the loader takes from the loop (the core itself, its clock, its caches) makes a launch take longer.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Bench, LONG_ENOUGH, quantile};
use crate::engine::{Scheduler, neighbour};
use crate::error::Result;
use crate::loader::Loader;

/// How long an undisturbed launch takes: that of a kernel with its arguments, in a loop of Rust or Python.
const LAUNCH: Duration = Duration::from_micros(20);

/// The most launches in a step.
const MOST_LAUNCHES: f64 = 2000.0;

/// All cases.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Jitter {
    /// The median time of a launch without a loader.
    pub(super) launch_s: f64,
    pub(super) launches_per_step: u64,
    pub(super) steps: u64,
    pub(super) cases: Vec<Case>,
}

/// One case: how much longer than that median the launches took.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) launches: u64,
    pub(super) late_p50_s: f64,
    pub(super) late_p99_s: f64,
    pub(super) late_max_s: f64,
    /// Launches that began on a different core than the one before.
    pub(super) moved: u64,
    /// What the loader delivered in the meantime.
    pub(super) samples_per_s: Option<f64>,
    pub(super) threads: Option<usize>,
}

/// Runs all cases; `maximum` is the number of samples per second that the loader delivers to an idle loop.
pub(super) fn jitter(bench: &Bench<'_>, plain: Scheduler, polite: Scheduler, maximum: f64) -> Result<Jitter> {
    let batch = Duration::from_secs_f64(bench.batch as f64 / maximum);
    let launches = (batch.as_secs_f64() / 2.0 / LAUNCH.as_secs_f64()).clamp(1.0, MOST_LAUNCHES) as u64;
    let long_enough = (LONG_ENOUGH.as_secs_f64() / batch.as_secs_f64()).clamp(20.0, 1e6) as u64;
    let mock = Mock { rounds: rounds(), launches, steps: bench.args.steps.unwrap_or(long_enough), idle: batch / 2 };
    let alone = mock.run(None)?;
    let launch = {
        let mut times = alone.times.clone();
        times.sort_unstable();
        quantile(&times, 0.5)
    };
    let mut cases = vec![alone.case("no loader", launch, None)];
    for (what, scheduler) in [("loader", plain), ("good neighbour", polite)] {
        let mut loader = bench.endless(bench.batch, scheduler)?;
        let took = mock.run(Some(&mut loader))?;
        cases.push(took.case(what, launch, Some(scheduler.num_threads())));
    }
    Ok(Jitter { launch_s: launch, launches_per_step: launches, steps: mock.steps, cases })
}

/// A training loop that launches no real kernels.
struct Mock {
    rounds: u64,
    launches: u64,
    steps: u64,
    /// How long a step waits without a loader, as it waits for its batch with one.
    idle: Duration,
}

/// How long its launches took.
struct Took {
    times: Vec<Duration>,
    moved: u64,
    samples: u64,
    wall: Duration,
}

impl Mock {
    fn run(&self, loader: Option<&mut Loader>) -> Result<Took> {
        let mut took = Took { times: Vec::new(), moved: 0, samples: 0, wall: Duration::ZERO };
        // So that no launch pays for it.
        took.times.reserve_exact((self.launches * self.steps) as usize);
        let mut batches = loader.map(|loader| loader.epoch(0));
        let mut start = Instant::now();
        let mut core = neighbour::this_core();
        for step in 0..=self.steps {
            match &mut batches {
                Some(batches) => {
                    let batch = batches.next().expect("it is endless")?;
                    took.samples += batch.len() as u64;
                }
                None => std::thread::sleep(self.idle),
            }
            // The first batch is waited for and no step: the loader has only begun.
            if step == 0 {
                (start, core, took.samples) = (Instant::now(), neighbour::this_core(), 0);
                continue;
            }
            for _ in 0..self.launches {
                let now = neighbour::this_core();
                took.moved += u64::from(now != core);
                core = now;
                let begun = Instant::now();
                work(self.rounds);
                took.times.push(begun.elapsed());
            }
        }
        took.wall = start.elapsed();
        Ok(took)
    }
}

impl Took {
    fn case(self, what: &'static str, launch: f64, threads: Option<usize>) -> Case {
        let mut times = self.times;
        times.sort_unstable();
        let late = |share| (quantile(&times, share) - launch).max(0.0);
        Case {
            what,
            launches: times.len() as u64,
            late_p50_s: late(0.5),
            late_p99_s: late(0.99),
            late_max_s: late(1.0),
            moved: self.moved,
            samples_per_s: threads.map(|_| self.samples as f64 / self.wall.as_secs_f64()),
            threads,
        }
    }
}

/// Does multiplications, each with the result of the one before.
fn work(rounds: u64) {
    let mut value = black_box(0x9e37_79b9_7f4a_7c15u64);
    for _ in 0..rounds {
        value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ 1;
    }
    black_box(value);
}

/// Returns the rounds that take about as long as a launch. Uses the fastest of many measurements, so that other load does not make the number too
/// small.
fn rounds() -> u64 {
    const ROUNDS: u64 = 10_000;
    let times = (0..200).map(|_| {
        let begun = Instant::now();
        work(ROUNDS);
        begun.elapsed()
    });
    let fastest = times.min().unwrap_or_default().max(Duration::from_nanos(1));
    (ROUNDS as f64 * LAUNCH.as_secs_f64() / fastest.as_secs_f64()).max(1.0) as u64
}

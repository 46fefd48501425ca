//! How many accelerators a loader keeps busy.

use std::time::Duration;

use serde::Serialize;

use super::Bench;
use super::emulate::{Pace, Ran, emulate, maximum, without_loader};
use crate::engine::Scheduler;
use crate::error::{ErrorKind, Result};

/// The utilisation that has to hold in every run.
pub(super) const HOLDS: f64 = 0.99;

/// Of the loader's own maximum: what accelerators may ask for and still be kept busy.
pub(super) const SHARE: f64 = 0.95;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Search {
    /// The loader alone, nobody holding its batches: the median of as many measurements as there are runs.
    pub(super) alone_samples_per_s: f64,
    /// As many accelerators as ask for 95 % of that, when no step needs time: likewise.
    pub(super) maxima: Vec<f64>,
    /// The loader's maximum, the lower of both. Accelerators hold more batches, which then come out of memory instead of a core's caches; and of few files they share
    /// what was read, which makes more of it.
    pub(super) maximum_samples_per_s: f64,
    pub(super) step_s: f64,
    /// The most accelerators whose demand is at most 95 % of this maximum; 0 where one asks for more.
    pub(super) within_share: u32,
    /// Numbers of accelerators that were tried, in this order. The first is the one within the share, or 1, and has all runs.
    pub(super) tried: Vec<Tried>,
    /// The most that were kept busy in all runs; 0 where one was not.
    pub(super) largest: u32,
}

/// A number of accelerators.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tried {
    pub(super) accelerators: u32,
    /// What they ask for of the loader's maximum, theirs just before each run or that of the loader alone: the median.
    pub(super) demand_share: f64,
    /// Beside the first number of accelerators the first run that does not hold is the last.
    pub(super) runs: Vec<Ran>,
    /// Of as many accelerators with nothing to wait for.
    pub(super) without_loader: f64,
    pub(super) holds: bool,
    /// Why there were no runs.
    pub(super) refused: Option<String>,
}

impl Tried {
    pub(super) fn utilisations(&self) -> Vec<f64> {
        self.runs.iter().map(|ran| ran.utilisation_after_first).collect()
    }

    pub(super) fn min(&self) -> f64 {
        self.utilisations().into_iter().fold(f64::INFINITY, f64::min)
    }
}

/// The middle one, the lower of two.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// Looks for the most accelerators of `step` that a loader keeps busy, which gives `alone` samples a second when nobody holds its batches.
pub(super) fn search(bench: &Bench<'_>, scheduler: Scheduler, step: Duration, alone: f64) -> Result<Search> {
    let plan = |accelerators| bench.plan(accelerators, step);
    let num_runs = bench.args.num_runs();
    let within = |maximum: f64| (SHARE * maximum / plan(1).demand()) as u32;
    let asking = plan(within(alone).max(1));
    let maxima = (0..num_runs).map(|_| maximum(bench, scheduler, &asking)).collect::<Result<Vec<_>>>()?;
    let maximum_samples_per_s = median(&maxima).min(alone);
    let within_share = within(maximum_samples_per_s);
    let mut tried = Vec::new();
    let largest = largest(within_share.max(1), &mut |accelerators| {
        let (is_first, plan) = (tried.is_empty(), plan(accelerators));
        let (mut runs, mut refused) = (Vec::<Ran>::new(), None);
        let holds = |ran: &Ran| ran.utilisation_after_first >= HOLDS;
        while refused.is_none() && runs.len() < num_runs as usize && (is_first || runs.iter().all(holds)) {
            match emulate(bench, scheduler, accelerators, Pace::Step(step)) {
                Ok((_, ran, _)) => runs.push(ran),
                // More than the budget holds is a bound like any other, where some were tried before.
                Err(error) if error.kind() == ErrorKind::Memory && !is_first => refused = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let holds = refused.is_none() && runs.iter().all(holds);
        let shares: Vec<f64> = runs.iter().map(|ran| ran.demand_share.max(plan.demand() / alone)).collect();
        let demand_share = median(&shares);
        let without_loader = without_loader(&plan)?;
        tried.push(Tried { accelerators, demand_share, runs, without_loader, holds, refused });
        Ok(holds)
    })?;
    Ok(Search {
        alone_samples_per_s: alone,
        maxima,
        maximum_samples_per_s,
        step_s: step.as_secs_f64(),
        within_share,
        tried,
        largest,
    })
}

/// The largest number that holds, looked for from `start` on: up in growing strides, then by halves. 0 where 1 does not hold.
fn largest(start: u32, holds: &mut dyn FnMut(u32) -> Result<bool>) -> Result<u32> {
    let (mut good, mut bad) = (0, start);
    if holds(start)? {
        (good, bad) = (start, start + 1);
        let mut stride = 1;
        while holds(bad)? {
            stride *= 2;
            (good, bad) = (bad, bad + stride);
        }
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if holds(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_from_anywhere() {
        for limit in 0..40 {
            for start in 1..40 {
                let mut asked = Vec::new();
                let found = largest(start, &mut |n| {
                    assert!(n > 0 && !asked.contains(&n), "{n} is asked for once");
                    asked.push(n);
                    Ok(n <= limit)
                });
                assert_eq!(found.unwrap(), limit, "from {start}");
                assert!(asked.len() <= 14, "{asked:?}");
            }
        }
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        for (values, middle) in [(vec![3.0], 3.0), (vec![5.0, 1.0], 1.0), (vec![9.0, 1.0, 5.0], 5.0)] {
            assert_eq!(median(&values), middle);
        }
    }
}

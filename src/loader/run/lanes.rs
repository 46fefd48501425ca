//! Where a run meets its loops. Each loop has a lane, from which it takes batches, and a bell, at which it sleeps while there are none.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, MutexGuard};
use std::time::Duration;

use super::{Item, Lane, Out, Run, State};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::arrival::ArrivalDriver;
use crate::loader::assemble::{Assembled, Finished};
use crate::loader::delivery::{Parcel, Way};
use crate::loader::minimum::smallest_budget;
use crate::loader::skip::Tally;

/// With at most this many batches in flight, a worker is woken for the work that follows when the loop takes one. With more, batches are small, and
/// whichever worker ends its task next does that work.
const FEW_BATCHES: u64 = 16;

impl Run {
    pub(super) fn wake_all(&self) {
        self.bells.iter().for_each(Condvar::notify_one);
    }

    /// Closes the lane of a consumer that is gone. When it was the last lane, the run ends.
    pub(crate) fn close_lane(&self, lane: usize) {
        if self.shared.pool.is_inherited() {
            return;
        }
        let mut state = self.lock();
        state.lanes[lane].open = false;
        let items = std::mem::take(&mut state.lanes[lane].items);
        let any_open = state.lanes.iter().any(|lane| lane.open);
        // What batches do without is told once, by whichever lane takes it.
        let (told, untaken): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| matches!(item, Item::LeftOut(_)));
        if let Some(open) = state.lanes.iter_mut().find(|lane| lane.open) {
            told.into_iter().rev().for_each(|item| open.items.push_front(item));
        }
        drop(state);
        drop(untaken);
        self.ways[lane].close();
        if any_open {
            self.update(|_| {});
        } else {
            self.cancel();
        }
    }

    /// Returns the next batch of a lane; `None` at the end of `epoch`, and after an error.
    pub(crate) fn next(&self, lane: usize, epoch: u64) -> Option<Result<Batch>> {
        if self.shared.pool.is_inherited() {
            return Some(Err(Error::config(
                "this process was forked off the one that built the loader, whose threads it has not",
            )
            .advice("build the loader in the process that uses it")));
        }
        self.ways[lane].ask();
        let (mut batch, parcel) = match self.take(lane, epoch)? {
            Ok(taken) => taken,
            Err(error) => return Some(Err(error)),
        };
        match self.ways[lane].arrive(&mut batch, parcel, self.shared.scheduler.is_single_threaded()) {
            Ok(true) => self.send_errand(),
            Ok(false) => {}
            Err(error) => return Some(Err(error.stage("device"))),
        }
        #[cfg(feature = "tch")]
        if let Err(error) = self.shared.on_device(&mut batch) {
            return Some(Err(error));
        }
        self.shared.counters.delivered(batch.len());
        self.shared.with_ledger(|ledger| *ledger.epoch_mut(batch.epoch()) += batch.sums);
        Some(Ok(*batch))
    }

    /// Waits for the next batch of a lane, which may still be on its way to the device.
    fn take(&self, lane: usize, epoch: u64) -> Option<Result<(Box<Batch>, Parcel)>> {
        let mut state = self.lock_on_time();
        loop {
            state.distribute(self);
            let undelivered = state.undelivered();
            let item = state.lanes[lane].items.pop_front();
            let is_over = self.is_cancelled() || state.failed && state.in_flight == 0 && state.assigned == state.taken;
            state.lanes[lane].waits = item.is_none() && !is_over;
            return match item {
                None if is_over => None,
                None => {
                    state = self.wait(state, lane);
                    continue;
                }
                Some(Item::LeftOut(skipped)) => {
                    self.shared.with_ledger(|ledger| {
                        skipped.iter().for_each(|record| ledger.epoch_mut(record.epoch).leave_out(record.term));
                    });
                    self.shared.skipped.extend(skipped);
                    continue;
                }
                Some(Item::Batch(batch, grant, parcel)) => {
                    drop(grant);
                    // Of several lanes, the last one that takes its part makes room for a batch.
                    if state.undelivered() < undelivered {
                        self.go_on(state);
                    }
                    Some(Ok((batch, parcel)))
                }
                Some(Item::Failed(error)) => Some(Err(error)),
                Some(Item::EndOfEpoch(ended)) => {
                    debug_assert_eq!(ended, epoch);
                    None
                }
            };
        }
    }

    /// Does one round of waiting for something that a lane can take: does the work that there is, or sleeps while others do it.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, lane: usize) -> MutexGuard<'a, State> {
        if self.shared.scheduler.is_single_threaded() {
            self.unlock(state);
            let ran = self.shared.pool.run_one();
            state = self.lock_on_time();
            if ran || self.is_cancelled() {
                return state;
            }
        }
        // Bytes may have come back since the last change; then there is something to do after all.
        state.advance(self);
        if !state.todo.is_empty() {
            self.unlock(state);
            return self.lock_on_time();
        }
        // Reads that have begun nobody else would run.
        if self.shared.scheduler.is_single_threaded() && state.in_flight > 0 {
            return state;
        }
        // A slot comes back when its copy is done, of which nobody else tells.
        if !state.stalled.is_empty() {
            drop(state);
            let copied = self.ways.iter().any(Way::wait_for_one);
            state = self.lock_on_time();
            // Nobody rings for a run that was cancelled meanwhile.
            if copied || self.is_cancelled() {
                return state;
            }
        }
        if state.is_stuck() {
            if self.shared.alive.load(Ordering::Acquire) > 0 {
                // Tasks that are about to end still hold their share of the budget.
                let moment = Duration::from_millis(1);
                let woken = self.bells[lane].wait_timeout(state, moment);
                state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                state.account_time(&self.shared);
                return state;
            }
            // The last of them may have given its bytes back just now.
            state.advance(self);
            if state.is_stuck() {
                let error = state.why_stuck(self);
                state.fail(error);
                self.wake_all();
            }
            return state;
        }
        if state.out.is_ready() || !state.lanes[lane].items.is_empty() {
            return state;
        }
        self.shared.counters.plan.busy(state.clock.since());
        state = self.bells[lane].wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        state.account_time(&self.shared);
        state
    }

    /// Goes on after the loop has taken a batch. The work that follows (reads to ask for, tasks to start) is left to a worker, because the loop has a
    /// step to launch.
    fn go_on(&self, mut state: MutexGuard<'_, State>) {
        let many = self.shared.pipeline.window > FEW_BATCHES;
        if self.shared.scheduler.is_single_threaded() || many && state.in_flight == state.fetching {
            // There is no worker, or none whose task ends soon.
            state.advance(self);
            self.unlock(state);
        } else if !many {
            drop(state);
            self.send_errand();
        }
    }
}

impl State {
    /// Batches that are finished or being finished, and that the slowest lane has not taken yet.
    pub(super) fn undelivered(&self) -> u64 {
        let queued = self.lanes.iter().filter(|lane| lane.open).map(|lane| lane.items.len()).max().unwrap_or(0);
        self.assigned - self.taken + queued as u64
    }

    /// Moves finished outs, in order, to the lanes.
    pub(super) fn distribute(&mut self, run: &Run) {
        while let Some(out) = self.out.pop() {
            self.taken += 1;
            let send = |lane: &mut Lane, item: Item| {
                if lane.open {
                    lane.items.push_back(item);
                }
            };
            match out {
                Out::Batch(Assembled { lanes, error, drawn }) => {
                    let left_out = |tally: &Option<Tally>| tally.as_ref().map_or(0, Tally::left_out);
                    let before = left_out(&self.tally);
                    let (listed, counted) = match &mut self.tally {
                        Some(tally) => tally.add(drawn),
                        None => (Vec::new(), Ok(())),
                    };
                    if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.open && !listed.is_empty()) {
                        lane.items.push_back(Item::LeftOut(listed));
                    }
                    let behind = left_out(&self.tally);
                    for ((lane, way), finished) in self.lanes.iter_mut().zip(&run.ways).zip(lanes) {
                        let Finished { batch: Some(mut batch), grant, parcel } = finished else { continue };
                        // One that an error cut short is taken again, with what it did without; behind a failure perhaps others too.
                        batch.progress.left_out = match batch.progress.step.cmp(&batch.step) {
                            std::cmp::Ordering::Greater => behind,
                            std::cmp::Ordering::Equal => before,
                            std::cmp::Ordering::Less => self.left_out,
                        };
                        if batch.progress.step > batch.step {
                            self.left_out = behind;
                        }
                        if lane.open {
                            way.enqueue(&parcel);
                        }
                        send(lane, Item::Batch(Box::new(batch), grant, parcel));
                    }
                    if let Some(error) = counted.err().or(error) {
                        return self.fail(error);
                    }
                }
                Out::Failed(error) => return self.fail(error),
                Out::EndOfEpoch(epoch) => {
                    if let Err(error) = self.tally.as_mut().map_or(Ok(()), Tally::end_epoch) {
                        return self.fail(error);
                    }
                    self.left_out = 0;
                    self.lanes.iter_mut().for_each(|lane| send(lane, Item::EndOfEpoch(epoch)));
                }
            }
        }
    }

    /// Ends the run with an error after what was delivered.
    pub(super) fn fail(&mut self, error: Error) {
        self.failed = true;
        self.planned_all = true;
        for lane in self.lanes.iter_mut().filter(|lane| lane.open) {
            lane.items.push_back(Item::Failed(error.clone()));
        }
    }

    /// Lanes whose sleep is over: those that have something to take, or all of them if one has to make sure that the run goes on, or ends.
    pub(super) fn lanes_to_wake(&self) -> impl Iterator<Item = usize> {
        let all = self.failed || self.in_flight == 0 || !self.stalled.is_empty() || self.out.is_ready();
        let waiting = self.lanes.iter().enumerate().filter(|(_, lane)| lane.waits);
        waiting.filter(move |(_, lane)| all || !lane.items.is_empty()).map(|(number, _)| number)
    }

    /// Whether a lane has something to take.
    fn is_ready(&self) -> bool {
        self.out.is_ready() || self.lanes.iter().any(|lane| lane.open && !lane.items.is_empty())
    }

    /// Whether nothing runs, nothing is ready, and what is needed next does not fit the budget.
    fn is_stuck(&self) -> bool {
        self.in_flight == 0 && !self.is_ready() && !self.failed
    }

    /// The error of a run that is stuck. For it the plan is walked, which may take a second.
    fn why_stuck(&self, run: &Run) -> Error {
        let shared = &run.shared;
        let wanted = match (self.stalled.front(), self.needs.front()) {
            (Some(assembly), _) => assembly.bytes,
            (None, Some(key)) => self.blocks.get(key).map_or(0, |entry| entry.bytes) + self.reserve(run),
            (None, None) => match self.drivers.values().find_map(ArrivalDriver::wanted_bytes) {
                Some(bytes) => bytes + self.reserve(run),
                None => {
                    return Error::new(
                        ErrorKind::Panicked,
                        "nothing is under way and nothing can be: a fault of forebay",
                    );
                }
            },
        };
        let (total, used) = (shared.account.total(), shared.account.used());
        // What is in flight when it got stuck is no bound of what the plan needs: look at all of it.
        let walked =
            smallest_budget(shared, self.tickets.front().map_or(self.epoch, |ticket| ticket.epoch), self.batch_bytes);
        let smallest = walked.unwrap_or(2 * (used + wanted)).max(used + wanted).div_ceil(1 << 20);
        Error::new(
            ErrorKind::Memory,
            format!("the plan needs {wanted} bytes more than the {used} in flight, of a budget of {total}"),
        )
        .advice(format!("take .budget(Budget::mebibytes({smallest})) or more, or a smaller shuffle buffer or batch"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::dataset::Dataset;
    use crate::error::ErrorKind;

    #[test]
    fn a_process_that_was_forked_off_is_told_so_and_waits_for_nobody() {
        let x = Arc::new(arrow::array::Int64Array::from_iter_values(0..8));
        let mut loader = Dataset::from_columns([("x", x as _)]).unwrap().batch(4).loader().build().unwrap();
        // As memory looks in a child: the threads are another process's.
        Arc::get_mut(&mut loader.shared).expect("nothing runs").pool.process += 1;
        let error = loader.epoch(0).next().expect("an error").unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("forked off"), "{error}");
    }
}

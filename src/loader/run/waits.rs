//! Accounts for what the loop waits for, moment by moment, and which stages stand still meanwhile.

use std::time::{Duration, Instant};

use super::{BlockStage, Shared, Stands, State};
use crate::engine::pool::Level;
use crate::loader::arrival::ArrivalDriver;
use crate::telemetry::{Counters, WaitedFor};

/// The most blocks of a ticket that are looked at, under the run's lock, whenever one of them gets further. Under a global shuffle a ticket has as
/// many blocks as rows: looking at all of them each time would take the square of a batch.
const MOST_LOOKED_AT: usize = 64;

impl State {
    /// Charges the time since the last change to the stages that stood still, and to what the loop waits for.
    pub(super) fn account_time(&mut self, shared: &Shared) {
        let (from, to) = self.clock.lap();
        let counters = &shared.counters;
        if self.lanes.iter().any(|lane| lane.waits) {
            match self.waits_for(shared) {
                Stands::Reading(first_byte) => {
                    let came = first_byte.map_or(to, |came| came.clamp(from, to));
                    counters.waited(WaitedFor::FirstByte, came - from);
                    counters.waited(WaitedFor::Bandwidth, to - came);
                }
                Stands::In(what) => counters.waited(what, to - from),
            }
        }
        self.account_stages(counters, to - from);
    }

    pub(super) fn account_stages(&self, counters: &Counters, time: Duration) {
        let undelivered = self.undelivered();
        let front_missing =
            self.tickets.get((self.started - self.first) as usize).is_some_and(|ticket| ticket.missing > 0);
        if self.fetching == 0 && (!self.needs.is_empty() || undelivered > 0) {
            counters.read.waited_for_room(time);
        }
        if self.decoding == 0 {
            if self.fetching > 0 {
                counters.decode.waited_for_input(time)
            } else {
                counters.decode.waited_for_room(time)
            }
        }
        if self.started == self.popped {
            if front_missing {
                counters.transform.waited_for_input(time)
            } else {
                counters.transform.waited_for_room(time)
            }
        }
        if self.assigned == self.taken {
            if undelivered == 0 {
                counters.collate.waited_for_input(time)
            } else {
                counters.collate.waited_for_room(time)
            }
        }
    }

    /// What the next batch is waiting for. If its next task has no worker, that is what the workers do instead.
    fn waits_for(&self, shared: &Shared) -> Stands {
        if self.assigned == self.taken && self.undelivered() >= shared.pipeline.window {
            // There is no room for another batch until the slowest lane has taken one.
            return Stands::In(WaitedFor::Lanes);
        }
        let stands = self.next_stage();
        let level = match stands {
            Stands::In(WaitedFor::Assemble) => Level::Collate,
            Stands::In(WaitedFor::Evaluate) => Level::Transform,
            Stands::In(WaitedFor::Decode) => Level::Decode,
            _ => return stands,
        };
        Stands::In(match shared.pool.busy_instead_of(level) {
            Level::Collate => WaitedFor::Assemble,
            Level::Transform => WaitedFor::Evaluate,
            Level::Decode => WaitedFor::Decode,
        })
    }

    /// Where the next batch stands.
    fn next_stage(&self) -> Stands {
        if self.assigned > self.taken {
            return Stands::In(if self.stalled.is_empty() { WaitedFor::Assemble } else { WaitedFor::Budget });
        }
        if self.started > self.popped {
            return Stands::In(WaitedFor::Evaluate);
        }
        let Some(ticket) = self.tickets.front() else {
            if self.drivers.values().any(ArrivalDriver::is_decoding) {
                return Stands::In(WaitedFor::Decode);
            }
            return Stands::Reading(self.drivers.values().filter_map(ArrivalDriver::first_byte).min());
        };
        let (mut reading, mut first_byte) = (false, None::<Instant>);
        let (mut wanted, mut decoding) = (false, false);
        let every = ticket.blocks.len().div_ceil(MOST_LOOKED_AT).max(1);
        for entry in ticket.blocks.iter().step_by(every).filter_map(|key| self.blocks.get(key)) {
            match &entry.stage {
                BlockStage::Fetching(fetch) if fetch.is_copying() => decoding = true,
                BlockStage::Fetching(fetch) => {
                    reading = true;
                    first_byte = first_byte.into_iter().chain(fetch.first_byte()).min();
                }
                BlockStage::Wanted => wanted = true,
                BlockStage::Decoding => decoding = true,
                BlockStage::Ready(_) => {}
            }
        }
        if ticket.missing > 0 && (reading, wanted, decoding) == (false, false, false) {
            // Those that are missing are among the others: most likely with what is under way.
            (reading, decoding) = (self.fetching > 0, self.decoding > 0);
            wanted = !reading && !decoding;
        }
        match (reading, wanted, decoding) {
            (true, ..) => Stands::Reading(first_byte),
            (_, true, _) => Stands::In(WaitedFor::Budget),
            (_, _, true) => Stands::In(WaitedFor::Decode),
            _ => Stands::In(WaitedFor::Evaluate),
        }
    }
}

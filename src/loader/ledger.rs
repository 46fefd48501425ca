//! Compares a ledger with what an epoch should add up to. For that it walks the plan without reading.

use super::run::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ledger::{Ledger, Sums, id_term};
use crate::plan::order::{ENDLESS, Frame, PADDING, Positions};
use crate::plan::steps::Steps;

/// Positions that are picked at a time.
const PICKED: u64 = 4096;

/// Compares the ledger of all ranks with the plan of an epoch.
pub(super) fn verify(shared: &Shared, epoch: u64, ledger: &Ledger) -> Result<()> {
    let pipeline = &shared.pipeline;
    let ours = shared.with_ledger(|ledger| ledger.clone());
    ledger.check_version()?;
    let unlike = ours.settings_unlike(ledger);
    if !unlike.is_empty() {
        return Err(Error::config(format!("the ledger is of another run than this loader: {}", unlike.join("; "))));
    }
    let why = match pipeline.order.rows() {
        _ if pipeline.expands => format!("{} decides how many rows there are", pipeline.changer),
        None => "the shards have no index, so that nobody knows what they hold before they are read".to_owned(),
        Some(ENDLESS) if pipeline.steps.stated.is_none() => "the data set never ends".to_owned(),
        Some(rows) => {
            let audit = Audit::new(shared, epoch, rows, ledger.epoch(epoch));
            return if audit.is_complete() { Ok(()) } else { Err(audit.error(odd_one(shared, rows, &audit))) };
        }
    };
    Err(Error::config(format!("what epoch {epoch} should deliver is not known beforehand: {why}"))
        .advice("compare the ledgers of two runs: Ledger::compare, or forebay ledger"))
}

/// What an epoch should add up to, over all ranks and on each, and what was delivered of it.
struct Audit {
    epoch: u64,
    found: Sums,
    all: Sums,
    ranks: Vec<Sums>,
    /// Steps of the epoch, and the last step up to which everything was delivered and nothing else.
    steps: u64,
    done: Option<u64>,
}

impl Audit {
    fn new(shared: &Shared, epoch: u64, rows: u64, found: Sums) -> Self {
        let steps = shared.pipeline.steps;
        let ranks = vec![Sums::default(); steps.world as usize];
        let mut audit = Self { epoch, found, all: Sums::default(), ranks, steps: steps.per_epoch(rows), done: None };
        for_each_sample(shared, epoch, rows, |position, id, pass| {
            // The checksums are not known, and are not looked at.
            let mut sample = Sums::default();
            sample.deliver(id, 0, pass, position, 0);
            if position > 0 && position % steps.batch == 0 {
                audit.end_step(position / steps.batch);
            }
            audit.all += sample;
            audit.ranks[(position % steps.batch * steps.world / steps.batch) as usize] += sample;
        });
        audit.end_step(audit.steps);
        audit
    }

    fn end_step(&mut self, steps: u64) {
        if self.is_found(&self.all) {
            self.done = Some(steps);
        }
    }

    fn is_complete(&self) -> bool {
        self.done == Some(self.steps)
    }

    /// Whether what was delivered, together with what was left out, matches these sums.
    fn is_found(&self, sums: &Sums) -> bool {
        // What was left out has no place in the order any more, so that the rest cannot be held against it.
        let same_order = self.found.left_out > 0 || self.found.order == sums.order;
        self.has_samples_of(sums) && same_order
    }

    fn has_samples_of(&self, sums: &Sums) -> bool {
        (self.found.samples + self.found.left_out, self.found_ids()) == (sums.samples, sums.ids)
    }

    fn found_ids(&self) -> u128 {
        self.found.ids.wrapping_add(self.found.left_out_ids)
    }

    /// What is wrong with an epoch that is not complete.
    fn error(&self, odd_one: Option<OddOne>) -> Error {
        let Self { epoch, found, all, steps, .. } = self;
        let mut message = format!("epoch {epoch} is not complete: {} samples were delivered", found.samples);
        if found.left_out > 0 {
            message += &format!(" and {} left out", found.left_out);
        }
        let mut ranks = self.ranks.iter().enumerate();
        let several = self.ranks.len() > 1;
        let (what, advice) = if let Some(done) = self.done {
            (format!("all of the first {done} of {steps} steps, and none behind"), None)
        } else if self.has_samples_of(all) {
            ("each sample as often as it should be, but not in the order of the plan".to_owned(), None)
        } else if let Some((rank, _)) = ranks.clone().find(|(_, rank)| several && self.is_found(rank)) {
            (format!("those of rank {rank} alone"), Some("add up the ledgers of all ranks with Ledger::sum"))
        } else if let Some((rank, _)) = ranks.find(|(_, rank)| several && self.is_found(&without(*all, rank))) {
            (format!("all but those of rank {rank}"), Some("add its ledger too"))
        } else {
            let which = match odd_one {
                Some(OddOne::Missing(id)) => format!(": sample {id} is missing"),
                Some(OddOne::Twice(id)) => format!(": sample {id} came twice"),
                None => String::new(),
            };
            (format!("the plan has {}{which}", all.samples), None)
        };
        let error = Error::new(ErrorKind::Corrupt, format!("{message}, {what}"));
        match advice {
            Some(advice) => error.advice(advice),
            None => error,
        }
    }
}

/// The only sample that was delivered too rarely or too often.
enum OddOne {
    Missing(u64),
    Twice(u64),
}

/// Looks for the one sample whose term makes up the difference. If several samples are wrong, there is none.
fn odd_one(shared: &Shared, rows: u64, audit: &Audit) -> Option<OddOne> {
    let lacks = audit.all.ids.wrapping_sub(audit.found_ids());
    let mut odd = None;
    for_each_sample(shared, audit.epoch, rows, |_, id, pass| {
        let term = id_term(id, 0, pass);
        if term == lacks {
            odd = Some(OddOne::Missing(id));
        } else if term == lacks.wrapping_neg() {
            odd = Some(OddOne::Twice(id));
        }
    });
    odd
}

/// Calls `f` with the position, sample id and pass of each sample that all ranks deliver in an epoch, in order.
fn for_each_sample(shared: &Shared, epoch: u64, rows: u64, mut f: impl FnMut(u64, u64, u64)) {
    let whole = Steps { rank: 0, world: 1, ..shared.pipeline.steps };
    let mut order = shared.pipeline.order.clone();
    let frame = Frame::of_epoch(whole.batch);
    for step in 0..whole.per_epoch(rows) {
        let slots = whole.slots(step, rows);
        let mut at = slots.start;
        while at < slots.end {
            // Behind the last row the epoch begins again, to fill the last batch up.
            let padding = at >= rows;
            let start = if padding { (at - rows) % rows } else { at };
            let count = PICKED.min(slots.end - at).min(rows - start);
            let pass = if padding { epoch | PADDING } else { epoch };
            let positions = Positions::new((start..start + count).collect(), step);
            let picked = order.pick(positions, pass, (!padding).then_some(frame), &[]);
            let picked = picked.expect("the rows of indexed sources are known");
            for (position, (id, pass)) in (at..).zip(picked.drawn()) {
                f(position, id, pass);
            }
            at += count;
        }
    }
}

/// Sums without some of their terms.
fn without(all: Sums, some: &Sums) -> Sums {
    Sums {
        samples: all.samples - some.samples,
        ids: all.ids.wrapping_sub(some.ids),
        order: all.order.wrapping_sub(some.order),
        ..all
    }
}

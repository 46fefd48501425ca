//! The life of a block, from wanted to forgotten: blocks are asked for in the plan's order, and held as long as their rows are needed.

use std::cmp::Reverse;
use std::collections::HashMap;

use bytes::Bytes;

use super::{BlockKey, BlockStage, Chunk, Entry, Evaluation, Run, State};
use crate::engine::budget::Grant;
use crate::engine::pool::{Level, no_panic};
use crate::error::Result;
use crate::loader::arrival::Framed;
use crate::loader::pipeline::Leaf;

impl State {
    /// Asks for the blocks that tickets need, in the plan's order, and then for those that will be needed later.
    pub(super) fn ask_for_blocks(&mut self, run: &Run) {
        let reserve = self.reserve(run);
        while let Some(&key) = self.needs.front() {
            if self.ask(run, key, reserve) {
                self.needs.pop_front();
            } else if !self.give_up_one_ahead() {
                return;
            }
        }
        while let Some(&key) = self.ahead.front() {
            // A quarter is left to what is needed at once.
            if !self.ask(run, key, reserve + run.shared.account.total() / 4) {
                return;
            }
            self.ahead.pop_front();
        }
    }

    /// Forgets a block that was read ahead and that no ticket has asked for yet, to make room for one that is needed. It is read again when its turn
    /// comes. Returns whether there was such a block.
    pub(super) fn give_up_one_ahead(&mut self) -> bool {
        let spare =
            self.blocks.iter_mut().filter(|(_, entry)| entry.is_ahead && matches!(entry.stage, BlockStage::Ready(_)));
        let Some((&key, entry)) = spare.max_by_key(|(key, entry)| (entry.hold, **key)) else { return false };
        entry.stage = BlockStage::Wanted;
        self.ahead.push_front(key);
        true
    }

    /// Asks for one block, if it is wanted. Returns `false` if the budget has no room.
    pub(super) fn ask(&mut self, run: &Run, key: BlockKey, reserve: u64) -> bool {
        let Some(entry) = self.blocks.get_mut(&key).filter(|entry| matches!(entry.stage, BlockStage::Wanted)) else {
            return true;
        };
        let Some(grant) = run.shared.account.grant(entry.bytes, reserve) else { return false };
        let Leaf::Indexed(source) = &run.shared.pipeline.leaves[key.leaf] else {
            unreachable!("blocks that arrive are not asked for")
        };
        self.in_flight += 1;
        let fetch = no_panic(|| Ok(source.fetch(key.block as usize)));
        match fetch.unwrap_or_else(|error| Some(Box::pin(std::future::ready(Err(error))))) {
            Some(future) => {
                self.fetching += 1;
                let then = move |run: &Run, bytes, thread| run.fetched(key, grant, bytes, thread);
                let (fetch, task) = run.fetch(key.leaf, future, then);
                entry.stage = BlockStage::Fetching(fetch);
                self.todo.extend(task);
            }
            None => {
                self.decoding += 1;
                entry.stage = BlockStage::Decoding;
                self.todo.push(run.prepare(Level::Decode, move |run, _| run.decode_block(key, grant, Ok(Vec::new()))));
            }
        }
        true
    }

    /// Rows that these chunks take from blocks that arrived.
    pub(super) fn count_rows(&self, chunks: &[Chunk], epoch: u64) -> HashMap<BlockKey, u64> {
        let mut counts = HashMap::new();
        if !self.order.arrives() {
            return counts;
        }
        for chunk in chunks {
            chunk.parts.iter().for_each(|part| {
                part.for_each_rows(&mut |rows| {
                    for &(at, _) in &rows.rows {
                        let block = rows.blocks[at].block;
                        *counts.entry(BlockKey { leaf: rows.leaf, block, epoch }).or_insert(0) += 1;
                    }
                })
            });
        }
        counts
    }

    /// Forgets blocks that no ticket after `number` needs.
    pub(super) fn release(&mut self, number: u64, evaluation: &Evaluation) {
        for (&key, &count) in &evaluation.counts {
            self.deliver_rows(key, count);
        }
        if evaluation.end.is_some() {
            self.blocks.retain(|key, entry| entry.rows_left.is_none() || key.epoch != evaluation.epoch);
        }
        while let Some(&Reverse((hold, key))) = self.releases.peek() {
            if hold > number {
                break;
            }
            self.releases.pop();
            match self.blocks.get(&key) {
                Some(entry) if entry.hold > number => self.releases.push(Reverse((entry.hold, key))),
                Some(entry) if entry.is_settled() => self.done_with.extend(self.blocks.remove(&key)),
                // Under way: it goes when it comes.
                _ => {}
            }
        }
    }

    /// Counts rows of a block that arrived as delivered.
    pub(super) fn deliver_rows(&mut self, key: BlockKey, count: u64) {
        if let Some(entry) = self.blocks.get_mut(&key)
            && let Some(left) = &mut entry.rows_left
        {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.done_with.extend(self.blocks.remove(&key));
            }
        }
    }

    /// Returns the entry of a block, held until ticket `hold`. Makes the entry if there is none.
    pub(super) fn entry(&mut self, run: &Run, key: BlockKey, hold: u64) -> (&mut Entry, bool) {
        let mut new = false;
        let entry = self.blocks.entry(key).or_insert_with(|| {
            new = true;
            let bytes = match &run.shared.pipeline.leaves[key.leaf] {
                Leaf::Indexed(source) => source.catalog().block_bytes(key.block as usize),
                Leaf::Arriving(_) => 0,
            };
            Entry { stage: BlockStage::Wanted, hold, waiting: Vec::new(), bytes, is_ahead: true, rows_left: None }
        });
        entry.hold = entry.hold.max(hold);
        if new {
            self.releases.push(Reverse((hold, key)));
        }
        (entry, new)
    }

    /// Lets sources without an index read and frame what is wanted of them.
    pub(super) fn drive_arrivals(&mut self, run: &Run) {
        let reserve = self.reserve(run);
        for leaf in 0..self.arrivals.len() {
            let Some(driver) = self.drivers.get_mut(&leaf) else { continue };
            let started = driver.drive(run, leaf, self.arrivals[leaf].rows(), reserve);
            self.in_flight += started.tasks;
            self.fetching += started.reads;
        }
    }

    /// Takes a piece that was read of a source without an index.
    pub(crate) fn piece_read(&mut self, leaf: usize, epoch: u64, number: u64, piece: Result<(Bytes, Grant)>) {
        self.in_flight -= 1;
        self.fetching -= 1;
        if let Some(driver) = self.drivers.get_mut(&leaf).filter(|driver| driver.epoch() == epoch) {
            driver.piece_read(number, piece);
        }
    }

    /// Takes the result of framing a source without an index: it has given a block (which is being decoded), needs another piece, or has ended.
    pub(crate) fn block_framed(&mut self, leaf: usize, framed: Framed) -> Option<BlockKey> {
        self.in_flight -= 1;
        let driver = self.drivers.get_mut(&leaf).filter(|driver| driver.epoch() == framed.epoch)?;
        let (epoch, block) = (framed.epoch, driver.blocks());
        let arrived = driver.block_framed(framed);
        if let Some((rows, first_id, place)) = arrived {
            // Of a block that arrives again the rows before the first position that is looked at are not wanted.
            let before = self.passed.start.saturating_sub(self.arrivals[leaf].rows()).min(rows);
            self.arrivals[leaf].push(rows, first_id, place);
            let key = BlockKey { leaf, block, epoch };
            let entry = Entry {
                stage: BlockStage::Decoding,
                hold: 0,
                waiting: Vec::new(),
                bytes: 0,
                is_ahead: false,
                rows_left: Some(rows - before),
            };
            if before < rows {
                self.blocks.insert(key, entry);
            }
            self.in_flight += 1;
            self.decoding += 1;
            return Some(key);
        }
        if self.drivers[&leaf].has_ended() {
            self.arrivals[leaf].end();
        }
        None
    }
}

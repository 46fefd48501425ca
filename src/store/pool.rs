//! Reusable buffers: a block's memory comes back when its last slice is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::engine::budget::{Account, Budget};
use crate::engine::memory::Memory;
use crate::{Error, ErrorKind, Result};

/// Buffer sizes are multiples of this, so that blocks of nearly the same size share buffers.
const GRAIN: usize = 64 << 10;

/// Lends buffers from an account's memory.
#[derive(Debug)]
pub(super) struct Pool {
    account: Arc<Account>,
    /// Bytes that may be idle; without a limit, as many as have been lent at one time.
    limit: Option<u64>,
    lent: AtomicU64,
}

impl Pool {
    pub(super) fn new(account: Arc<Account>, limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { account, limit, lent: AtomicU64::new(0) })
    }

    /// Creates a pool with an account of its own, which limits only what is idle.
    pub(super) fn alone(limit: u64) -> Arc<Self> {
        Self::new(Account::new(Budget::of_bytes(u64::MAX)), Some(limit))
    }

    /// Returns a buffer that can hold `len` bytes: an idle one if there is one that wastes little.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        // Pages are only touched as bytes arrive, so a length that is a lie costs addresses and nothing else.
        let memory = len.checked_next_multiple_of(GRAIN).and_then(|len| self.account.memory_to_read(len));
        let memory = memory.ok_or_else(|| {
            Error::new(ErrorKind::Memory, format!("no memory for a read of {len} bytes")).advice("read smaller ranges")
        })?;
        let bytes = memory.capacity() as u64;
        let lent = self.lent.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.account.keep_reads(self.limit.unwrap_or(lent));
        Ok(Buffer { memory: Some(memory), len: 0, pool: Arc::downgrade(self) })
    }

    fn give_back(&self, memory: Memory) {
        self.lent.fetch_sub(memory.capacity() as u64, Ordering::AcqRel);
        self.account.give_back_read(memory);
    }
}

/// A buffer on loan. Its previous content is still in it after `len`, but is never shown.
#[derive(Debug)]
pub(super) struct Buffer {
    /// The memory; `None` once the buffer is dropped.
    memory: Option<Memory>,
    len: usize,
    /// Weak, so that whoever holds what was read keeps nothing else alive.
    pool: Weak<Pool>,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn memory(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("taken when it is dropped")
    }

    /// Appends bytes as they arrive.
    ///
    /// # Panics
    /// If they are more than the buffer was requested for.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let end = self.len + chunk.len();
        let start = std::mem::replace(&mut self.len, end);
        self.memory().bytes_mut()[start..end].copy_from_slice(chunk);
    }

    /// Returns the first `len` bytes, which the caller must overwrite completely.
    ///
    /// # Panics
    /// If they are more than the buffer was requested for.
    pub(super) fn fill(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.memory().bytes_mut()[..len]
    }

    /// Makes what was read shareable; the memory returns to the pool with the last slice of it.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory.as_ref().expect("taken when it is dropped").bytes()[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.upgrade()) {
            pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn pool(limit: Option<u64>) -> Arc<Pool> {
        Pool::new(Account::new(Budget::mebibytes(8)), limit)
    }

    #[test]
    fn memory_comes_back_with_the_last_slice_and_is_used_again() {
        let pool = pool(None);
        let mut buffer = pool.take(1_000_000).unwrap();
        buffer.push(&[7; 1_000_000]);
        let all = buffer.freeze();
        let address = all.as_ptr();
        let slice = all.slice(10..20);
        drop(all);
        assert_ne!(pool.take(1_000_000).unwrap().freeze().as_ptr(), address, "a slice still has it");
        drop(slice);
        let mut again = pool.take(990_000).unwrap();
        again.push(&[1; 3]);
        assert_eq!(again.as_ref(), [1; 3], "nothing of the first content shows");
        again.fill(990_000).fill(2);
        assert_eq!(again.as_ref(), [2; 990_000]);
        assert_eq!(again.freeze().as_ptr(), address);
    }

    #[test]
    fn as_much_is_idle_as_was_lent_at_a_time_within_the_budget_or_the_limit() {
        for (limit, lent, wanted) in [(None, 3, 3), (None, 20, 8), (Some(2 << 20), 3, 2), (Some(0), 3, 0)] {
            let pool = pool(limit);
            for _ in 0..2 {
                let held: Vec<_> = (0..lent).map(|_| pool.take(MIB).unwrap()).collect();
                drop(held);
            }
            assert_eq!(pool.account.spare_for_reads(), wanted << 20, "{limit:?} {lent}");
        }
    }

    #[test]
    fn what_was_read_outlives_the_pool() {
        let pool = pool(None);
        let mut buffer = pool.take(MIB).unwrap();
        buffer.push(&[5; MIB]);
        let bytes = buffer.freeze();
        drop(pool);
        assert!(bytes.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        assert_eq!(pool(None).take(usize::MAX / 2).unwrap_err().kind(), ErrorKind::Memory);
        assert_eq!(pool(None).take(usize::MAX).unwrap_err().kind(), ErrorKind::Memory);
    }
}

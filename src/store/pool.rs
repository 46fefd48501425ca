//! Buffers that are reused: a block's memory comes back when the last slice of it is dropped.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::engine::memory::Memory;
use crate::{Error, ErrorKind, Result};

/// Buffers are cut to multiples of this, so that blocks of nearly one size share them.
const GRAIN: usize = 64 << 10;
/// More idle buffers than this are searched longer than a new one takes.
const MAX_IDLE: usize = 256;

/// Idle buffers, bounded in bytes.
#[derive(Debug)]
pub(super) struct Pool {
    limit_bytes: usize,
    idle: Mutex<Vec<Memory>>,
}

impl Pool {
    pub(super) fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit_bytes, idle: Mutex::default() })
    }

    /// A buffer that can hold `len` bytes; an idle one when there is one that wastes little.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Result<Buffer> {
        let most = len.saturating_add(len / 4).saturating_add(GRAIN);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let best = (0..idle.len())
            .filter(|&at| (len..=most).contains(&idle[at].capacity()))
            .min_by_key(|&at| idle[at].capacity());
        let found = best.map(|at| idle.swap_remove(at));
        drop(idle);
        let memory = match found {
            Some(memory) => memory,
            // Pages are only touched as bytes arrive, so a length that is a lie costs addresses and nothing else.
            None => Memory::try_new(len.checked_next_multiple_of(GRAIN).unwrap_or(len)).ok_or_else(|| {
                Error::new(ErrorKind::Memory, format!("no memory for a read of {len} bytes"))
                    .advice("read smaller ranges")
            })?,
        };
        Ok(Buffer { memory: Some(memory), len: 0, pool: Arc::clone(self) })
    }

    fn give_back(&self, memory: Memory) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = idle.iter().map(Memory::capacity).sum();
        if idle.len() < MAX_IDLE && held + memory.capacity() <= self.limit_bytes {
            idle.push(memory);
        } else if let Some(oldest) = (memory.capacity() <= self.limit_bytes && !idle.is_empty()).then(|| idle.remove(0))
        {
            // Sizes that are no longer asked for make room for those that are.
            drop(oldest);
            if held - idle.iter().map(Memory::capacity).sum::<usize>() >= memory.capacity() {
                idle.push(memory);
            }
        }
    }
}

/// A buffer on loan. What it held before is still in it behind `len` and never shown.
#[derive(Debug)]
pub(super) struct Buffer {
    /// None once it is dropped.
    memory: Option<Memory>,
    len: usize,
    pool: Arc<Pool>,
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
    /// If they are more than the buffer was taken for.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let end = self.len + chunk.len();
        let start = std::mem::replace(&mut self.len, end);
        self.memory().bytes_mut()[start..end].copy_from_slice(chunk);
    }

    /// The first `len` bytes, to be written over whole.
    ///
    /// # Panics
    /// If they are more than the buffer was taken for.
    pub(super) fn fill(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.memory().bytes_mut()[..len]
    }

    /// Shares what was read; the memory goes back to the pool with the last slice of it.
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
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(pool: &Pool) -> Vec<usize> {
        pool.idle.lock().unwrap().iter().map(Memory::capacity).collect()
    }

    #[test]
    fn memory_comes_back_with_the_last_slice_and_is_used_again() {
        let pool = Pool::new(1 << 20);
        let mut buffer = pool.take(100_000).unwrap();
        buffer.push(&[7; 100_000]);
        let all = buffer.freeze();
        let address = all.as_ptr();
        let slice = all.slice(10..20);
        drop(all);
        assert!(idle(&pool).is_empty());
        drop(slice);
        assert_eq!(idle(&pool), [131_072]);
        let mut again = pool.take(90_000).unwrap();
        again.push(&[1; 3]);
        assert_eq!(again.as_ref(), [1; 3], "nothing of the first content shows");
        again.fill(90_000).fill(2);
        assert_eq!(again.as_ref(), [2; 90_000]);
        assert_eq!(again.freeze().as_ptr(), address);
    }

    #[test]
    fn a_small_read_does_not_take_a_large_buffer() {
        let pool = Pool::new(8 << 20);
        drop(pool.take(4 << 20).unwrap());
        drop(pool.take(10).unwrap());
        assert_eq!(idle(&pool), [4 << 20, GRAIN]);
    }

    #[test]
    fn idle_memory_stays_under_its_limit() {
        let pool = Pool::new(3 * GRAIN);
        let held: Vec<_> = (0..5).map(|_| pool.take(GRAIN).unwrap()).collect();
        drop(held);
        assert_eq!(idle(&pool).len(), 3);
        drop(pool.take(4 * GRAIN).unwrap());
        assert_eq!(idle(&pool), [GRAIN; 3]);
        drop(pool.take(3 * GRAIN).unwrap());
        assert!(idle(&pool).iter().sum::<usize>() <= 3 * GRAIN);
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        assert_eq!(Pool::new(0).take(usize::MAX / 2).unwrap_err().kind(), ErrorKind::Memory);
    }
}

//! Large memory, for batches and for what is read: in huge pages, and reused instead of being returned to the system.
#![expect(unsafe_code, reason = "asking Linux for huge pages, and memory that several threads write to")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Below this size the C library does as well: it hands memory out again without the kernel, and clears it fast. (With batches of 512 KiB of tokens,
/// 2 % of the loader's time went into that.)
const WORTH_KEEPING: usize = 128 << 10;

/// The most pieces that are kept. Searching more takes longer than allocating a new one.
const MOST_KEPT: usize = 256;

/// Memory starts at, and has, a multiple of this many bytes.
const ALIGN: usize = 64;

/// Words of the allocation. If asked for more than their alignment, the standard library clears memory by writing to it. Then every page of 4 KiB is
/// there before Linux could be asked for huge pages (147 MiB took 103 ms instead of 0.01, and the first pass over it 50).
type Word = u128;

/// Memory aligned to 64 bytes, in pages of 2 MiB where there is enough of it.
#[derive(Debug)]
pub(crate) struct Memory {
    words: NonNull<[Word]>,
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: it owns plain bytes.
unsafe impl Send for Memory {}
// SAFETY: through a shared reference it gives slices to read, and a pointer, whose users answer for what they do with it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates at least `len` bytes, all zero.
    ///
    /// # Panics
    /// If there is no such memory.
    pub(crate) fn new(len: usize) -> Self {
        Self::try_new(len).unwrap_or_else(|| panic!("no memory for {len} bytes"))
    }

    /// Does the same; `None` if there is no such memory.
    pub(crate) fn try_new(len: usize) -> Option<Self> {
        let capacity = len.checked_next_multiple_of(ALIGN)?;
        let words = capacity.checked_add(ALIGN)?.div_ceil(size_of::<Word>());
        let words = NonNull::from(Box::leak(bytemuck::try_zeroed_slice_box::<Word>(words).ok()?));
        let first = words.cast::<u8>();
        // SAFETY: there are 64 bytes more than the capacity, and fewer than 64 in front of the next multiple of 64.
        let start = unsafe { first.add(first.align_offset(ALIGN)) };
        let memory = Self { words, start, capacity };
        #[cfg(target_os = "linux")]
        memory.ask_for_huge_pages();
        Some(memory)
    }

    /// Where the memory starts. It stays there when the owner moves.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `capacity` bytes from `start` on are owned and initialised. Whoever writes through `pointer` has no owner that calls this meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) }
    }

    /// Asks Linux to back large memory by pages of 2 MiB, before it is first written.
    ///
    /// A batch of 256 images (f32, 224 x 224) is 154 MB of fresh memory: 37,632 page faults of 4 KiB each, which took a fifth of the CPU time of the
    /// whole loader.
    #[cfg(target_os = "linux")]
    fn ask_for_huge_pages(&self) {
        const HUGE: usize = 2 << 20;
        let start = (self.pointer() as usize).next_multiple_of(HUGE);
        let end = (self.pointer() as usize + self.capacity) / HUGE * HUGE;
        if start < end {
            // SAFETY: the range lies within memory that `self` owns; the advice changes neither its content nor who may use it, and a
            // refusal does no harm.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was made by leaking a box of these words, and nobody else frees it.
        drop(unsafe { Box::from_raw(self.words.as_ptr()) });
    }
}

/// Unused memory, kept for what comes next. Fresh memory costs more than the copy into it: the kernel clears each page before it is written.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    kept: Mutex<Vec<Memory>>,
    bytes: AtomicU64,
    limit: AtomicU64,
}

impl Spare {
    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Allows so many bytes to be kept, if fewer were allowed.
    pub(crate) fn allow(&self, bytes: u64) {
        self.limit.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Takes memory of at least `len` bytes, whose content is arbitrary. It takes the smallest piece that is not much too large; among several, the
    /// one used last.
    pub(crate) fn take(&self, len: usize) -> Option<Memory> {
        if len < WORTH_KEEPING {
            return None;
        }
        let fits = |memory: &Memory| (len..=len + len / 4 + 64).contains(&memory.capacity());
        let mut kept = self.kept();
        let found = kept.iter().enumerate().rev().filter(|(_, memory)| fits(memory));
        let (at, _) = found.min_by_key(|(_, memory)| memory.capacity())?;
        let memory = kept.remove(at);
        self.bytes.fetch_sub(memory.capacity() as u64, Ordering::AcqRel);
        Some(memory)
    }

    /// Keeps memory, if `room` bytes and the allowed bytes are enough for all that is kept then. The oldest memory gives way to what was used last.
    pub(crate) fn keep(&self, memory: Memory, room: u64) {
        let (bytes, room) = (memory.capacity() as u64, room.min(self.limit.load(Ordering::Acquire)));
        if memory.capacity() < WORTH_KEEPING || bytes > room {
            return;
        }
        let mut freed = self.shed_to(room - bytes);
        let mut kept = self.kept();
        if kept.len() >= MOST_KEPT {
            freed.push(self.without_oldest(&mut kept));
        }
        kept.push(memory);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        drop(kept);
        drop(freed);
    }

    /// Removes the oldest until no more than `bytes` are kept.
    pub(crate) fn shed_to(&self, bytes: u64) -> Vec<Memory> {
        let mut shed = Vec::new();
        if self.bytes() > bytes {
            let mut kept = self.kept();
            while self.bytes() > bytes && !kept.is_empty() {
                shed.push(self.without_oldest(&mut kept));
            }
        }
        shed
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn without_oldest(&self, kept: &mut Vec<Memory>) -> Memory {
        let memory = kept.remove(0);
        self.bytes.fetch_sub(memory.capacity() as u64, Ordering::AcqRel);
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Page faults of this thread so far.
    #[cfg(target_os = "linux")]
    fn faults() -> i64 {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call fills in the structure that it is given.
        let code = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
        assert_eq!(code, 0);
        // SAFETY: zeros are a value of it, and the call wrote others.
        unsafe { usage.assume_init() }.ru_minflt
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn fresh_memory_is_zero_and_touched_by_nobody_yet() {
        let before = faults();
        let mut memory = Memory::new(64 * MIB);
        assert!(faults() - before < 1000, "of {} pages", 64 * MIB / 4096);
        assert_eq!((memory.pointer() as usize % 64, memory.capacity()), (0, 64 * MIB));
        assert!(memory.bytes().iter().step_by(4096).all(|byte| *byte == 0));
        memory.bytes_mut().fill(7);
        assert_eq!((memory.bytes()[0], memory.bytes()[64 * MIB - 1]), (7, 7));
    }

    #[test]
    fn any_length_is_whole_and_an_absurd_one_is_none() {
        for len in [0, 1, 63, 64, 65, 4097] {
            let mut memory = Memory::new(len);
            assert!(memory.capacity() >= len && memory.bytes_mut().len() == memory.capacity(), "{len}");
            assert_eq!(memory.pointer() as usize % 64, 0);
        }
        assert!(Memory::try_new(usize::MAX).is_none() && Memory::try_new(usize::MAX / 2).is_none());
    }

    #[test]
    fn memory_of_about_the_size_is_used_again() {
        let spare = Spare::default();
        spare.allow(8 << 20);
        let memories = [2, 3, 2].map(|mib| Memory::new(mib * MIB));
        let [older, three, newer] = memories.each_ref().map(Memory::pointer);
        assert!(spare.take(2 * MIB).is_none());
        memories.into_iter().for_each(|memory| spare.keep(memory, u64::MAX));
        assert_eq!(spare.bytes(), 7 << 20);
        let mut found = Vec::new();
        let mut take = |len| {
            found.extend(spare.take(len));
            found.last().map(Memory::pointer)
        };
        assert_eq!(take(2 * MIB - 1), Some(newer), "of the smallest that fit the one used last");
        assert_eq!(take(2 * MIB - 1), Some(older));
        assert!(spare.take(MIB).is_none(), "three times as much would be waste");
        assert_eq!(spare.take(3 * MIB - 64).map(|memory| memory.pointer()), Some(three));
        assert_eq!(spare.bytes(), 0);
    }

    #[test]
    fn no_more_is_kept_than_is_allowed_or_has_room() {
        let spare = Spare::default();
        spare.keep(Memory::new(2 * MIB), u64::MAX);
        assert_eq!(spare.bytes(), 0, "nothing was allowed");
        spare.allow(4 << 20);
        spare.keep(Memory::new(4 * MIB), 4 << 20);
        spare.keep(Memory::new(2 * MIB), 4 << 20);
        assert_eq!(spare.bytes(), 2 << 20, "the older one gave way");
        spare.keep(Memory::new(3 * MIB), 2 << 20);
        spare.keep(Memory::new(WORTH_KEEPING - 64), u64::MAX);
        assert_eq!(spare.bytes(), 2 << 20, "no room for three, and less is not worth it");
        assert_eq!(spare.shed_to(0).len(), 1);
        assert_eq!(spare.bytes(), 0);
        spare.allow(u64::MAX);
        (0..MOST_KEPT + 3).for_each(|_| spare.keep(Memory::new(WORTH_KEEPING), u64::MAX));
        assert_eq!(spare.bytes(), (MOST_KEPT * WORTH_KEEPING) as u64);
    }
}

//! Memory of batches, used again instead of being returned to the system.
#![expect(unsafe_code, reason = "asking Linux for huge pages, and memory that is zero without being written")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below this the C library does as well: it hands memory out again without the kernel, and clears it fast. (Batches of 512 KiB of tokens spent 2 % of the loader's time
/// on that.)
const WORTH_KEEPING: usize = 128 << 10;

/// Memory aligned to 64 bytes, in pages of 2 MiB where there is enough of it.
pub(crate) struct Memory {
    lines: Box<[Line]>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding, all of which may be zero.
unsafe impl bytemuck::Zeroable for Line {}

impl Memory {
    /// At least `len` bytes, all zero.
    pub(crate) fn new(len: usize) -> Self {
        let memory = Self { lines: bytemuck::zeroed_slice_box(len.div_ceil(64)) };
        #[cfg(target_os = "linux")]
        memory.ask_for_huge_pages();
        memory
    }

    /// Where it starts. It stays there when the owner moves.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.lines.as_ptr().cast_mut().cast()
    }

    pub(crate) fn capacity(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Asks Linux to back large memory by pages of 2 MiB, before it is first written.
    ///
    /// A batch of 256 images (f32, 224 x 224) is 154 MB of fresh memory: 37,632 page faults of 4 KiB each, which took a fifth of the CPU time of the
    /// whole loader.
    #[cfg(target_os = "linux")]
    fn ask_for_huge_pages(&self) {
        const HUGE: usize = 2 << 20;
        let start = (self.pointer() as usize).next_multiple_of(HUGE);
        let end = (self.pointer() as usize + self.capacity()) / HUGE * HUGE;
        if start < end {
            // SAFETY: the range lies within memory that `self` owns; the advice changes neither its content nor who may use it, and a
            // refusal does no harm.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
}

/// Memory that nobody uses, kept for the next batches. Fresh memory costs more than the copy into it: the kernel clears each page before it is written.
#[derive(Default)]
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

    /// Memory of at least `len` bytes, whose content is anything: of what is kept the smallest that is not much too large, else fresh.
    pub(crate) fn take(&self, len: usize) -> Memory {
        if len >= WORTH_KEEPING {
            let fits = |memory: &Memory| (len..=len + len / 4 + 64).contains(&memory.capacity());
            let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let found = kept.iter().enumerate().filter(|(_, memory)| fits(memory));
            if let Some((at, _)) = found.min_by_key(|(_, memory)| memory.capacity()) {
                let memory = kept.swap_remove(at);
                self.bytes.fetch_sub(memory.capacity() as u64, Ordering::AcqRel);
                return memory;
            }
        }
        Memory::new(len)
    }

    /// Keeps memory, if `room` bytes and what is allowed suffice for all that is kept then. The oldest gives way to what was used last.
    pub(crate) fn keep(&self, memory: Memory, room: u64) {
        let (bytes, room) = (memory.capacity() as u64, room.min(self.limit.load(Ordering::Acquire)));
        if memory.capacity() < WORTH_KEEPING || bytes > room {
            return;
        }
        let freed = self.shed_to(room - bytes);
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(memory);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        drop(freed);
    }

    /// Takes out the oldest until no more than `bytes` are kept.
    pub(crate) fn shed_to(&self, bytes: u64) -> Vec<Memory> {
        let mut shed = Vec::new();
        if self.bytes() > bytes {
            let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            while self.bytes() > bytes && !kept.is_empty() {
                let memory = kept.remove(0);
                self.bytes.fetch_sub(memory.capacity() as u64, Ordering::AcqRel);
                shed.push(memory);
            }
        }
        shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_of_about_the_size_is_used_again() {
        let spare = Spare::default();
        spare.allow(8 << 20);
        let (first, second) = (spare.take(2 * MIB), spare.take(3 * MIB));
        let (two, three) = (first.pointer(), second.pointer());
        assert_eq!((first.capacity(), two as usize % 64), (2 * MIB, 0));
        spare.keep(first, u64::MAX);
        spare.keep(second, u64::MAX);
        assert_eq!(spare.bytes(), 5 << 20);
        assert_eq!(spare.take(2 * MIB - 1).pointer(), two, "the smallest that fits");
        assert_ne!(spare.take(MIB).pointer(), three, "three times as much would be waste");
        assert_eq!(spare.take(3 * MIB - 64).pointer(), three);
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
    }
}

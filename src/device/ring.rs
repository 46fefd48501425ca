//! A fixed ring of page-locked slots, one for each batch, and how batches cross from them to their device.
//!
#![doc = include_str!("README.md")]

mod crossing;
mod track;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

pub(crate) use self::crossing::{Crossing, Pieces};
pub(crate) use self::track::Track;
use super::copier::{Copier, Event, Locked};
use super::timing::{Times, Timing};
use crate::error::{Error, Result};

/// Columns of a batch from this size on have their own tensor on the device. Smaller columns share one tensor, and one copy.
///
/// Queueing a copy costs some microseconds; 1 MiB takes twenty to cross at 50 GB/s. And a label that is kept keeps no images.
const OWN_TENSOR: usize = 1 << 20;

/// The alignment of every place in a slot: libtorch's kernels load up to 16 bytes at a time, devices move 128.
const ALIGNMENT: usize = 256;

/// Columns without a bound cross through pieces of this size. Each piece holds bytes of one column, so that as a rule there are more pieces than such
/// columns.
const PIECE: usize = 1 << 20;
const PIECES: usize = 8;

/// Where the columns of a batch lie in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotLayout {
    /// The place of each column, by its number; `None` for columns without a bound.
    places: Vec<Option<Place>>,
    /// Ranges of a slot, each of which is copied at once, to its own tensor.
    groups: Vec<Range<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: usize,
    capacity: usize,
    group: usize,
}

impl SlotLayout {
    /// Gives a place to each column with a bound in bytes: small columns side by side, then large ones.
    pub(crate) fn new(bounds: &[Option<usize>]) -> Self {
        let mut layout = Self { places: vec![None; bounds.len()], groups: Vec::new() };
        let mut end = 0;
        let bounded = || {
            bounds.iter().enumerate().filter_map(|(column, bound)| Some((column, bound.filter(|&bytes| bytes > 0)?)))
        };
        for (column, capacity) in bounded().filter(|(_, capacity)| *capacity < OWN_TENSOR) {
            layout.places[column] = Some(Place { start: end, capacity, group: 0 });
            end += capacity.next_multiple_of(ALIGNMENT);
        }
        if end > 0 {
            layout.groups.push(0..end);
        }
        for (column, capacity) in bounded().filter(|(_, capacity)| *capacity >= OWN_TENSOR) {
            layout.places[column] = Some(Place { start: end, capacity, group: layout.groups.len() });
            layout.groups.push(end..end + capacity.next_multiple_of(ALIGNMENT));
            end += capacity.next_multiple_of(ALIGNMENT);
        }
        layout
    }

    /// Bytes of a slot.
    pub(crate) fn bytes(&self) -> usize {
        self.groups.last().map_or(0, |group| group.end)
    }

    /// Whether a column of `len` bytes has a place.
    pub(crate) fn holds(&self, column: usize, len: usize) -> bool {
        self.place(column, len).is_some()
    }

    fn place(&self, column: usize, len: usize) -> Option<Place> {
        self.places.get(column).copied().flatten().filter(|place| len <= place.capacity)
    }
}

/// The locked memory, and which of its slots are free.
struct Arena {
    memory: Box<dyn Locked>,
    layout: SlotLayout,
    free: Mutex<Vec<usize>>,
}

/// One batch's place in the ring. It goes back when it is dropped: when the last column's memory is released, which is after the batch's copy.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    number: usize,
    claimed: Box<[AtomicBool]>,
}

impl Slot {
    /// Claims the place of a column of `len` bytes, as an offset into the slot. Each place can be claimed once. `None` if the column has no place, or
    /// a smaller one.
    pub(crate) fn claim(&self, column: usize, len: usize) -> Option<usize> {
        let place = self.arena.layout.place(column, len)?;
        let claimed = self.claimed[column].swap(true, Ordering::AcqRel);
        (!claimed).then_some(place.start)
    }

    /// The byte at an offset of the slot.
    pub(crate) fn pointer(&self, offset: usize) -> *mut u8 {
        let bytes = self.arena.layout.bytes();
        assert!(offset <= bytes, "offsets are those of places");
        self.arena.memory.pointer().wrapping_add(self.number * bytes + offset)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.arena.free).push(self.number);
    }
}

/// Host memory of a column that is to cross.
pub(crate) trait HostBytes: Send {
    fn bytes(&self) -> &[u8];

    /// The slot that the memory lies in, and the offset there.
    fn slot(&self) -> Option<(&Slot, usize)>;
}

/// A column on its way.
pub(crate) struct Outgoing {
    /// Its number in the batch.
    pub(crate) column: usize,
    pub(crate) memory: Box<dyn HostBytes>,
    pub(crate) kind: tch::Kind,
    pub(crate) shape: Vec<i64>,
}

/// Memory that copies under way read from, oldest first.
type UnderWay = VecDeque<(Event, Vec<Box<dyn HostBytes>>)>;

/// Slots for the batches of one device. They are allocated and locked when the ring is built, and never again.
pub(crate) struct Ring {
    copier: Arc<dyn Copier>,
    arena: Arc<Arena>,
    pieces: Mutex<LockedPieces>,
    under_way: Mutex<UnderWay>,
    /// Why nothing more is copied, once the device is lost.
    broken: OnceLock<Error>,
    slots: usize,
    /// Batches that were handed over, and those among them whose copy was not done at that moment.
    crossed: AtomicU64,
    late: AtomicU64,
    timing: Mutex<Timing>,
}

/// Locked memory through which columns without a place go, piece by piece.
struct LockedPieces {
    memory: Arc<dyn Locked>,
    next: usize,
    busy: [Option<Busy>; PIECES],
}

/// A piece that a copy reads from.
#[derive(Clone)]
struct Busy {
    /// What the copy waits for: kernels of the loop, which take as long as they take. After them it is a matter of moments.
    kernels: Event,
    copied: Event,
}

impl Ring {
    /// # Errors
    /// Those of the device, which has no such memory.
    pub(crate) fn new(copier: Arc<dyn Copier>, layout: SlotLayout, slots: usize) -> Result<Self> {
        let memory = copier.lock((layout.bytes() * slots).max(ALIGNMENT))?;
        let memory_of_pieces = copier.lock(PIECE * PIECES)?.into();
        let pieces = Mutex::new(LockedPieces { memory: memory_of_pieces, next: 0, busy: Default::default() });
        // The first slot is taken first.
        let free = Mutex::new((0..slots).rev().collect());
        Ok(Self {
            copier,
            arena: Arc::new(Arena { memory, layout, free }),
            pieces,
            under_way: Mutex::default(),
            broken: OnceLock::new(),
            slots,
            crossed: AtomicU64::new(0),
            late: AtomicU64::new(0),
            timing: Mutex::default(),
        })
    }

    pub(crate) fn layout(&self) -> &SlotLayout {
        &self.arena.layout
    }

    /// Page-locked bytes that a ring of so many slots takes.
    pub(crate) fn bytes_of(layout: &SlotLayout, slots: usize) -> u64 {
        (layout.bytes() * slots + PIECE * PIECES) as u64
    }

    /// The number of slots, and of page-locked bytes.
    pub(crate) fn size(&self) -> (usize, u64) {
        (self.slots, Self::bytes_of(self.layout(), self.slots))
    }

    /// Batches that were handed over, and those among them whose copy was not done at that moment.
    pub(crate) fn crossed(&self) -> (u64, u64) {
        (self.crossed.load(Ordering::Relaxed), self.late.load(Ordering::Relaxed))
    }

    pub(crate) fn device(&self) -> usize {
        self.copier.number()
    }

    /// What the device did with its time, summed over the batches that it has come past.
    pub(crate) fn times(&self) -> Times {
        lock(&self.timing).settle(&*self.copier)
    }

    /// Takes a slot that is free, and that no copy reads from; `None` if there is none at the moment.
    ///
    /// # Errors
    /// What is wrong with the device.
    pub(crate) fn take(&self) -> Result<Option<Slot>> {
        self.reclaim()?;
        let number = lock(&self.arena.free).pop();
        let claimed = || self.layout().places.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(number.map(|number| Slot { arena: self.arena.clone(), number, claimed: claimed() }))
    }

    /// Whether [`take`](Self::take) would not return `None`.
    pub(crate) fn has_room(&self) -> bool {
        self.reclaim().is_err() || !lock(&self.arena.free).is_empty()
    }

    /// Waits for the oldest copy under way, which frees its slot. Returns whether there was one.
    pub(crate) fn wait_for_one(&self) -> bool {
        if self.broken.get().is_some() {
            return false;
        }
        let oldest = lock(&self.under_way).front().map(|(copied, _)| copied.clone());
        if let Some(Err(error)) = oldest.as_ref().map(|copied| self.copier.synchronize(copied)) {
            _ = self.broken.set(error);
        }
        oldest.is_some()
    }

    /// Releases the memory of copies that are done.
    fn reclaim(&self) -> Result<()> {
        if let Some(error) = self.broken.get() {
            return Err(error.clone());
        }
        let mut under_way = lock(&self.under_way);
        let mut done = Vec::new();
        while let Some((copied, _)) = under_way.front() {
            match self.copier.is_done(copied) {
                Ok(true) => done.extend(under_way.pop_front()),
                Ok(false) => break,
                Err(error) => {
                    _ = self.broken.set(error.clone());
                    return Err(error);
                }
            }
        }
        drop(under_way);
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.copier.drain().is_err() {
            // Nobody can say what a lost device still reads: its memory is never given back.
            std::mem::forget(self.arena.clone());
            let pieces = self.pieces.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            std::mem::forget(pieces.memory.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::device::emulated::Emulated;

    #[test]
    fn small_columns_lie_side_by_side_and_large_ones_have_their_own() {
        let layout = SlotLayout::new(&[Some(3 << 20), Some(100), None, Some(8), Some(0), Some(1 << 20)]);
        let place = |start, capacity, group| Some(Place { start, capacity, group });
        let large = 512 + (3 << 20);
        assert_eq!(
            layout.places,
            [place(512, 3 << 20, 1), place(0, 100, 0), None, place(256, 8, 0), None, place(large, 1 << 20, 2)]
        );
        assert_eq!(layout.groups, [0..512, 512..large, large..large + (1 << 20)]);
        assert_eq!(layout.bytes(), large + (1 << 20));
        assert!(layout.holds(3, 8) && !layout.holds(3, 9) && !layout.holds(2, 0) && !layout.holds(6, 0));
        assert_eq!(SlotLayout::new(&[None, Some(0)]).bytes(), 0);
    }

    #[test]
    fn a_place_is_claimed_once_and_a_slot_comes_back_when_it_is_dropped() {
        let ring = Ring::new(Emulated::new(0, Duration::ZERO), SlotLayout::new(&[Some(10), Some(300)]), 2).unwrap();
        let first = ring.take().unwrap().unwrap();
        assert_eq!((first.claim(1, 300), first.claim(1, 300), first.claim(0, 11)), (Some(256), None, None));
        let second = ring.take().unwrap().unwrap();
        assert_eq!(second.pointer(0), first.pointer(0).wrapping_add(256 + 512));
        assert!(ring.take().unwrap().is_none() && !ring.has_room());
        let memory = first.pointer(256);
        drop(first);
        let again = ring.take().unwrap().unwrap();
        assert_eq!(again.claim(1, 300).map(|start| again.pointer(start)), Some(memory));
    }
}

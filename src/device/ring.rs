//! A fixed ring of page-locked slots, one a batch, and how batches cross from them to their device.
//!
#![doc = include_str!("README.md")]
#![expect(
    unsafe_code,
    reason = "copies run beside the host, from memory and to tensors that are kept until they are done"
)]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};

use super::copier::{Copier, Event, Locked, Stream};
use super::timing::{Marks, Times, Timing};
use crate::error::{Error, Result};

/// Columns of a batch from this size on have a tensor of their own on the device; smaller ones share one, and one copy.
///
/// A copy costs some microseconds to queue, which is what 1 MiB takes to cross at 50 GB/s in twenty; and a label that is kept keeps no images.
const OWN_TENSOR: usize = 1 << 20;

/// What every place in a slot is aligned to: libtorch's kernels load up to 16 bytes at a time, devices move 128.
const ALIGNMENT: usize = 256;

/// Columns without a bound cross through pieces of this size.
const PIECE: usize = 4 << 20;
const PIECES: usize = 2;

/// Where the columns of a batch lie in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotLayout {
    /// By number of column; columns without a bound have none.
    places: Vec<Option<Place>>,
    /// Ranges of a slot, each of which is copied at once, to a tensor of its own.
    groups: Vec<Range<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: usize,
    capacity: usize,
    group: usize,
}

impl SlotLayout {
    /// A place for each column with a bound in bytes: small columns side by side, then large ones.
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

    /// Whether a column of so many bytes has its place.
    pub(crate) fn holds(&self, column: usize, len: usize) -> bool {
        self.place(column, len).is_some()
    }

    fn place(&self, column: usize, len: usize) -> Option<Place> {
        self.places.get(column).copied().flatten().filter(|place| len <= place.capacity)
    }
}

/// The locked memory, and which slots of it nobody has.
struct Arena {
    memory: Box<dyn Locked>,
    layout: SlotLayout,
    free: Mutex<Vec<usize>>,
}

/// One batch's place in the ring. It goes back when it is dropped: when the last column's memory is let go, which is behind the batch's copy.
pub(crate) struct Slot {
    arena: Arc<Arena>,
    number: usize,
    claimed: Box<[AtomicBool]>,
}

impl Slot {
    /// The place of a column of `len` bytes, as an offset into the slot. Each can be had once; `None` where the column has no place, or a smaller one.
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

    /// The slot that it lies in, and where.
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

/// Slots for the batches of one device: allocated and locked when it is built, and never again.
pub(crate) struct Ring {
    copier: Arc<dyn Copier>,
    arena: Arc<Arena>,
    pieces: Mutex<Pieces>,
    under_way: Mutex<UnderWay>,
    /// Why nothing more is copied, once the device is lost.
    broken: OnceLock<Error>,
    slots: usize,
    /// Batches that were handed over, and those of them whose copy was not done then.
    crossed: AtomicU64,
    late: AtomicU64,
    timing: Mutex<Timing>,
}

/// Locked memory that columns without a place go through, piece by piece.
struct Pieces {
    memory: Arc<dyn Locked>,
    next: usize,
    busy: [Option<Busy>; PIECES],
}

/// A piece that a copy reads from.
#[derive(Clone)]
struct Busy {
    /// What the copy waits for: kernels of the loop, which take as long as they take. Behind them it is a matter of moments.
    kernels: Event,
    copied: Event,
}

impl Ring {
    /// # Errors
    /// Of the device, which has no such memory.
    pub(crate) fn new(copier: Arc<dyn Copier>, layout: SlotLayout, slots: usize) -> Result<Self> {
        let memory = copier.lock((layout.bytes() * slots).max(ALIGNMENT))?;
        let pieces =
            Mutex::new(Pieces { memory: copier.lock(PIECE * PIECES)?.into(), next: 0, busy: Default::default() });
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

    /// Slots, and page-locked bytes.
    pub(crate) fn size(&self) -> (usize, u64) {
        (self.slots, Self::bytes_of(self.layout(), self.slots))
    }

    /// Batches that were handed over, and those of them whose copy was not done then.
    pub(crate) fn crossed(&self) -> (u64, u64) {
        (self.crossed.load(Ordering::Relaxed), self.late.load(Ordering::Relaxed))
    }

    pub(crate) fn device(&self) -> usize {
        self.copier.number()
    }

    /// What the device did with its time, over the batches that it has come past.
    pub(crate) fn times(&self) -> Times {
        lock(&self.timing).settle(&*self.copier)
    }

    /// A slot that nobody has, and no copy reads from; `None` when there is none at the moment.
    ///
    /// # Errors
    /// What is wrong with the device.
    pub(crate) fn take(&self) -> Result<Option<Slot>> {
        self.reclaim()?;
        let number = lock(&self.arena.free).pop();
        let claimed = || self.layout().places.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(number.map(|number| Slot { arena: self.arena.clone(), number, claimed: claimed() }))
    }

    /// Whether [`take`](Self::take) would not say `None`.
    pub(crate) fn has_room(&self) -> bool {
        self.reclaim().is_err() || !lock(&self.arena.free).is_empty()
    }

    /// Waits for the oldest copy under way, whose slot comes back then; whether there was one.
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

    /// Lets go of the memory of copies that are done.
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

/// A batch whose copies are being queued: of what lies in its slot all at once, of other columns piece by piece, as pieces become free.
///
/// Dropped before [`finish`](Self::finish), it waits until the device does nothing more with its memory.
struct Queueing {
    ring: Arc<Ring>,
    outgoing: Vec<Outgoing>,
    /// Their tensors, each of which is here before anything is copied to it.
    tensors: Vec<tch::Tensor>,
    begun: Option<Event>,
    /// Columns without a place, by their number in `outgoing`, and what they are copied to.
    left: VecDeque<(usize, tch::Tensor)>,
    /// Bytes of the first of them whose copies are queued.
    at: usize,
    /// Behind what may still use the memory of those tensors.
    allocated: Option<Event>,
}

impl Queueing {
    /// Queues the copies of what lies in the slot.
    fn begin(ring: &Arc<Ring>, outgoing: Vec<Outgoing>, destination: &Destination) -> Result<Self> {
        let (tensors, left) = (Vec::with_capacity(outgoing.len()), VecDeque::new());
        let mut queueing = Self { ring: ring.clone(), outgoing, tensors, begun: None, left, at: 0, allocated: None };
        queueing.copy_slot(destination)?;
        Ok(queueing)
    }

    fn copy_slot(&mut self, destination: &Destination) -> Result<()> {
        let (copier, layout) = (&self.ring.copier, self.ring.layout());
        copier.wait(Stream::Copy, &destination.ready)?;
        // A mark, without which nothing is measured.
        self.begun = copier.mark(Stream::Copy).ok();
        // What each group holds, up to the end of its last column, and the slot that it lies in.
        let mut ends = vec![None; layout.groups.len()];
        for (number, column) in self.outgoing.iter().enumerate() {
            let len = column.memory.bytes().len();
            if let Some((slot, start)) = column.memory.slot() {
                let place = layout.places[column.column].expect("a slot has a place for what lies in it");
                let known = ends[place.group].get_or_insert((slot, start + len));
                known.1 = known.1.max(start + len);
                let start = start - layout.groups[place.group].start;
                self.tensors.push(view(&destination.tensors[place.group], start, len, column)?);
            } else {
                let whole = copier.allocate(len)?;
                self.tensors.push(view(&whole, 0, len, column)?);
                self.left.push_back((number, whole));
            }
        }
        for ((group, end), tensor) in layout.groups.iter().zip(ends).zip(&destination.tensors) {
            let Some((slot, end)) = end.filter(|(_, end)| *end > group.start) else { continue };
            // SAFETY: the group is a part of the slot, and the tensor as large. The slot's memory and the tensor's views are kept here, and the slot
            // is not given to another batch, until the event behind this copy is done: `finish` puts the memory under way and the views into
            // `Copying`, or the stream is drained before either is let go of.
            unsafe { copier.copy(slot.pointer(group.start), tensor, end - group.start)? };
        }
        if !self.left.is_empty() {
            let allocated = copier.record(Stream::Default)?;
            copier.wait(Stream::Copy, &allocated)?;
            self.allocated = Some(allocated);
        }
        Ok(())
    }

    /// Queues the copies of what lies in no slot, through locked pieces; whether they all are. Where a piece is read behind kernels that are not done,
    /// it is waited for only if `wait` says so.
    fn go_on(&mut self, wait: bool) -> Result<bool> {
        let (ring, copier) = (&self.ring, &self.ring.copier);
        let mut pieces = lock(&ring.pieces);
        while let Some((number, whole)) = self.left.front() {
            let bytes = &self.outgoing[*number].memory.bytes()[self.at..];
            let chunk = &bytes[..bytes.len().min(PIECE)];
            if chunk.is_empty() {
                (self.at, _) = (0, self.left.pop_front());
                continue;
            }
            let piece = pieces.next;
            if let Some(Busy { kernels, copied }) = pieces.busy[piece].clone() {
                if !wait && !copier.is_done(&kernels)? {
                    return Ok(false);
                }
                if !copier.is_done(&copied)? {
                    // Others may need no piece, or have one by then.
                    drop(pieces);
                    copier.synchronize(&copied)?;
                    pieces = lock(&ring.pieces);
                    continue;
                }
            }
            let memory = pieces.memory.pointer().wrapping_add(piece * PIECE);
            let to = whole
                .f_narrow(0, self.at as i64, chunk.len() as i64)
                .map_err(|e| Error::new(crate::ErrorKind::Device, "no piece of a tensor").because(e))?;
            // SAFETY: the piece is `PIECE` bytes of memory that lives as long as the ring, which drains the stream before it is dropped; no copy
            // reads from it, for its last one is done, and the lock keeps others from it. A view of `whole` is in `tensors`, which are kept until
            // the copies are done.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), memory, chunk.len());
                copier.copy(memory, &to, chunk.len())?;
            }
            let kernels = self.allocated.clone().expect("recorded behind the tensors of such columns");
            pieces.busy[piece] = Some(Busy { kernels, copied: copier.record(Stream::Copy)? });
            pieces.next = (piece + 1) % PIECES;
            self.at += chunk.len();
        }
        Ok(true)
    }

    /// Behind the last copy.
    fn finish(mut self) -> Result<Copying> {
        let copied = self.ring.copier.record(Stream::Copy)?;
        let memories: Vec<_> = std::mem::take(&mut self.outgoing).into_iter().map(|column| column.memory).collect();
        let bytes = memories.iter().map(|memory| memory.bytes().len() as u64).sum();
        lock(&self.ring.under_way).push_back((copied.clone(), memories));
        let (copier, tensors) = (self.ring.copier.clone(), std::mem::take(&mut self.tensors));
        Ok(Copying { copier, tensors, bytes, begun: self.begun.take(), copied })
    }
}

impl Drop for Queueing {
    fn drop(&mut self) {
        // Some of it may be under way.
        if !self.outgoing.is_empty()
            && let Err(lost) = self.ring.copier.drain()
        {
            // Nobody can say what the device still reads: it is never used again.
            std::mem::forget(std::mem::take(&mut self.outgoing));
            _ = self.ring.broken.set(lost);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.copier.drain().is_err() {
            // Nobody can say what a lost device still reads: its memory is never given back.
            std::mem::forget(self.arena.clone());
            std::mem::forget(lock(&self.pieces).memory.clone());
        }
    }
}

/// A column's part of a tensor of bytes.
fn view(whole: &tch::Tensor, start: usize, len: usize, column: &Outgoing) -> Result<tch::Tensor> {
    let part = whole.f_narrow(0, start as i64, len as i64);
    let elements = part.and_then(|part| part.f_view_dtype(column.kind));
    elements.and_then(|elements| elements.f_view(column.shape.as_slice())).map_err(|e| {
        Error::new(crate::ErrorKind::Device, format!("no tensor of shape {:?} in {len} bytes", column.shape)).because(e)
    })
}

/// Tensors on the device that a batch will be copied to, a group each, and the event behind what used their memory before.
struct Destination {
    tensors: Vec<tch::Tensor>,
    ready: Event,
}

/// A batch whose copies are queued. Its tensors can only be had by [`Track::hand_over`], which orders the default stream behind them; dropped before, it
/// waits for them, because the memory of tensors is given out again in the order of that stream.
struct Copying {
    copier: Arc<dyn Copier>,
    tensors: Vec<tch::Tensor>,
    bytes: u64,
    begun: Option<Event>,
    copied: Event,
}

impl Drop for Copying {
    fn drop(&mut self) {
        if !self.tensors.is_empty() {
            // Of a device that is lost the memory is no more.
            _ = self.copier.synchronize(&self.copied);
        }
    }
}

/// A batch between its slot and the loop.
pub(crate) struct Crossing {
    stage: Mutex<Stage>,
}

enum Stage {
    OnHost(Vec<Outgoing>),
    Queueing(Queueing),
    Copying(Copying),
    Failed(Error),
    Gone,
}

impl Crossing {
    pub(crate) fn new(outgoing: Vec<Outgoing>) -> Self {
        Self { stage: Mutex::new(Stage::OnHost(outgoing)) }
    }

    /// Whether some of its copies are not queued.
    fn is_behind(&self) -> bool {
        matches!(*lock(&self.stage), Stage::OnHost(_) | Stage::Queueing(_))
    }

    /// Queues its copies, once there are tensors for them; whether it is done with. See [`Queueing::go_on`].
    fn go_on(&self, ring: &Arc<Ring>, ready: &Mutex<VecDeque<Result<Destination>>>, wait: bool) -> bool {
        let mut stage = lock(&self.stage);
        let queueing = match std::mem::replace(&mut *stage, Stage::Gone) {
            Stage::OnHost(outgoing) => {
                let Some(destination) = lock(ready).pop_front() else {
                    *stage = Stage::OnHost(outgoing);
                    return false;
                };
                destination.and_then(|destination| Queueing::begin(ring, outgoing, &destination))
            }
            Stage::Queueing(queueing) => Ok(queueing),
            other => {
                *stage = other;
                return true;
            }
        };
        let gone_on = queueing.and_then(|mut queueing| {
            let is_all = queueing.go_on(wait)?;
            if is_all { queueing.finish().map(Stage::Copying) } else { Ok(Stage::Queueing(queueing)) }
        });
        *stage = gone_on.unwrap_or_else(Stage::Failed);
        !matches!(*stage, Stage::Queueing(_))
    }
}

/// The way of one iterator's batches through a ring, in order: so many are on the device or on their way there, ahead of the loop.
pub(crate) struct Track {
    ring: Arc<Ring>,
    /// Tensors for the batches that come next, oldest first; or why there are none.
    ready: Mutex<VecDeque<Result<Destination>>>,
    /// Batches that have none yet, behind one whose copies are being queued.
    waiting: Mutex<VecDeque<Weak<Crossing>>>,
    /// Held while copies are queued: they are in the order of batches. But for the loop's own thread nobody waits for it, or while he has it.
    pumping: Mutex<()>,
    /// Whether whoever has `pumping` shall look once more.
    again: AtomicBool,
    /// Behind what was queued when the loop asked for the batch that is handed over next.
    asked: Mutex<Option<Event>>,
}

impl Track {
    /// Prepares for `ahead` batches, on the thread that will take them.
    pub(crate) fn new(ring: Arc<Ring>, ahead: usize) -> Self {
        let track = Self {
            ring,
            ready: Mutex::default(),
            waiting: Mutex::default(),
            pumping: Mutex::default(),
            again: AtomicBool::new(false),
            asked: Mutex::default(),
        };
        (0..ahead).for_each(|_| track.prepare());
        track
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Allocates tensors for one batch more. The event tells when nothing uses their memory any more that is queued now.
    fn prepare(&self) {
        let copier = &self.ring.copier;
        let allocate = || {
            let groups = self.ring.layout().groups.iter();
            let tensors = groups.map(|group| copier.allocate(group.len())).collect::<Result<_>>()?;
            Ok(Destination { tensors, ready: copier.record(Stream::Default)? })
        };
        lock(&self.ready).push_back(allocate());
    }

    /// A finished batch, behind all before it. It is copied by the next [`pump`](Self::pump) that has tensors for it.
    pub(crate) fn enqueue(&self, crossing: &Arc<Crossing>) {
        lock(&self.waiting).push_back(Arc::downgrade(crossing));
    }

    /// Queues the copies of batches that there are tensors for, as far as none has to wait. Where somebody is at it, he does this too.
    pub(crate) fn pump(&self) {
        self.again.store(true, Ordering::SeqCst);
        while self.again.load(Ordering::SeqCst) {
            let _pumping = match self.pumping.try_lock() {
                Ok(pumping) => pumping,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.again.store(false, Ordering::SeqCst);
            self.queue(None);
        }
    }

    /// Queues copies, in the order of batches. Up to `wanted` pieces are waited for.
    fn queue(&self, wanted: Option<&Crossing>) {
        loop {
            let Some(first) = lock(&self.waiting).front().cloned() else { return };
            // A batch that was dropped needs none.
            if let Some(crossing) = first.upgrade()
                && !crossing.go_on(&self.ring, &self.ready, wanted.is_some_and(Crossing::is_behind))
            {
                return;
            }
            lock(&self.waiting).pop_front();
        }
    }

    /// The loop asks for its next batch: from here on its device waits for nothing else. (A fault shows at the hand-over.)
    pub(crate) fn ask(&self) {
        *lock(&self.asked) = self.ring.copier.mark(Stream::Default).ok();
    }

    /// The tensors of the next batch, which what is queued on the default stream from now on may use; and tensors for one batch more, which go to
    /// the first that has none.
    ///
    /// # Errors
    /// What went wrong with its copy.
    pub(crate) fn hand_over(&self, crossing: &Crossing) -> Result<Vec<tch::Tensor>> {
        // Tensors were prepared for this batch: it is copied now, if it is not yet.
        {
            let _pumping = lock(&self.pumping);
            self.queue(Some(crossing));
        }
        self.prepare();
        let stage = std::mem::replace(&mut *lock(&crossing.stage), Stage::Gone);
        let tensors = match stage {
            Stage::Copying(mut copying) => {
                let ring = &self.ring;
                ring.crossed.fetch_add(1, Ordering::Relaxed);
                if !ring.copier.is_done(&copying.copied)? {
                    ring.late.fetch_add(1, Ordering::Relaxed);
                }
                ring.copier.wait(Stream::Default, &copying.copied)?;
                let (asked, begun) = (lock(&self.asked).take(), copying.begun.clone());
                if let (Some(asked), Some(begun), Ok(arrived)) = (asked, begun, ring.copier.mark(Stream::Default)) {
                    let (copied, bytes) = (copying.copied.clone(), copying.bytes);
                    lock(&ring.timing).push(Marks { asked, arrived, begun, copied, bytes });
                    ring.times();
                }
                std::mem::take(&mut copying.tensors)
            }
            Stage::Failed(error) => return Err(error),
            Stage::OnHost(_) | Stage::Queueing(_) | Stage::Gone => {
                unreachable!("batches are handed over in order, each once")
            }
        };
        self.pump();
        Ok(tensors)
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

//! The way of one iterator's batches through a ring.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};

use super::crossing::{Crossing, Destination, Pieces, Queued, Stage};
use super::{Ring, lock};
use crate::device::copier::{Event, Stream};
use crate::device::timing::Marks;
use crate::error::Result;

/// The way of one iterator's batches through a ring, in order. A fixed number of them is on the device or on the way there, ahead of the loop.
pub(crate) struct Track {
    ring: Arc<Ring>,
    /// Tensors for the batches that come next, oldest first; or why there are none.
    ready: Mutex<VecDeque<Result<Destination>>>,
    /// Batches that have no tensors yet, after one whose copies are being queued.
    waiting: Mutex<VecDeque<Weak<Crossing>>>,
    /// Held while copies are queued, so that they are in the order of batches. Only the loop's own thread ever waits for this lock, or waits while it
    /// holds it.
    pumping: Mutex<()>,
    /// Whether the thread that holds `pumping` shall look once more.
    again: AtomicBool,
    /// Whether the loop waits for `pumping`: the thread that holds it then stops after its current batch.
    wanted: AtomicBool,
    /// The mark after what was queued when the loop asked for the batch that is handed over next.
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
            wanted: AtomicBool::new(false),
            asked: Mutex::default(),
        };
        (0..ahead).for_each(|_| track.prepare());
        track
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Allocates tensors for one more batch. The event is done when none of the work that is queued now uses their memory any more.
    fn prepare(&self) {
        let copier = &self.ring.copier;
        let allocate = || {
            let groups = self.ring.layout().groups.iter();
            let tensors = groups.map(|group| copier.allocate(group.len())).collect::<Result<_>>()?;
            Ok(Destination { tensors, ready: copier.record(Stream::Default)? })
        };
        lock(&self.ready).push_back(allocate());
    }

    /// Adds a finished batch, after all before it. The next [`pump`](Self::pump) that has tensors for it copies it.
    pub(crate) fn enqueue(&self, crossing: &Arc<Crossing>) {
        lock(&self.waiting).push_back(Arc::downgrade(crossing));
    }

    /// Queues the copies of batches for which there are tensors, as far as `how` says. If another thread is already pumping, it does this too.
    /// Returns whether columns without a place are left to [`Pieces::Free`].
    pub(crate) fn pump(&self, how: Pieces) -> bool {
        let mut left = false;
        self.again.store(true, Ordering::SeqCst);
        while self.again.load(Ordering::SeqCst) {
            let _pumping = match self.pumping.try_lock() {
                Ok(pumping) => pumping,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return false,
            };
            self.again.store(false, Ordering::SeqCst);
            left = self.queue(how, None);
        }
        left
    }

    /// Queues copies, in the order of batches, up to `last` if it is given. Returns whether columns without a place are left.
    fn queue(&self, how: Pieces, last: Option<&Crossing>) -> bool {
        let goes_on = || last.map_or(!self.wanted.load(Ordering::SeqCst), Crossing::is_behind);
        while goes_on() {
            let Some(first) = lock(&self.waiting).front().cloned() else { return false };
            // A batch that was dropped needs none.
            let queued = first.upgrade().map_or(Queued::All, |crossing| crossing.go_on(&self.ring, &self.ready, how));
            if queued != Queued::All {
                return queued == Queued::InPart;
            }
            lock(&self.waiting).pop_front();
        }
        false
    }

    /// Notes that the loop asks for its next batch: from here on its device waits for nothing else. (A fault shows at the hand-over.)
    pub(crate) fn ask(&self) {
        *lock(&self.asked) = self.ring.copier.mark(Stream::Default).ok();
    }

    /// Returns the tensors of the next batch, which work queued on the default stream from now on may use. It prepares tensors for one more batch,
    /// which go to the first batch that has none, and queues what follows as far as `how` says. Also returns whether columns without a place are left
    /// to others.
    ///
    /// # Errors
    /// What went wrong with its copy.
    pub(crate) fn hand_over(&self, crossing: &Crossing, how: Pieces) -> Result<(Vec<tch::Tensor>, bool)> {
        // Tensors were prepared for this batch: it is copied now, if it is not yet.
        if crossing.is_behind() {
            self.wanted.store(true, Ordering::SeqCst);
            let _pumping = lock(&self.pumping);
            self.wanted.store(false, Ordering::SeqCst);
            self.queue(Pieces::All, Some(crossing));
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
                let marks = (lock(&self.asked).take(), copying.copies.take(), ring.copier.mark(Stream::Default));
                if let (Some(asked), Some(copies), Ok(arrived)) = marks {
                    lock(&ring.timing).push(Marks { asked, arrived, copies, bytes: copying.bytes });
                    ring.times();
                }
                std::mem::take(&mut copying.tensors)
            }
            Stage::Failed(error) => return Err(error),
            Stage::OnHost(_) | Stage::Queueing(_) | Stage::Gone => {
                unreachable!("batches are handed over in order, each once")
            }
        };
        Ok((tensors, self.pump(how)))
    }

    /// Releases the tensors for batches to come: the loop wants no more.
    pub(crate) fn close(&self) {
        lock(&self.waiting).clear();
        let tensors = std::mem::take(&mut *lock(&self.ready));
        drop(tensors);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::device::emulated::Emulated;
    use crate::device::ring::{HostBytes, Outgoing, PIECE, Slot, SlotLayout};

    /// Memory of a column that has no place.
    struct Plain(Vec<u8>);

    impl HostBytes for Plain {
        fn bytes(&self) -> &[u8] {
            &self.0
        }

        fn slot(&self) -> Option<(&Slot, usize)> {
            None
        }
    }

    fn batch(len: usize) -> Arc<Crossing> {
        let memory = Box::new(Plain(vec![7; len]));
        Arc::new(Crossing::new(vec![Outgoing { column: 0, memory, kind: tch::Kind::Uint8, shape: vec![len as i64] }]))
    }

    #[test]
    fn pieces_are_left_to_workers_and_a_batch_that_is_queued_waits_for_no_other() {
        let device = Emulated::new(0, Duration::ZERO);
        let ring = Arc::new(Ring::new(device.clone(), SlotLayout::new(&[None]), 2).unwrap());
        let track = Arc::new(Track::new(ring, 1));
        let (first, second) = (batch(3), batch(2 * PIECE + 1));
        [&first, &second].into_iter().for_each(|batch| track.enqueue(batch));
        assert!(!track.pump(Pieces::Free), "there are no tensors for the second one");
        let before = device.log().len();
        let tensors = std::thread::scope(|scope| {
            // Somebody fills pieces of another batch.
            let held = lock(&track.pumping);
            let (handed, over) = std::sync::mpsc::channel();
            let of_loop = track.clone();
            scope.spawn(move || _ = handed.send(of_loop.hand_over(&first, Pieces::Later).unwrap()));
            let (tensors, left) = over.recv_timeout(Duration::from_secs(60)).expect("it waits for nobody");
            assert!(!left && track.again.load(Ordering::SeqCst), "whoever is at it looks once more");
            drop(held);
            tensors
        });
        // The loop begins with the second batch, and says that it is to be gone on with.
        assert!(track.pump(Pieces::Later) && track.pump(Pieces::Later));
        let log = device.log()[before..].join(", ");
        let begun = "Copy waits for 7, mark 9 on Copy, allocate 2097153, mark 10 on Copy, record 11 on Default, Copy waits for 11, mark 12 on Copy";
        assert_eq!(log, format!("record 7 on Default, Default waits for 6, mark 8 on Default, {begun}"));
        assert!(!track.pump(Pieces::Free));
        let copied: Vec<_> = device.log().into_iter().filter(|call| call.starts_with("copy")).collect();
        assert_eq!(copied, ["copy 3", "copy 1048576", "copy 1048576", "copy 1"]);
        track.close();
        drop((second, tensors));
        assert!(lock(&track.ready).is_empty() && lock(&track.waiting).is_empty());
    }
}

//! A batch on its way to the device: its copies are queued, and the memory that they read and write is kept until they are done.
#![expect(
    unsafe_code,
    reason = "copies run beside the host, from memory and to tensors that are kept until they are done"
)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::{Busy, Outgoing, PIECE, PIECES, Ring, lock};
use crate::device::copier::{Copier, Event, Stream};
use crate::error::{Error, Result};

/// Marks around copies that follow each other.
type Copies = Vec<(Event, Event)>;

/// How far the copies of columns without a place are queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Not at all: filling pieces takes time, and a loop that has a step to launch has none.
    Later,
    /// Only through pieces that are not read by a copy that still waits for kernels.
    Free,
    /// All of them, even if that takes waiting for kernels.
    All,
}

/// What became of a batch's copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    All,
    /// Columns without a place are left.
    InPart,
    /// There are no tensors for it yet.
    Nothing,
}

/// A batch whose copies are being queued: those of what lies in its slot all at once, those of other columns piece by piece, as pieces become free.
///
/// If it is dropped before [`finish`](Self::finish), it waits until the device does nothing more with its memory.
pub(super) struct Queueing {
    ring: Arc<Ring>,
    outgoing: Vec<Outgoing>,
    /// The columns' tensors, each of which is here before anything is copied to it.
    tensors: Vec<tch::Tensor>,
    /// Marks around the copies that are queued, and before those that follow; `None` if one could not be made.
    marks: Option<(Copies, Event)>,
    /// Columns without a place, by their number in `outgoing`, and what they are copied to.
    left: VecDeque<(usize, tch::Tensor)>,
    /// Bytes of the first of these columns whose copies are queued.
    at: usize,
    /// The event after what may still use the memory of those tensors.
    allocated: Option<Event>,
}

impl Queueing {
    /// Queues the copies of what lies in the slot.
    fn begin(ring: &Arc<Ring>, outgoing: Vec<Outgoing>, destination: &Destination) -> Result<Self> {
        let (tensors, left) = (Vec::with_capacity(outgoing.len()), VecDeque::new());
        let mut queueing = Self { ring: ring.clone(), outgoing, tensors, marks: None, left, at: 0, allocated: None };
        queueing.copy_slot(destination)?;
        Ok(queueing)
    }

    fn copy_slot(&mut self, destination: &Destination) -> Result<()> {
        let (copier, layout) = (&self.ring.copier, self.ring.layout());
        copier.wait(Stream::Copy, &destination.ready)?;
        self.marks = copier.mark(Stream::Copy).ok().map(|begun| (Vec::new(), begun));
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
            let copied = copier.mark(Stream::Copy).ok();
            let allocated = copier.record(Stream::Default)?;
            copier.wait(Stream::Copy, &allocated)?;
            self.allocated = Some(allocated);
            // To wait for kernels is not to copy.
            let begun_again = copier.mark(Stream::Copy).ok();
            let marks = self.marks.take().zip(copied).zip(begun_again);
            self.marks = marks.map(|(((_, begun), copied), begun_again)| (vec![(begun, copied)], begun_again));
        }
        Ok(())
    }

    /// Queues the copies of what lies in no slot, through locked pieces. Returns whether they are all queued.
    fn go_on(&mut self, how: Pieces) -> Result<bool> {
        if self.left.is_empty() || how == Pieces::Later {
            return Ok(self.left.is_empty());
        }
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
                if how == Pieces::Free && !copier.is_done(&kernels)? {
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
            // Without an event the copy is waited for, before another takes the piece.
            let copied = copier.record(Stream::Copy).inspect_err(|_| _ = copier.drain())?;
            pieces.busy[piece] = Some(Busy { kernels, copied });
            pieces.next = (piece + 1) % PIECES;
            self.at += chunk.len();
        }
        Ok(true)
    }

    /// Finishes, after the last copy was queued.
    fn finish(mut self) -> Result<Copying> {
        let copied = self.ring.copier.record(Stream::Copy)?;
        let memories: Vec<_> = std::mem::take(&mut self.outgoing).into_iter().map(|column| column.memory).collect();
        let bytes = memories.iter().map(|memory| memory.bytes().len() as u64).sum();
        let copies = self.marks.take().map(|(mut copies, begun)| {
            copies.push((begun, copied.clone()));
            copies
        });
        lock(&self.ring.under_way).push_back((copied.clone(), memories));
        let (copier, tensors) = (self.ring.copier.clone(), std::mem::take(&mut self.tensors));
        Ok(Copying { copier, tensors, bytes, copies, copied })
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

/// A column's part of a tensor of bytes.
fn view(whole: &tch::Tensor, start: usize, len: usize, column: &Outgoing) -> Result<tch::Tensor> {
    let part = whole.f_narrow(0, start as i64, len as i64);
    let elements = part.and_then(|part| part.f_view_dtype(column.kind));
    elements.and_then(|elements| elements.f_view(column.shape.as_slice())).map_err(|e| {
        Error::new(crate::ErrorKind::Device, format!("no tensor of shape {:?} in {len} bytes", column.shape)).because(e)
    })
}

/// Tensors on the device that a batch will be copied to, one for each group, and the event after what used their memory before.
pub(super) struct Destination {
    pub(super) tensors: Vec<tch::Tensor>,
    pub(super) ready: Event,
}

/// A batch whose copies are queued. Only [`Track::hand_over`] gives its tensors out, and it orders the default stream after the copies. If the batch
/// is dropped before, it waits for its copies, because the memory of tensors is given out again in the order of that stream.
pub(super) struct Copying {
    copier: Arc<dyn Copier>,
    pub(super) tensors: Vec<tch::Tensor>,
    pub(super) bytes: u64,
    pub(super) copies: Option<Copies>,
    pub(super) copied: Event,
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
    pub(super) stage: Mutex<Stage>,
}

pub(super) enum Stage {
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

    /// Whether some of the batch's copies are not queued.
    pub(super) fn is_behind(&self) -> bool {
        matches!(*lock(&self.stage), Stage::OnHost(_) | Stage::Queueing(_))
    }

    /// Queues the batch's copies, once there are tensors for them.
    pub(super) fn go_on(&self, ring: &Arc<Ring>, ready: &Mutex<VecDeque<Result<Destination>>>, how: Pieces) -> Queued {
        let mut stage = lock(&self.stage);
        let queueing = match std::mem::replace(&mut *stage, Stage::Gone) {
            Stage::OnHost(outgoing) => {
                let Some(destination) = lock(ready).pop_front() else {
                    *stage = Stage::OnHost(outgoing);
                    return Queued::Nothing;
                };
                destination.and_then(|destination| Queueing::begin(ring, outgoing, &destination))
            }
            Stage::Queueing(queueing) => Ok(queueing),
            other => {
                *stage = other;
                return Queued::All;
            }
        };
        let gone_on = queueing.and_then(|mut queueing| {
            let is_all = queueing.go_on(how)?;
            if is_all { queueing.finish().map(Stage::Copying) } else { Ok(Stage::Queueing(queueing)) }
        });
        *stage = gone_on.unwrap_or_else(Stage::Failed);
        if matches!(*stage, Stage::Queueing(_)) { Queued::InPart } else { Queued::All }
    }
}

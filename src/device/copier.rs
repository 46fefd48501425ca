//! What a ring needs from a device, as one small trait.
#![expect(unsafe_code, reason = "promises about memory that no type can keep: a device uses it beside the host")]

use std::any::Any;
use std::sync::Arc;

use crate::error::Result;

/// The two queues of a device that matter to a copy. Work queued on one of them runs in order; between the two only events set an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Where libtorch queues its kernels. Its caching allocator gives memory out again in the order of this stream.
    Default,
    /// A separate stream for copies.
    Copy,
}

/// A mark after what was queued on a stream when the event was recorded. It is *done* when all of that is done. What it is made of is up to the
/// copier.
pub(crate) type Event = Arc<dyn Any + Send + Sync>;

/// Page-locked host memory: a device copies from it while the host goes on.
///
/// # Safety
/// `pointer` is the start of as many bytes as were asked for, aligned to 64, valid and reached by nobody else for as long as this lives, wherever it is moved.
pub(crate) unsafe trait Locked: Send + Sync {
    fn pointer(&self) -> *mut u8;
}

/// One device: its memory, streams and events.
///
/// [`Ring`](super::Ring) and [`Track`](super::Track) decide what is called when, from the loop's thread and from workers, several at a time. Nothing
/// here waits for the device, except `synchronize` and `drain`. An error is an error of the device: it is lost, or has no memory left.
pub(crate) trait Copier: Send + Sync {
    /// The number of the CUDA device.
    fn number(&self) -> usize;

    /// Locks memory. Called while a ring is built, and never after.
    fn lock(&self, len: usize) -> Result<Box<dyn Locked>>;

    /// Allocates a tensor `u8 [len]` of arbitrary content, in the order of the default stream: work queued there may still use its memory.
    fn allocate(&self, len: usize) -> Result<tch::Tensor>;

    /// Records an event. An event of the copy stream is a mark too.
    fn record(&self, stream: Stream) -> Result<Event>;

    /// Records an event that knows when it was done, and orders nothing.
    fn mark(&self, stream: Stream) -> Result<Event>;

    /// Returns the seconds from one mark to another, which may be the earlier one. Both are done.
    fn seconds(&self, from: &Event, to: &Event) -> Result<f64>;

    /// Makes everything queued on `stream` from now on wait until `event` is done.
    fn wait(&self, stream: Stream, event: &Event) -> Result<()>;

    /// Queues a copy of `len` bytes to the start of `to`, on the copy stream.
    ///
    /// # Safety
    /// Until an event recorded on the copy stream after the copy is done, the bytes at `from` stay valid and are not written, and `to` is not freed.
    unsafe fn copy(&self, from: *const u8, to: &tch::Tensor, len: usize) -> Result<()>;

    fn is_done(&self, event: &Event) -> Result<bool>;

    /// Waits until `event` is done.
    fn synchronize(&self, event: &Event) -> Result<()>;

    /// Waits until the copy stream has nothing to do.
    fn drain(&self) -> Result<()>;
}

//! A device in host memory for tests: two streams that run when they like, and an allocator that gives memory out again at once, as libtorch's does.
//!
//! Whatever no event orders happens in any order: a copy that does not wait overwrites what a kernel still reads, and a slot that is used again too
//! early arrives with the next batch's bytes. Kernels of tests look at memory when they run, not when they are queued.
#![cfg(test)]
#![expect(unsafe_code, reason = "a model of a device, which moves bytes behind the types' back")]
#![expect(clippy::disallowed_methods, reason = "its streams have a thread")]

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng as _;

use super::copier::{Copier, Event, Locked, Stream};
use crate::batch::buffer::torch::tensor_over;
use crate::engine::memory::Memory;
use crate::error::{Error, ErrorKind, Result};
use crate::random::{Key, Rng};
use crate::schema::Dtype;

/// A call of the trait that is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Lock,
    Allocate,
    Record,
    /// Marks, which order nothing.
    Mark,
    Wait,
    Copy,
    /// All calls from then on, and waiting too.
    All,
}

/// The emulated device.
pub(crate) struct Emulated {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is queued, by stream.
    queues: [VecDeque<Op>; 2],
    /// When each event was done.
    done: Vec<Option<Instant>>,
    /// Memory of tensors that were dropped; the last dropped is given out first.
    free: Vec<Memory>,
    log: Vec<String>,
    /// How many calls succeed before one fails.
    fault: Option<(Call, usize)>,
    lost: bool,
    stopped: bool,
    /// Whether an operation that was taken off its queue is running.
    running: bool,
    locked: usize,
    /// Bytes of tensors and locked memory that live.
    live: usize,
}

enum Op {
    Record(usize),
    Wait(usize),
    Copy { from: usize, to: usize, len: usize },
    Kernel(Box<dyn FnOnce() + Send>),
}

impl Emulated {
    /// `pause`: the longest time that the device stands still between two operations.
    pub(crate) fn new(seed: u64, pause: Duration) -> Arc<Self> {
        let shared = Arc::<Shared>::default();
        let device = shared.clone();
        let thread = std::thread::spawn(move || device.run(&mut Key::new(seed).rng(), pause));
        Arc::new(Self { shared, thread: Some(thread) })
    }

    /// Makes the `nth` call of this kind from now on fail.
    pub(crate) fn fail(&self, call: Call, nth: usize) {
        self.shared.lock().fault = Some((call, nth));
    }

    /// Queues a kernel, on the default stream.
    pub(crate) fn launch(&self, kernel: impl FnOnce() + Send + 'static) {
        self.shared.push(Stream::Default, Op::Kernel(Box::new(kernel)));
    }

    fn record_as(&self, what: &str, stream: Stream) -> Result<Event> {
        let event = {
            let mut state = self.shared.lock();
            state.done.push(None);
            state.done.len() - 1
        };
        let call = if what == "mark" { Call::Mark } else { Call::Record };
        self.shared.call(call, format!("{what} {event} on {stream:?}"))?;
        self.shared.push(stream, Op::Record(event));
        Ok(Arc::new(event))
    }

    /// Waits until the device has nothing to do.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.lock();
        while state.running || state.queues.iter().any(|queue| !queue.is_empty()) {
            state = self.shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Returns the calls so far. Events are numbered as they are recorded.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.lock().log.clone()
    }

    /// Whether all tensors and locked memory are given back within some seconds. A worker that ends its task may be the last that holds the ring.
    pub(crate) fn is_given_back(&self) -> bool {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, Duration::from_secs(10), |state| state.live > 0);
        waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.live == 0
    }

    /// Calls of [`Copier::lock`], and the bytes of tensors and locked memory that live.
    pub(crate) fn memory(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.locked, state.live)
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a kernel's assertion failed");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn push(&self, stream: Stream, op: Op) {
        self.lock().queues[stream as usize].push_back(op);
        self.changed.notify_all();
    }

    /// Notes a call, and fails it if it is to fail.
    fn call(&self, call: Call, text: String) -> Result<()> {
        let mut state = self.lock();
        state.log.push(text);
        if let Some((wanted, left)) = &mut state.fault
            && (*wanted == call || *wanted == Call::All)
        {
            if *left == 0 {
                state.lost |= state.fault.take().is_some_and(|(call, _)| call == Call::All);
                return Err(Error::new(ErrorKind::Device, "the emulated device has a fault"));
            }
            *left -= 1;
        }
        state.ask()
    }

    /// Runs what is queued, in an order that only events restrict.
    fn run(&self, rng: &mut Rng, pause: Duration) {
        let mut state = self.lock();
        // A stream may stand still for a while, so that the other runs far ahead of it.
        let mut stands = [Instant::now(); 2];
        loop {
            let ready: Vec<usize> = (0..2)
                .filter(|&stream| match state.queues[stream].front() {
                    Some(Op::Wait(event)) => state.done[*event].is_some(),
                    front => front.is_some(),
                })
                .collect();
            if ready.is_empty() || state.lost {
                if state.stopped || state.lost {
                    // A device that is lost does nothing more.
                    state.queues.iter_mut().for_each(VecDeque::clear);
                    self.changed.notify_all();
                    if state.stopped {
                        return;
                    }
                }
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            let now = Instant::now();
            let moving: Vec<usize> = ready.iter().copied().filter(|&stream| stands[stream] <= now).collect();
            if moving.is_empty() {
                let soonest = ready.iter().map(|&stream| stands[stream] - now).min().unwrap_or_default();
                let waited = self.changed.wait_timeout(state, soonest);
                state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                continue;
            }
            let stream = moving[rng.random_range(0..moving.len())];
            if rng.random_bool(0.05) {
                stands[stream] = now + (pause * 50).mul_f64(rng.random::<f64>());
            }
            let op = state.queues[stream].pop_front().expect("it is ready");
            // While an operation runs the stream's next one must not; the queue is this thread's alone.
            state.running = true;
            drop(state);
            if !pause.is_zero() {
                std::thread::sleep(pause.mul_f64(rng.random::<f64>()));
            }
            let mut recorded = None;
            match op {
                Op::Record(event) => recorded = Some(event),
                Op::Wait(_) => {}
                // SAFETY: `Copier::copy` was promised that both ends stay until this is done. Memory is never returned to the system
                // while the device lives, so a promise that was broken shows as wrong bytes.
                Op::Copy { from, to, len } => unsafe {
                    std::ptr::copy(from as *const u8, to as *mut u8, len);
                },
                Op::Kernel(kernel) => kernel(),
            }
            state = self.lock();
            state.running = false;
            if let Some(event) = recorded {
                state.done[event] = Some(Instant::now());
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    fn ask(&self) -> Result<()> {
        if self.lost { Err(Error::new(ErrorKind::Device, "the emulated device is lost")) } else { Ok(()) }
    }
}

/// Memory of the device, or locked memory of the host; it returns to the free list.
struct Block {
    shared: Arc<Shared>,
    memory: Option<Memory>,
    len: usize,
}

impl Block {
    fn new(shared: &Arc<Shared>, len: usize) -> Self {
        let mut state = shared.lock();
        state.live += len;
        let fits = |memory: &Memory| memory.capacity() == len.next_multiple_of(256);
        let again = state.free.iter().rposition(fits).map(|at| state.free.remove(at));
        let memory = again.unwrap_or_else(|| Memory::new(len.next_multiple_of(256)));
        Self { shared: shared.clone(), memory: Some(memory), len }
    }

    fn pointer(&self) -> *mut u8 {
        self.memory.as_ref().unwrap().pointer()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.live -= self.len;
        state.free.extend(self.memory.take());
        self.shared.changed.notify_all();
    }
}

// SAFETY: `Memory` stays where it is, and is in one block at a time. (It is aligned to 64, which is enough here.)
unsafe impl Locked for Block {
    fn pointer(&self) -> *mut u8 {
        self.pointer()
    }
}

fn number(event: &Event) -> usize {
    *event.downcast_ref::<usize>().unwrap()
}

impl Copier for Emulated {
    fn number(&self) -> usize {
        0
    }

    fn lock(&self, len: usize) -> Result<Box<dyn Locked>> {
        self.shared.call(Call::Lock, format!("lock {len}"))?;
        self.shared.lock().locked += 1;
        Ok(Box::new(Block::new(&self.shared, len)))
    }

    fn allocate(&self, len: usize) -> Result<tch::Tensor> {
        self.shared.call(Call::Allocate, format!("allocate {len}"))?;
        let block = Block::new(&self.shared, len);
        // SAFETY: the block has `len` bytes, which are its own while it lives.
        unsafe { tensor_over(block.pointer(), Dtype::U8, &[len], Box::new(block)) }
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        self.record_as("record", stream)
    }

    fn mark(&self, stream: Stream) -> Result<Event> {
        self.record_as("mark", stream)
    }

    fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
        let state = self.shared.lock();
        let [from, to] = [from, to].map(|event| state.done[number(event)].expect("asked of events that are done"));
        Ok(to.saturating_duration_since(from).as_secs_f64() - from.saturating_duration_since(to).as_secs_f64())
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        self.shared.call(Call::Wait, format!("{stream:?} waits for {}", number(event)))?;
        self.shared.push(stream, Op::Wait(number(event)));
        Ok(())
    }

    unsafe fn copy(&self, from: *const u8, to: &tch::Tensor, len: usize) -> Result<()> {
        self.shared.call(Call::Copy, format!("copy {len}"))?;
        assert!(len <= to.numel());
        self.shared.push(Stream::Copy, Op::Copy { from: from as usize, to: to.data_ptr() as usize, len });
        Ok(())
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        let state = self.shared.lock();
        state.ask().map(|()| state.done[number(event)].is_some())
    }

    fn synchronize(&self, event: &Event) -> Result<()> {
        let mut state = self.shared.lock();
        while state.done[number(event)].is_none() {
            state.ask()?;
            state = self.shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.ask()
    }

    fn drain(&self) -> Result<()> {
        let mut state = self.shared.lock();
        while state.running || !state.queues[Stream::Copy as usize].is_empty() {
            state.ask()?;
            state = self.shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.ask()
    }
}

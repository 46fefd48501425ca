//! A model of the CUDA driver for the tests of `src/device/cuda.rs`, which compile it with `rustc` and load it in place of `libcuda.so`.
//!
//! It has the calls that `cuda.rs` makes, and is strict where the driver may be kind: handles must be alive, a context must be current on the calling thread,
//! copies must read memory that is locked. What is wrong is kept, and `model_report` tells it. Copies are made by a thread, and `model_hold` holds them back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const INVALID_DEVICE: c_int = 101;
const NOT_READY: c_int = 600;

/// The one context, and the default stream in it.
const CONTEXT: usize = 0x10;
const DEFAULT: usize = 0;

#[derive(Default)]
struct Model {
    retained: i64,
    next: usize,
    /// What is queued on each stream.
    streams: BTreeMap<usize, VecDeque<Op>>,
    /// Whether what was recorded last is done, by event.
    events: BTreeMap<usize, bool>,
    /// Their flags, and when each was done last.
    flags: BTreeMap<usize, c_uint>,
    times: BTreeMap<usize, Instant>,
    /// Events that were destroyed while something waits for them or is to record them.
    doomed: BTreeSet<usize>,
    locked: BTreeMap<usize, usize>,
    busy: bool,
    /// Whether copies wait.
    hold: bool,
    wrong: Vec<String>,
    copies: usize,
}

enum Op {
    Record(usize),
    Wait(usize),
    Copy { from: usize, to: usize, len: usize },
}

static MODEL: OnceLock<(Mutex<Model>, Condvar)> = OnceLock::new();

thread_local! {
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn model() -> &'static (Mutex<Model>, Condvar) {
    MODEL.get_or_init(|| {
        std::thread::spawn(run);
        let model = Model { next: 0x100, streams: [(DEFAULT, VecDeque::new())].into(), ..Model::default() };
        (Mutex::new(model), Condvar::new())
    })
}

fn lock() -> MutexGuard<'static, Model> {
    model().0.lock().unwrap()
}

fn has_context(what: &str) -> bool {
    let current = CURRENT.with_borrow(|stack| stack.last() == Some(&CONTEXT));
    if !current {
        lock().wrong.push(format!("{what} without a current context"));
    }
    current
}

/// Notes what is wrong.
fn wrong(what: String) -> c_int {
    lock().wrong.push(what);
    INVALID_VALUE
}

/// Runs the streams.
fn run() {
    let (mutex, changed) = model();
    let mut model = mutex.lock().unwrap();
    loop {
        let (events, hold) = (&model.events, model.hold);
        let ready = model.streams.iter().find_map(|(&stream, queue)| match queue.front()? {
            Op::Wait(event) if !events.get(event).copied().unwrap_or(true) => None,
            Op::Copy { .. } if hold => None,
            _ => Some(stream),
        });
        let Some(stream) = ready else {
            model = changed.wait(model).unwrap();
            continue;
        };
        let op = model.streams.get_mut(&stream).and_then(VecDeque::pop_front).unwrap();
        match op {
            Op::Wait(_) => {}
            Op::Record(event) => {
                model.events.insert(event, true);
                model.times.insert(event, Instant::now());
                if model.doomed.remove(&event) {
                    model.events.remove(&event);
                }
            }
            Op::Copy { from, to, len } => {
                model.busy = true;
                drop(model);
                // Others run first where they can.
                std::thread::yield_now();
                model = mutex.lock().unwrap();
                let inside = |(&start, &bytes): (&usize, &usize)| start <= from && from + len <= start + bytes;
                if model.locked.range(..=from).next_back().is_some_and(inside) {
                    // The memory is locked, so it is there; `to` is a tensor that the test keeps.
                    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) };
                    model.copies += 1;
                } else {
                    model.wrong.push(format!("a copy of {len} bytes reads memory that is not locked"));
                }
                model.busy = false;
            }
        }
        changed.notify_all();
    }
}

#[no_mangle]
pub extern "C" fn cuInit(flags: c_uint) -> c_int {
    if flags == 0 { SUCCESS } else { wrong("cuInit with flags".into()) }
}

#[no_mangle]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    unsafe { *version = 13_000 };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    unsafe { *count = 1 };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    if ordinal != 0 {
        return INVALID_DEVICE;
    }
    unsafe { *device = 7 };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    if (attribute, device) != (134, 7) {
        return wrong(format!("attribute {attribute} of device {device}"));
    }
    unsafe { *value = 0 };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> c_int {
    if device != 7 {
        return wrong(format!("the context of device {device}"));
    }
    lock().retained += 1;
    unsafe { *context = CONTEXT };
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    let mut model = lock();
    model.retained -= 1;
    if device != 7 || model.retained < 0 {
        model.wrong.push("a context is released that was not retained".into());
    }
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuCtxPushCurrent_v2(context: usize) -> c_int {
    if context != CONTEXT || lock().retained == 0 {
        return wrong("a context is pushed that is not there".into());
    }
    CURRENT.with_borrow_mut(|stack| stack.push(context));
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut usize) -> c_int {
    let Some(popped) = CURRENT.with_borrow_mut(Vec::pop) else { return wrong("nothing to pop".into()) };
    unsafe { *context = popped };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> c_int {
    if !has_context("cuStreamCreate") || flags != 1 {
        return wrong(format!("a stream with flags {flags}"));
    }
    let mut model = lock();
    model.next += 1;
    let new = model.next;
    model.streams.insert(new, VecDeque::new());
    unsafe { *stream = new };
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> c_int {
    has_context("cuStreamDestroy");
    let mut model = lock();
    if stream == DEFAULT || model.streams.remove(&stream).is_none_or(|queue| !queue.is_empty()) {
        model.wrong.push("a stream is destroyed that is not there, or has work".into());
    }
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> c_int {
    has_context("cuStreamSynchronize");
    let (mutex, changed) = model();
    let mut model = mutex.lock().unwrap();
    while model.busy || model.streams.get(&stream).is_some_and(|queue| !queue.is_empty()) {
        model = changed.wait(model).unwrap();
    }
    SUCCESS
}

fn queue(stream: usize, op: Op) -> c_int {
    let mut model = lock();
    let Some(queue) = model.streams.get_mut(&stream) else {
        model.wrong.push(format!("work for a stream {stream:#x} that is not there"));
        return INVALID_VALUE;
    };
    queue.push_back(op);
    drop(model);
    self::model().1.notify_all();
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> c_int {
    has_context("cuStreamWaitEvent");
    if flags != 0 || !lock().events.contains_key(&event) {
        return wrong(format!("a wait for an event {event:#x} that is not there"));
    }
    queue(stream, Op::Wait(event))
}

#[no_mangle]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, flags: c_uint) -> c_int {
    if !has_context("cuEventCreate") || flags > 3 {
        return wrong(format!("an event with flags {flags}"));
    }
    let mut model = lock();
    model.next += 1;
    let new = model.next;
    // An event that was never recorded is done.
    model.events.insert(new, true);
    model.flags.insert(new, flags);
    unsafe { *event = new };
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> c_int {
    has_context("cuEventRecord");
    if lock().events.insert(event, false).is_none() {
        return wrong(format!("an event {event:#x} is recorded that is not there"));
    }
    queue(stream, Op::Record(event))
}

#[no_mangle]
pub extern "C" fn cuEventQuery(event: usize) -> c_int {
    has_context("cuEventQuery");
    match lock().events.get(&event) {
        Some(true) => SUCCESS,
        Some(false) => NOT_READY,
        None => INVALID_VALUE,
    }
}

#[no_mangle]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: usize, to: usize) -> c_int {
    has_context("cuEventElapsedTime");
    let mut model = lock();
    let known = |event| model.flags.get(&event).is_some_and(|flags| flags & 2 == 0).then(|| model.times.get(&event));
    match (known(from), known(to)) {
        (Some(Some(&from)), Some(Some(&to))) => {
            let later = to.saturating_duration_since(from).as_secs_f32() - from.saturating_duration_since(to).as_secs_f32();
            unsafe { *milliseconds = later * 1e3 };
            SUCCESS
        }
        (Some(_), Some(_)) => NOT_READY,
        _ => {
            model.wrong.push("the time of events that measure none".into());
            INVALID_VALUE
        }
    }
}

#[no_mangle]
pub extern "C" fn cuEventSynchronize(event: usize) -> c_int {
    has_context("cuEventSynchronize");
    let (mutex, changed) = model();
    let mut model = mutex.lock().unwrap();
    if model.flags.get(&event).is_some_and(|flags| flags & 1 == 0) {
        model.wrong.push("a host spins until an event is done".into());
    }
    loop {
        match model.events.get(&event) {
            Some(true) => return SUCCESS,
            Some(false) => model = changed.wait(model).unwrap(),
            None => return INVALID_VALUE,
        }
    }
}

#[no_mangle]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> c_int {
    has_context("cuEventDestroy");
    let mut model = lock();
    match model.events.get(&event) {
        Some(true) => _ = model.events.remove(&event),
        Some(false) => _ = model.doomed.insert(event),
        None => model.wrong.push(format!("an event {event:#x} is destroyed twice")),
    }
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    if !has_context("cuMemHostAlloc") || flags != 1 || bytes == 0 {
        return wrong(format!("{bytes} bytes with flags {flags}"));
    }
    if bytes > 1 << 40 {
        return OUT_OF_MEMORY;
    }
    let pages = vec![0u8; bytes.next_multiple_of(4096) + 4096].leak().as_mut_ptr();
    let start = (pages as usize).next_multiple_of(4096);
    lock().locked.insert(start, bytes);
    unsafe { *memory = start as *mut c_void };
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuMemFreeHost(memory: usize) -> c_int {
    has_context("cuMemFreeHost");
    let mut model = lock();
    if model.locked.remove(&memory).is_none() {
        model.wrong.push("memory is freed that was not locked".into());
    }
    SUCCESS
}

#[no_mangle]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: usize, from: usize, len: usize, stream: usize) -> c_int {
    has_context("cuMemcpyHtoDAsync");
    if stream == DEFAULT || len == 0 {
        return wrong(format!("a copy of {len} bytes on stream {stream:#x}"));
    }
    queue(stream, Op::Copy { from, to, len })
}

#[no_mangle]
pub unsafe extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int {
    let name = match error {
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        _ => c"CUDA_ERROR_OF_SOME_KIND",
    };
    unsafe { *text = name.as_ptr() };
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn cuGetErrorString(_error: c_int, text: *mut *const c_char) -> c_int {
    unsafe { *text = c"so says the model".as_ptr() };
    SUCCESS
}

/// Holds copies back, or lets them go.
#[no_mangle]
pub extern "C" fn model_hold(hold: bool) {
    lock().hold = hold;
    model().1.notify_all();
}

/// Contexts retained, streams beside the default one, events and locked pieces that live, copies made; and what was wrong, a line each, into `text`.
#[no_mangle]
pub unsafe extern "C" fn model_report(counts: *mut usize, text: *mut u8, capacity: usize) -> usize {
    let model = lock();
    let live =
        [model.retained as usize, model.streams.len() - 1, model.events.len(), model.locked.len(), model.copies];
    let lines = model.wrong.join("\n");
    let len = lines.len().min(capacity);
    unsafe {
        std::ptr::copy_nonoverlapping(live.as_ptr(), counts, live.len());
        std::ptr::copy_nonoverlapping(lines.as_ptr(), text, len);
    }
    len
}

//! CUDA devices: libtorch's CUDA part, loaded at run time so that one binary serves machines with and without a GPU, and the driver's calls behind
//! [`Copier`].
#![expect(unsafe_code, reason = "a shared library that is loaded, and the calls of the CUDA driver")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUevent_flags, CUresult, CUstream_flags};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::copier::{Copier, Event, Locked, Stream};
use crate::error::{Error, ErrorKind, Result};

static LOADED: OnceLock<Result<()>> = OnceLock::new();

/// Makes libtorch's CUDA devices available, if libtorch was built with CUDA and a driver is there.
///
/// libtorch looks for CUDA once, when it is first asked, and remembers the answer. The linker leaves `libtorch_cuda.so` out because no symbol refers
/// to it. So call this function (or [`Device::cuda_if_available`](crate::Device::cuda_if_available), which does) before anything else asks `tch`
/// about CUDA. Later calls cost nothing.
///
/// # Errors
/// [`ErrorKind::Device`] if `libtorch_cuda.so` cannot be loaded (a CPU libtorch has none); if there is no driver, one older than libtorch's CUDA
/// needs, or no device; or if `tch` was asked about CUDA before.
pub fn init_cuda() -> Result<()> {
    LOADED.get_or_init(load).clone()
}

fn load() -> Result<()> {
    // SAFETY: libtorch_cuda.so is a part of the libtorch that this process already runs; its initialisers register kernels
    // and do nothing else. It is never unloaded: the handle is leaked below.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            if tch::utils::has_cuda() { Ok(()) } else { Err(why_not()) }
        }
        Err(error) => Err(Error::new(ErrorKind::Device, "libtorch_cuda.so cannot be loaded").because(error).advice(
            "use a libtorch with CUDA and put its lib folder on LD_LIBRARY_PATH; a CPU libtorch has no such file",
        )),
    }
}

/// Why libtorch finds no CUDA although its CUDA part is loaded.
fn why_not() -> Error {
    let mut count = 0;
    let driver = find_driver().and_then(|()| {
        // SAFETY: the pointer is to an int, which is written.
        let counted = unsafe { sys::cuDeviceGetCount(&raw mut count) };
        check("CUDA", counted, "count its devices")
    });
    match driver {
        Err(error) => error,
        Ok(()) if count == 0 => Error::new(ErrorKind::Device, "CUDA's driver sees no device")
            .advice("look at what nvidia-smi says, and at CUDA_VISIBLE_DEVICES"),
        Ok(()) => what_the_runtime_says().unwrap_or_else(|| {
            Error::new(ErrorKind::Device, "libtorch was asked about CUDA before its CUDA part was loaded")
                .advice("call forebay::init_cuda() first thing in main(), before anything else asks tch about CUDA")
        }),
    }
}

/// What CUDA's runtime, which libtorch brings, finds wrong with a driver that sees devices; mostly that the driver is too old.
fn what_the_runtime_says() -> Option<Error> {
    type AskInt = unsafe extern "C" fn(*mut c_int) -> c_int;
    type AskText = unsafe extern "C" fn(c_int) -> *const c_char;
    let here = Library::this();
    let ask = |name: &[u8]| {
        let mut answer = 0;
        // SAFETY: the runtime's calls of these names have this type; the pointer is to an int, which is written.
        let code = unsafe { here.get::<AskInt>(name).ok()?(&raw mut answer) };
        Some((code, answer))
    };
    let (code, _) = ask(b"cudaGetDeviceCount\0").filter(|(code, _)| *code != 0)?;
    // SAFETY: the call has this type, takes any number, and gives text that is never freed.
    let text = unsafe { CStr::from_ptr(here.get::<AskText>(b"cudaGetErrorString\0").ok()?(code)) }.to_string_lossy();
    let version = |name| ask(name).map_or(0, |(_, version)| version);
    let (driver, runtime) = (version(b"cudaDriverGetVersion\0"), version(b"cudaRuntimeGetVersion\0"));
    let of = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
    let message = format!("libtorch's CUDA {} finds no device: {text}", of(runtime));
    let error = Error::new(ErrorKind::Device, message);
    Some(match driver {
        _ if driver >= runtime => error.advice("look at what nvidia-smi says, and at CUDA_VISIBLE_DEVICES"),
        0 => error.advice("install NVIDIA's driver again: this one does not say its version"),
        _ => error.advice(format!(
            "NVIDIA's driver is for CUDA {}: install a later one, or a libtorch for an older CUDA",
            of(driver)
        )),
    })
}

/// Loads the driver and starts it.
fn find_driver() -> Result<()> {
    // SAFETY: it opens the driver's library, whose initialisers run in any process that uses CUDA.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::new(ErrorKind::Device, "libcuda.so.1 cannot be loaded").advice(
            "install NVIDIA's driver, or choose Device::Cpu; where LD_LIBRARY_PATH named the driver's folder (in containers often /usr/local/nvidia/lib64), keep it there",
        ));
    }
    // SAFETY: a number in, a number out.
    check("CUDA", unsafe { sys::cuInit(0) }, "start")
}

/// A CUDA device, its primary context (which libtorch uses too), and a stream for copies that waits for nothing but events.
pub(super) struct Cuda {
    driver: Arc<Driver>,
    device: tch::Device,
}

/// What events and locked memory keep alive.
struct Driver {
    index: c_int,
    device: sys::CUdevice,
    context: sys::CUcontext,
    copies: sys::CUstream,
    /// Whether the driver has the call that `seconds` makes: drivers for CUDA 12.8 and later have it.
    tells_time: bool,
}

// SAFETY: a context and a stream of CUDA are handles that any thread may use; each call below makes the context current for its thread.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// Makes the context current on this thread while it lives. Afterwards the previous context is current again.
struct Current<'a> {
    driver: &'a Driver,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: `Driver::enter` pushed a context on this thread, which `Current` cannot leave (a raw context is neither Send nor stored).
        let result = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
        // It fails where the driver is being shut down, at the end of the process.
        debug_assert!(result != CUresult::CUDA_SUCCESS || popped == self.driver.context);
    }
}

impl Driver {
    fn new(index: usize) -> Result<Self> {
        find_driver()?;
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        let (mut device, mut context, mut copies) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are to variables of the types that are written. The context is retained here, and released when the driver is dropped.
        unsafe {
            let who = format!("cuda:{index}");
            check(&who, sys::cuDeviceGet(&raw mut device, index), "find the device")?;
            check(&who, sys::cuDevicePrimaryCtxRetain(&raw mut context, device), "use its context")?;
        }
        let mut version = 0;
        // SAFETY: the pointer is to an int, which is written.
        let known = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        let tells_time = known == CUresult::CUDA_SUCCESS && version >= 12_080;
        let mut driver = Self { index, device, context, copies, tells_time };
        let current = driver.enter()?;
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a stream, which is written.
        driver.check(unsafe { sys::cuStreamCreate(&raw mut copies, flags) }, "make a stream")?;
        drop(current);
        driver.copies = copies;
        Ok(driver)
    }

    fn enter(&self) -> Result<Current<'_>> {
        // SAFETY: the context was retained.
        self.check(unsafe { sys::cuCtxPushCurrent_v2(self.context) }, "use its context")?;
        Ok(Current { driver: self })
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            // The legacy default stream, on which libtorch queues its kernels.
            Stream::Default => std::ptr::null_mut(),
            Stream::Copy => self.copies,
        }
    }

    fn check(&self, result: CUresult, what: &str) -> Result<()> {
        check(&format!("cuda:{}", self.index), result, what)
    }

    /// Records a new event after what is queued on a stream. A host that waits for an event of the copy stream sleeps; none waits for other events.
    fn record(self: &Arc<Self>, stream: Stream, flags: u32) -> Result<Event> {
        let current = self.enter()?;
        let mut event = std::ptr::null_mut();
        let sleeps = if stream == Stream::Copy { CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 } else { 0 };
        // SAFETY: the pointer is written.
        self.check(unsafe { sys::cuEventCreate(&raw mut event, flags | sleeps) }, "make an event")?;
        let made = CudaEvent { driver: self.clone(), event };
        // SAFETY: event and stream are of this context.
        self.check(unsafe { sys::cuEventRecord(event, self.stream(stream)) }, "record an event")?;
        drop(current);
        Ok(Arc::new(made))
    }

    /// The NUMA node that the device is attached to, on machines that have several.
    fn node(&self) -> Option<u32> {
        if !std::path::Path::new("/sys/devices/system/node/node1").exists() {
            return None;
        }
        let mut node = -1;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID;
        // SAFETY: the pointer is to an int, which is written.
        let result = unsafe { sys::cuDeviceGetAttribute(&raw mut node, attribute, self.device) };
        (result == CUresult::CUDA_SUCCESS).then_some(node).and_then(|node| u32::try_from(node).ok())
    }
}

/// The error of a call, if it failed: `who` cannot do `what`.
fn check(who: &str, result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: it writes a pointer to a static string, or null.
        unsafe { get(result, &raw mut text) };
        // SAFETY: as it is not null, it is that string.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    let reason = text(sys::cuGetErrorString).unwrap_or_default();
    let error = Error::new(ErrorKind::Device, format!("{who} cannot {what}: {name}, {reason}")).stage("device");
    Err(match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            error.advice("leave more of the device's memory free: the model, and others on the device, have the rest")
        }
        CUresult::CUDA_ERROR_INVALID_DEVICE | CUresult::CUDA_ERROR_NO_DEVICE => {
            error.advice("choose another device, or Device::cuda_if_available()")
        }
        _ => error.advice("look at what nvidia-smi and dmesg say of the device; a kernel's fault shows here too"),
    })
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        if let Ok(_current) = self.enter()
            && !self.copies.is_null()
        {
            // SAFETY: nothing else uses the stream any more. What is queued on it is finished first.
            unsafe { sys::cuStreamDestroy_v2(self.copies) };
        }
        // SAFETY: it was retained once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Cuda {
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch or the driver does not find the device.
    pub(super) fn new(index: usize) -> Result<Self> {
        init_cuda()?;
        let count = tch::Cuda::device_count();
        if index as i64 >= count {
            return Err(Error::new(
                ErrorKind::Device,
                format!("there is no cuda:{index}: libtorch sees {count} CUDA devices"),
            )
            .advice("choose another device, or Device::cuda_if_available()"));
        }
        Ok(Self { driver: Arc::new(Driver::new(index)?), device: tch::Device::Cuda(index) })
    }
}

/// A CUDA event.
struct CudaEvent {
    driver: Arc<Driver>,
    event: sys::CUevent,
}

// SAFETY: an event is a handle that any thread may use.
unsafe impl Send for CudaEvent {}
// SAFETY: as above.
unsafe impl Sync for CudaEvent {}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(_current) = self.driver.enter() {
            // SAFETY: it was created once. What waits for it goes on to do so: CUDA frees it behind that.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

fn raw(event: &Event) -> sys::CUevent {
    event.downcast_ref::<CudaEvent>().expect("events of this copier").event
}

/// Page-locked memory, which all devices see as such.
struct CudaLocked {
    driver: Arc<Driver>,
    pointer: *mut u8,
}

// SAFETY: plain memory that belongs to its owner.
unsafe impl Send for CudaLocked {}
// SAFETY: as above; nothing is read or written through a shared reference.
unsafe impl Sync for CudaLocked {}

// SAFETY: `cuMemHostAlloc` gives whole pages, which stay until they are freed when this is dropped.
unsafe impl Locked for CudaLocked {
    fn pointer(&self) -> *mut u8 {
        self.pointer
    }
}

impl Drop for CudaLocked {
    fn drop(&mut self) {
        if let Ok(_current) = self.driver.enter() {
            // SAFETY: it was allocated by `cuMemHostAlloc`, and a ring drops it behind the last copy.
            unsafe { sys::cuMemFreeHost(self.pointer.cast()) };
        }
    }
}

impl Copier for Cuda {
    fn number(&self) -> usize {
        self.driver.index.unsigned_abs() as usize
    }

    fn lock(&self, len: usize) -> Result<Box<dyn Locked>> {
        let driver = &self.driver;
        let current = driver.enter()?;
        let mut pointer: *mut c_void = std::ptr::null_mut();
        let allocated = on_node(driver.node(), || {
            // SAFETY: the pointer is written. The memory is freed by `CudaLocked`.
            unsafe { sys::cuMemHostAlloc(&raw mut pointer, len, sys::CU_MEMHOSTALLOC_PORTABLE) }
        });
        driver.check(allocated, &format!("lock {len} bytes of host memory")).map_err(|error| match allocated {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => error.advice(
                "take smaller batches or less prefetch, or give the process more host memory: its container may have a limit",
            ),
            _ => error,
        })?;
        drop(current);
        Ok(Box::new(CudaLocked { driver: driver.clone(), pointer: pointer.cast() }))
    }

    fn allocate(&self, len: usize) -> Result<tch::Tensor> {
        tch::Tensor::f_empty([len as i64], (tch::Kind::Uint8, self.device)).map_err(|e| {
            Error::new(ErrorKind::Device, format!("{len} bytes cannot be allocated on {:?}", self.device))
                .because(e)
                .stage("device")
                .advice("take smaller batches or less prefetch; the model and what it keeps need memory too")
        })
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        let untimed = if stream == Stream::Copy { 0 } else { CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        self.driver.record(stream, untimed)
    }

    fn mark(&self, stream: Stream) -> Result<Event> {
        self.driver.record(stream, 0)
    }

    fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
        let driver = &self.driver;
        if !driver.tells_time {
            return Err(Error::new(ErrorKind::Device, "the driver is older than CUDA 12.8"));
        }
        let _current = driver.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: the events are of this context, the pointer is written, and the driver has the call.
        let result = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, raw(from), raw(to)) };
        driver.check(result, "tell the time between events").map(|()| f64::from(milliseconds) / 1e3)
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        let driver = &self.driver;
        let _current = driver.enter()?;
        // SAFETY: event and stream are of this context.
        driver.check(unsafe { sys::cuStreamWaitEvent(driver.stream(stream), raw(event), 0) }, "wait for an event")
    }

    unsafe fn copy(&self, from: *const u8, to: &tch::Tensor, len: usize) -> Result<()> {
        let driver = &self.driver;
        let _current = driver.enter()?;
        debug_assert!(len <= to.numel(), "tensors of bytes, as large as what is copied");
        let to = to.data_ptr() as sys::CUdeviceptr;
        // SAFETY: the caller keeps both ends until the copy is done; `to` is a tensor on this device.
        driver.check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, driver.copies) }, "queue a copy")
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        let driver = &self.driver;
        let _current = driver.enter()?;
        // SAFETY: the event is of this context.
        match unsafe { sys::cuEventQuery(raw(event)) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => driver.check(result, "copy a batch").map(|()| true),
        }
    }

    fn synchronize(&self, event: &Event) -> Result<()> {
        let driver = &self.driver;
        let _current = driver.enter()?;
        // SAFETY: the event is of this context.
        driver.check(unsafe { sys::cuEventSynchronize(raw(event)) }, "copy a batch")
    }

    fn drain(&self) -> Result<()> {
        let driver = &self.driver;
        let _current = driver.enter()?;
        // SAFETY: the stream is of this context.
        driver.check(unsafe { sys::cuStreamSynchronize(driver.copies) }, "copy a batch")
    }
}

/// Runs `f` with memory taken from a NUMA node, if that is possible.
fn on_node<T>(node: Option<u32>, f: impl FnOnce() -> T) -> T {
    #[cfg(target_os = "linux")]
    if let Some(node) = node.filter(|node| *node < u64::BITS) {
        return match Policy::of_this_thread() {
            Some(before) => {
                Policy::prefer(node).set();
                let result = f();
                before.set();
                result
            }
            None => f(),
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = node;
    f()
}

/// The NUMA nodes from which Linux takes a thread's new memory.
#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    mode: c_int,
    nodes: [u64; Self::WORDS],
}

#[cfg(target_os = "linux")]
impl Policy {
    /// Words of a node mask: as many as any kernel counts.
    const WORDS: usize = 16;
    const BITS: usize = Self::WORDS * u64::BITS as usize;

    fn of_this_thread() -> Option<Self> {
        let mut policy = Self { mode: 0, nodes: [0; Self::WORDS] };
        let address = std::ptr::null::<u8>();
        // SAFETY: a mode and as many bits as is said are written; no address is asked about.
        let code = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut policy.mode,
                &raw mut policy.nodes,
                Self::BITS,
                address,
                0usize,
            )
        };
        (code == 0).then_some(policy)
    }

    fn prefer(node: u32) -> Self {
        let mut nodes = [0; Self::WORDS];
        nodes[0] = 1 << node;
        Self { mode: libc::MPOL_PREFERRED, nodes }
    }

    /// Sets the policy for the calling thread. If the system refuses it, memory comes from where it came before.
    fn set(&self) {
        // Linux counts a bit less than it is told, and takes an empty set for none.
        // SAFETY: as many bits as is said are read.
        unsafe { libc::syscall(libc::SYS_set_mempolicy, self.mode, &raw const self.nodes, Self::BITS) };
    }
}

#[cfg(test)]
mod tests;

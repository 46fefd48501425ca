//! Time as the device sees it: events on the default stream of a GPU, the host's clock where there is none.
#![expect(unsafe_code, reason = "libtorch's crate has no events: these are the driver's")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::Mutex;
use std::time::Instant;

use cudarc::driver::sys::{self, CUresult};
use forebay::Device;

use super::Result;

/// Marks moments between the kernels that are queued.
pub(crate) struct Clock {
    device: Device,
    marks: Vec<Mark>,
}

enum Mark {
    Host(Instant),
    Event(sys::CUevent),
}

fn check(result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(format!("CUDA: {result:?}").into()) }
}

/// The device's primary context, which libtorch uses too: an address, for it is retained for as long as the process lives.
fn context(index: usize) -> Result<usize> {
    static RETAINED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    let mut retained = RETAINED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(context) = retained.get(&index) {
        return Ok(*context);
    }
    let (mut device, mut context) = (0, std::ptr::null_mut());
    // SAFETY: each pointer is to what is written.
    unsafe {
        check(sys::cuInit(0))?;
        check(sys::cuDeviceGet(&raw mut device, i32::try_from(index)?))?;
        check(sys::cuDevicePrimaryCtxRetain(&raw mut context, device))?;
    }
    retained.insert(index, context as usize);
    Ok(context as usize)
}

/// Does something in the device's context.
fn within<T>(index: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut context = context(index)? as sys::CUcontext;
    // SAFETY: the context is never released, and what is pushed is popped.
    unsafe {
        check(sys::cuCtxPushCurrent_v2(context))?;
        let done = f();
        check(sys::cuCtxPopCurrent_v2(&raw mut context))?;
        done
    }
}

impl Clock {
    /// # Errors
    /// A driver that does not have the call that tells time: those for CUDA before 12.8.
    pub(crate) fn new(device: Device) -> Result<Self> {
        if device != Device::Cpu && driver_version()? < 12_080 {
            return Err("the driver is older than CUDA 12.8, and tells no time between events".into());
        }
        Ok(Self { device, marks: Vec::new() })
    }

    /// Marks the moment at which everything queued so far is done.
    pub(crate) fn mark(&mut self) -> Result<()> {
        let Device::Cuda(index) = self.device else {
            self.marks.push(Mark::Host(Instant::now()));
            return Ok(());
        };
        let mut event = std::ptr::null_mut();
        within(index, || {
            // SAFETY: the pointer is written. A null stream is the context's default one.
            unsafe {
                check(sys::cuEventCreate(&raw mut event, 0))?;
                check(sys::cuEventRecord(event, std::ptr::null_mut()))
            }
        })?;
        self.marks.push(Mark::Event(event));
        Ok(())
    }

    /// The share of time between the end of a step and the beginning of the next, once all have passed. Each has a mark at either.
    pub(crate) fn share_between_steps(&self) -> Result<f64> {
        let (mut working, mut waiting) = (0.0, 0.0);
        for (number, lap) in self.laps()?.into_iter().enumerate() {
            *(if number % 2 == 0 { &mut working } else { &mut waiting }) += lap;
        }
        Ok(waiting / (working + waiting))
    }

    /// Seconds from each mark to the next.
    fn laps(&self) -> Result<Vec<f64>> {
        let laps = || self.marks.windows(2).map(lap).collect();
        let Device::Cuda(index) = self.device else { return laps() };
        within(index, || {
            if let Some(Mark::Event(last)) = self.marks.last() {
                // SAFETY: the event was recorded, in this context.
                check(unsafe { sys::cuEventSynchronize(*last) })?;
            }
            laps()
        })
    }
}

/// Seconds between two marks that have passed; events in their context.
fn lap(pair: &[Mark]) -> Result<f64> {
    match pair {
        [Mark::Host(from), Mark::Host(to)] => Ok((*to - *from).as_secs_f64()),
        [Mark::Event(from), Mark::Event(to)] => {
            let mut milliseconds = 0f32;
            // SAFETY: both were recorded, and the pointer is written; `Clock::new` has seen that the driver has the call.
            check(unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, *from, *to) })?;
            Ok(f64::from(milliseconds) / 1e3)
        }
        _ => unreachable!("pairs, of one kind"),
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let Device::Cuda(index) = self.device else { return };
        let destroyed = within(index, || {
            for mark in &self.marks {
                if let Mark::Event(event) = mark {
                    // SAFETY: it was created once.
                    check(unsafe { sys::cuEventDestroy_v2(*event) })?;
                }
            }
            Ok(())
        });
        // What a device that is lost has is no more.
        _ = destroyed;
    }
}

/// Bytes of the device that are in use, by whomever; 0 without a GPU.
pub(crate) fn device_bytes(device: Device) -> Result<u64> {
    let Device::Cuda(index) = device else { return Ok(0) };
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are written.
    within(index, || check(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) }))?;
    Ok((total - free) as u64)
}

/// As CUDA counts it: 12080 is 12.8.
fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the pointer is to an int, which is written.
    check(unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    Ok(version)
}

/// Asks the driver for text about a device.
fn text_of(index: usize, ask: unsafe fn(*mut c_char, c_int, sys::CUdevice) -> CUresult) -> Result<String> {
    let (mut device, mut text) = (0, [0u8; 128]);
    // SAFETY: each pointer is to as much as is said to be written; text ends with a 0, for which there is room.
    unsafe {
        check(sys::cuInit(0))?;
        check(sys::cuDeviceGet(&raw mut device, i32::try_from(index)?))?;
        check(ask(text.as_mut_ptr().cast(), 127, device))?;
    }
    Ok(CStr::from_bytes_until_nul(&text)?.to_string_lossy().into_owned())
}

/// What the device is called, and what its driver is for.
pub(crate) fn describe(device: Device) -> Result<String> {
    let Device::Cuda(index) = device else { return Ok("the CPU, a rehearsal".into()) };
    let (name, version) = (text_of(index, sys::cuDeviceGetName)?, driver_version()?);
    Ok(format!("{name}, driver for CUDA {}.{}", version / 1000, version % 1000 / 10))
}

/// Where the GPU is on the bus, as Linux writes it: `0000:1b:00.0`.
pub(crate) fn pci_address(device: Device) -> Option<String> {
    let Device::Cuda(index) = device else { return None };
    text_of(index, sys::cuDeviceGetPCIBusId).ok().map(|address| address.to_lowercase())
}

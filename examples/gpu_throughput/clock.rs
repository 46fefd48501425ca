//! Time as the device sees it: events on the default stream of a GPU, the host's clock where there is none.
#![expect(unsafe_code, reason = "libtorch's crate has no events: these are the driver's")]

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

/// Does something in the device's primary context, which libtorch uses too. It is retained once more each time, for as long as the process lives.
fn within<T>(index: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let (mut device, mut context) = (0, std::ptr::null_mut());
    // SAFETY: each pointer is to what is written, and what is pushed is popped.
    unsafe {
        check(sys::cuDeviceGet(&raw mut device, i32::try_from(index)?))?;
        check(sys::cuDevicePrimaryCtxRetain(&raw mut context, device))?;
        check(sys::cuCtxPushCurrent_v2(context))?;
        let done = f();
        check(sys::cuCtxPopCurrent_v2(&raw mut context))?;
        done
    }
}

impl Clock {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, marks: Vec::new() }
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

    /// The share of time between steps, each of which has a mark where it begins and one where it ends, once all of them have passed.
    pub(crate) fn idle_share(&self) -> Result<f64> {
        let (mut working, mut waiting) = (0.0, 0.0);
        for (number, lap) in self.laps()?.into_iter().enumerate() {
            *(if number % 2 == 0 { &mut working } else { &mut waiting }) += lap;
        }
        Ok(waiting / (working + waiting))
    }

    /// Seconds from each mark to the next.
    fn laps(&self) -> Result<Vec<f64>> {
        if let Some(Mark::Event(last)) = self.marks.last() {
            // SAFETY: the event was recorded.
            check(unsafe { sys::cuEventSynchronize(*last) })?;
        }
        self.marks
            .windows(2)
            .map(|pair| match pair {
                [Mark::Host(from), Mark::Host(to)] => Ok((*to - *from).as_secs_f64()),
                [Mark::Event(from), Mark::Event(to)] => {
                    let mut milliseconds = 0f32;
                    // SAFETY: both events were recorded, and have passed, for the last has.
                    check(unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, *from, *to) })?;
                    Ok(f64::from(milliseconds) / 1e3)
                }
                _ => unreachable!("marks are of one kind"),
            })
            .collect()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        for mark in &self.marks {
            if let Mark::Event(event) = mark {
                // SAFETY: it was created once.
                unsafe { sys::cuEventDestroy_v2(*event) };
            }
        }
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

/// What the device is called, and its driver's version.
pub(crate) fn describe(device: Device) -> Result<String> {
    let Device::Cuda(index) = device else { return Ok("the CPU, a rehearsal".into()) };
    let (mut cuda, mut version, mut name) = (0, 0, [0; 128]);
    // SAFETY: the device is there, and each pointer is to as much as is written.
    unsafe {
        check(sys::cuInit(0))?;
        check(sys::cuDeviceGet(&raw mut cuda, i32::try_from(index)?))?;
        check(sys::cuDeviceGetName(name.as_mut_ptr(), 127, cuda))?;
        check(sys::cuDriverGetVersion(&raw mut version))?;
    }
    let name: String = name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8 as char).collect();
    Ok(format!("{name}, driver for CUDA {}.{}", version / 1000, version % 1000 / 10))
}

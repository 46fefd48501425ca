//! Loading libtorch's CUDA part at run time, so that one binary serves machines with and without a GPU.
#![expect(unsafe_code, reason = "loading a shared library runs its initialisers")]

use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, ErrorKind, Result};

static LOADED: OnceLock<Result<()>> = OnceLock::new();

/// Makes libtorch's CUDA devices available, if libtorch was built with CUDA and a driver is there.
///
/// libtorch looks for CUDA once, at the first question, and remembers the answer; and the linker leaves `libtorch_cuda.so` out
/// because no symbol refers to it. So call this (or [`Device::cuda_if_available`](crate::Device::cuda_if_available), which
/// does) before anything else asks `tch` about CUDA. Later calls cost nothing.
///
/// # Errors
/// [`ErrorKind::Device`] if `libtorch_cuda.so` cannot be loaded (a CPU libtorch has none), or if it was loaded but `tch` had been asked about CUDA before.
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
            if tch::utils::has_cuda() {
                return Ok(());
            }
            Err(Error::new(
                ErrorKind::Device,
                "libtorch was asked about CUDA before its CUDA part was loaded, or finds no driver",
            )
            .advice("call forebay::init_cuda() first thing in main(), and look at what nvidia-smi says"))
        }
        Err(error) => Err(Error::new(ErrorKind::Device, "libtorch_cuda.so cannot be loaded").because(error).advice(
            "use a libtorch with CUDA and put its lib folder on LD_LIBRARY_PATH; a CPU libtorch has no such file",
        )),
    }
}

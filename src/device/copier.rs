//! Host batch to device tensor, behind one small trait.

use std::sync::Arc;

use super::{Delivery, Device};
use crate::error::{Error, ErrorKind, Result};

/// Brings a finished host tensor to where it is wanted.
///
/// Called once for each column of a batch, on whichever worker finished it, so possibly for two batches at once; it may block.
/// The tensor it gets is not shared with anyone. The one it returns can be used on the device's default stream at once.
pub(crate) trait Copier: Send + Sync {
    fn copy(&self, host: tch::Tensor) -> Result<tch::Tensor>;
}

/// The copier for a device.
///
/// # Errors
/// [`ErrorKind::Device`] if there is no such device.
pub(crate) fn copier_for(device: Device) -> Result<Delivery> {
    match device {
        Device::Cpu => Ok(Arc::new(Stay)),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            super::init_cuda()?;
            let count = tch::Cuda::device_count();
            if (index as i64) < count {
                return Ok(Arc::new(Synchronous { device: tch::Device::Cuda(index) }));
            }
            Err(Error::new(ErrorKind::Device, format!("there is no {device}: libtorch sees {count} CUDA devices"))
                .advice("choose another device, or Device::cuda_if_available()"))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(Error::new(ErrorKind::Device, format!("{device} needs the feature `cuda`"))
            .advice("build with it, or choose Device::Cpu")),
    }
}

/// For batches that stay in host memory.
struct Stay;

impl Copier for Stay {
    fn copy(&self, host: tch::Tensor) -> Result<tch::Tensor> {
        Ok(host)
    }
}

/// A copy that is finished when it returns.
#[cfg(feature = "cuda")]
struct Synchronous {
    device: tch::Device,
}

#[cfg(feature = "cuda")]
impl Copier for Synchronous {
    fn copy(&self, host: tch::Tensor) -> Result<tch::Tensor> {
        host.f_to_device(self.device).map_err(|e| {
            Error::new(ErrorKind::Device, format!("copy to {:?} failed", self.device)).because(e).stage("device")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_batch_stays_where_it_is() {
        let host = tch::Tensor::from_slice(&[1i64, 2, 3]);
        let pointer = host.data_ptr();
        let copied = copier_for(Device::Cpu).unwrap().copy(host).unwrap();
        assert_eq!(copied.data_ptr(), pointer);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = copier_for(Device::Cuda(4096)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Device);
    }
}

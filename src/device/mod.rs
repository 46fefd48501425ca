//! Where batches end up: CPU tensors, or the memory of a CUDA device.

#[cfg(feature = "tch")]
mod copier;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
#[cfg(feature = "tch")]
pub(crate) mod emulated;
#[cfg(feature = "tch")]
pub(crate) mod ops;
#[cfg(feature = "tch")]
mod ring;
#[cfg(feature = "tch")]
mod timing;

use std::fmt;

#[cfg(feature = "tch")]
pub(crate) use copier::Copier;
#[cfg(feature = "cuda")]
pub use cuda::init_cuda;
#[cfg(feature = "tch")]
pub use ops::OnDevice;
#[cfg(feature = "tch")]
pub(crate) use ring::{Crossing, HostBytes, Outgoing, Pieces, Ring, Slot, SlotLayout, Track};

use crate::error::Result;
#[cfg(not(all(feature = "tch", feature = "cuda")))]
use crate::error::{Error, ErrorKind};

/// The copier of a device. `None` for batches that stay in host memory.
///
/// # Errors
/// [`ErrorKind::Device`] if there is no such device.
#[cfg(feature = "tch")]
pub(crate) fn copier_for(device: Device) -> Result<Option<std::sync::Arc<dyn Copier>>> {
    match device {
        Device::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Ok(Some(std::sync::Arc::new(cuda::Cuda::new(index)?))),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(Error::new(ErrorKind::Device, format!("{device} needs the feature `cuda`"))
            .advice("build with it, or choose Device::Cpu")),
    }
}

/// Without libtorch there are no devices.
#[cfg(not(feature = "tch"))]
pub(crate) fn refuse_cuda(device: Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(_) => Err(Error::new(ErrorKind::Device, format!("{device} needs the feature `tch`"))
            .advice("build with it, or choose Device::Cpu")),
    }
}

/// Where a loader delivers its batches.
///
/// # Example
/// ```
/// use forebay::Device;
///
/// let device = Device::cuda_if_available();
/// assert!(matches!(device, Device::Cpu | Device::Cuda(0)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// Host memory.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl Device {
    /// Returns the first CUDA device if libtorch finds one, else the CPU.
    ///
    /// It calls `forebay::init_cuda` first, so that libtorch looks with its CUDA part loaded.
    pub fn cuda_if_available() -> Self {
        #[cfg(feature = "cuda")]
        if init_cuda().is_ok() && tch::Cuda::is_available() {
            return Self::Cuda(0);
        }
        Self::Cpu
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(feature = "tch")]
impl From<Device> for tch::Device {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(index) => Self::Cuda(index),
        }
    }
}

/// libtorch's name of a dtype. Byte strings have none and are never asked for.
#[cfg(feature = "tch")]
pub(crate) fn kind_of(dtype: crate::schema::Dtype) -> tch::Kind {
    use crate::schema::Dtype;
    match dtype {
        Dtype::U8 | Dtype::Bytes => tch::Kind::Uint8,
        Dtype::I8 => tch::Kind::Int8,
        Dtype::I16 => tch::Kind::Int16,
        Dtype::I32 => tch::Kind::Int,
        Dtype::I64 => tch::Kind::Int64,
        Dtype::F16 => tch::Kind::Half,
        Dtype::F32 => tch::Kind::Float,
        Dtype::F64 => tch::Kind::Double,
        Dtype::Bool => tch::Kind::Bool,
    }
}

/// libtorch's number of a dtype, as in its `c10/core/ScalarType.h`.
#[cfg(feature = "tch")]
pub(crate) fn scalar_type(dtype: crate::schema::Dtype) -> i32 {
    use crate::schema::Dtype;
    match dtype {
        Dtype::U8 | Dtype::Bytes => 0,
        Dtype::I8 => 1,
        Dtype::I16 => 2,
        Dtype::I32 => 3,
        Dtype::I64 => 4,
        Dtype::F16 => 5,
        Dtype::F32 => 6,
        Dtype::F64 => 7,
        Dtype::Bool => 11,
    }
}

#[cfg(test)]
#[cfg(feature = "tch")]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = copier_for(Device::Cuda(4096)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(copier_for(Device::Cpu).unwrap().is_none());
    }
}

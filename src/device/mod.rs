//! Where batches end up: CPU tensors, or the memory of a CUDA device.

#[cfg(feature = "tch")]
mod copier;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "tch")]
pub(crate) mod ops;

use std::fmt;

#[cfg(all(test, feature = "tch"))]
pub(crate) use copier::Copier;
#[cfg(feature = "tch")]
pub(crate) use copier::copier_for;
#[cfg(feature = "cuda")]
pub use cuda::init_cuda;
#[cfg(feature = "tch")]
pub use ops::OnDevice;

/// What brings the batches of one iterator to their device.
#[cfg(feature = "tch")]
pub(crate) type Delivery = std::sync::Arc<dyn copier::Copier>;

/// Without libtorch batches stay in host memory.
#[cfg(not(feature = "tch"))]
#[derive(Clone)]
pub(crate) struct Delivery;

/// Without libtorch there are no devices.
#[cfg(not(feature = "tch"))]
pub(crate) fn copier_for(device: Device) -> crate::Result<Delivery> {
    match device {
        Device::Cpu => Ok(Delivery),
        Device::Cuda(_) => {
            Err(crate::Error::new(crate::ErrorKind::Device, format!("{device} needs the feature `tch`"))
                .advice("build with it, or choose Device::Cpu"))
        }
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
pub enum Device {
    /// Host memory.
    #[default]
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl Device {
    /// The first CUDA device where libtorch finds one, else the CPU.
    ///
    /// Calls `forebay::init_cuda` first, so that libtorch looks with its CUDA part loaded.
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

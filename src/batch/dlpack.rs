//! Columns of batches for other frameworks, by DLPack: the struct that the frameworks agree on, and who frees the memory that it points to.
//!
//! The layouts are those of DLPack 1.0 (<https://dmlc.github.io/dlpack/latest/c_api.html>), and of the struct without a version, which older
//! consumers take.
#![expect(
    unsafe_code,
    reason = "memory is handed to code that is not Rust, which hands it back through a function pointer"
)]

use std::ffi::c_void;
use std::sync::Arc;

use super::buffer::Buffer;
use super::{Batch, BatchColumn, Data};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Dtype;

/// Kind and number of a device. Kind 1 is host memory, kind 2 the memory of a CUDA device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// `DLDeviceType`.
    pub device_type: i32,
    /// The device's number among those of its kind; 0 for host memory.
    pub device_id: i32,
}

/// Type of an element: its code (0 signed, 1 unsigned, 2 float, 4 bfloat, 6 boolean), its bits, and 1 lane.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// Elements of a vector type; 1 here.
    pub lanes: u16,
}

/// Where the elements are in memory. Valid for as long as the managed tensor that it is a part of.
#[repr(C)]
#[derive(Debug)]
pub struct DLTensor {
    /// The first element; may be null if there is none. Aligned to 64 bytes, as batches are, not to the 256 that DLPack asks for.
    pub data: *mut c_void,
    /// The device that holds the elements.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: DLDataType,
    /// Extents: `ndim` of them.
    pub shape: *mut i64,
    /// Strides: elements from one index to the next in each dimension. There are `ndim` of them, never null.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element: 0 here.
    pub byte_offset: u64,
}

/// The struct without a version, which goes into capsules named `dltensor`.
#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensor {
    /// The tensor.
    pub dl_tensor: DLTensor,
    /// Unused here.
    pub manager_ctx: *mut c_void,
    /// Frees the memory; to be called once, with this struct.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// Version of [`DLManagedTensorVersioned`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLPackVersion {
    /// The major version. A consumer refuses a struct whose major version it does not know.
    pub major: u32,
    /// The minor version, which counts additions.
    pub minor: u32,
}

/// The struct of DLPack 1.x, which goes into capsules named `dltensor_versioned`.
#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensorVersioned {
    /// Version 1.0.
    pub version: DLPackVersion,
    /// Unused here.
    pub manager_ctx: *mut c_void,
    /// Frees the memory; to be called once, with this struct.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// Bit 0: read only; bit 1: a copy. Neither is set.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

const CPU: i32 = 1;
#[cfg(feature = "tch")]
const CUDA: i32 = 2;

const fn data_type(code: u8, bits: u8) -> DLDataType {
    DLDataType { code, bits, lanes: 1 }
}

/// Keeps the memory alive.
enum Owner {
    Buffer(#[expect(dead_code, reason = "held to be dropped")] Arc<Buffer>),
    #[cfg(feature = "tch")]
    Tensor(#[expect(dead_code, reason = "held to be dropped")] tch::Tensor),
}

/// A column of a batch that can be handed to another framework; made by [`Batch::to_dlpack`].
///
/// It keeps the column's memory alive, whatever becomes of the batch. Dropping it releases the memory. After [`into_raw`](Self::into_raw), whoever
/// holds the pointer does so, by its `deleter`.
///
/// # Threads
/// It can be sent to another thread, and the deleter may be called on any thread, once.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # let numbers = arrow::array::Int64Array::from_iter_values(0..6);
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(numbers) as _)])?;
/// let batch = dataset.batch(6).loader().build()?.into_iter().next().expect("six rows")?;
/// let column = batch.to_dlpack("x")?;
/// assert_eq!((column.shape(), column.strides()), (&[6][..], &[1][..]));
///
/// let raw = column.into_raw();
/// drop(batch);
/// // From here on in the consumer, most often behind a PyCapsule named "dltensor_versioned".
/// // SAFETY: the tensor is whole until its deleter is called, which happens here alone.
/// unsafe {
///     let tensor = &(*raw).dl_tensor;
///     assert_eq!(std::slice::from_raw_parts(tensor.data.cast::<i64>(), 6), [0, 1, 2, 3, 4, 5]);
///     (*raw).deleter.expect("there is one")(raw);
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
pub struct ManagedTensor {
    data: *mut c_void,
    device: DLDevice,
    dtype: DLDataType,
    shape: Vec<i64>,
    strides: Vec<i64>,
    _owner: Owner,
}

// SAFETY: the pointer is only read as a number here, and points into the owner's memory, which stays where it is. A tensor may be moved to another
// thread and be dropped there (tch: Tensor is Send), and so may an `Arc` of a `Buffer`, whose memory is Send and Sync.
unsafe impl Send for ManagedTensor {}

impl ManagedTensor {
    fn of(column: &BatchColumn) -> Result<Self> {
        match &column.data {
            Data::Host(buffer) => {
                let shape: Vec<i64> = column.shape.iter().map(|&extent| extent as i64).collect();
                Ok(Self {
                    data: buffer.pointer().cast(),
                    device: DLDevice { device_type: CPU, device_id: 0 },
                    dtype: of_dtype(column.column.dtype()),
                    strides: row_major(&shape),
                    shape,
                    _owner: Owner::Buffer(buffer.clone()),
                })
            }
            #[cfg(feature = "tch")]
            Data::Tensor(tensor) => {
                let (kind, place) = (tensor.kind(), tensor.device());
                let no_type = |what: String| Error::new(ErrorKind::Device, format!("{what} is not exported by DLPack"));
                Ok(Self {
                    data: tensor.data_ptr(),
                    device: of_device(place).ok_or_else(|| no_type(format!("memory of {place:?}")))?,
                    dtype: of_kind(kind).ok_or_else(|| no_type(format!("a tensor of {kind:?}")))?,
                    shape: tensor.size(),
                    strides: tensor.stride(),
                    _owner: Owner::Tensor(tensor.shallow_clone()),
                })
            }
            #[cfg(feature = "tch")]
            Data::OnItsWay => unreachable!("the loop gets batches that have arrived"),
            Data::Bytes(_) => {
                Err(Error::new(ErrorKind::Schema, "byte strings are no tensor, which is what DLPack hands over")
                    .advice("decode the column with .image() or .map(), or read it with Batch::bytes"))
            }
        }
    }

    /// Returns the extents, the number of samples first.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Returns the strides: elements from one index to the next in each dimension.
    pub fn strides(&self) -> &[i64] {
        &self.strides
    }

    /// Returns the type of an element.
    pub fn dtype(&self) -> DLDataType {
        self.dtype
    }

    /// Returns the device that holds the elements.
    pub fn device(&self) -> DLDevice {
        self.device
    }

    fn dl_tensor(&mut self) -> DLTensor {
        DLTensor {
            data: self.data,
            device: self.device,
            ndim: self.shape.len() as i32,
            dtype: self.dtype,
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }

    /// Hands the memory over as DLPack 1.x. Whoever holds the pointer calls its `deleter` with it, once; otherwise the memory is never freed.
    ///
    /// # Safety of what is done with it
    /// The memory is the batch's own. It may be read until the deleter is called. It may be written only while nothing of the batch is read or
    /// written elsewhere: no slice that [`Batch::values`] borrows may be alive, nor may another thread be at work on a tensor or another export of
    /// the column. The surest way is to drop the batch first.
    pub fn into_raw(mut self) -> *mut DLManagedTensorVersioned {
        let managed = DLManagedTensorVersioned {
            version: DLPackVersion { major: 1, minor: 0 },
            manager_ctx: std::ptr::null_mut(),
            deleter: Some(delete::<DLManagedTensorVersioned>),
            flags: 0,
            dl_tensor: self.dl_tensor(),
        };
        Box::into_raw(Box::new(HandedOver { managed, _tensor: self })).cast()
    }

    /// Hands the memory over in the struct without a version, for consumers that know no other, such as NumPy before 2.1. Everything else is as for
    /// [`into_raw`](Self::into_raw).
    pub fn into_raw_unversioned(mut self) -> *mut DLManagedTensor {
        let managed = DLManagedTensor {
            dl_tensor: self.dl_tensor(),
            manager_ctx: std::ptr::null_mut(),
            deleter: Some(delete::<DLManagedTensor>),
        };
        Box::into_raw(Box::new(HandedOver { managed, _tensor: self })).cast()
    }
}

impl std::fmt::Debug for ManagedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, dtype, shape, strides, .. } = self;
        f.debug_struct("ManagedTensor")
            .field("device", device)
            .field("dtype", dtype)
            .field("shape", shape)
            .field("strides", strides)
            .finish_non_exhaustive()
    }
}

/// What the consumer's pointer points to, followed by what keeps its memory alive.
#[repr(C)]
struct HandedOver<M> {
    managed: M,
    _tensor: ManagedTensor,
}

/// Frees what [`ManagedTensor::into_raw`] handed over. Does nothing for null.
///
/// # Safety
/// `managed` was returned by `into_raw` (or by its counterpart for the other struct), and this is the first call with it.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    if !managed.is_null() {
        // SAFETY: the pointer came from a box of `HandedOver<M>`, whose first field, at offset 0 by `repr(C)`, it was cast to; the caller calls once.
        drop(unsafe { Box::from_raw(managed.cast::<HandedOver<M>>()) });
    }
}

fn of_dtype(dtype: Dtype) -> DLDataType {
    match dtype {
        // Byte strings have no buffer; their elements would be these.
        Dtype::U8 | Dtype::Bytes => data_type(1, 8),
        Dtype::I8 => data_type(0, 8),
        Dtype::I16 => data_type(0, 16),
        Dtype::I32 => data_type(0, 32),
        Dtype::I64 => data_type(0, 64),
        Dtype::F16 => data_type(2, 16),
        Dtype::F32 => data_type(2, 32),
        Dtype::F64 => data_type(2, 64),
        Dtype::Bool => data_type(6, 8),
    }
}

#[cfg(feature = "tch")]
fn of_kind(kind: tch::Kind) -> Option<DLDataType> {
    Some(match kind {
        tch::Kind::Uint8 => data_type(1, 8),
        tch::Kind::Int8 => data_type(0, 8),
        tch::Kind::Int16 => data_type(0, 16),
        tch::Kind::Int => data_type(0, 32),
        tch::Kind::Int64 => data_type(0, 64),
        tch::Kind::Half => data_type(2, 16),
        tch::Kind::Float => data_type(2, 32),
        tch::Kind::Double => data_type(2, 64),
        tch::Kind::BFloat16 => data_type(4, 16),
        tch::Kind::Bool => data_type(6, 8),
        _ => return None,
    })
}

#[cfg(feature = "tch")]
fn of_device(device: tch::Device) -> Option<DLDevice> {
    match device {
        tch::Device::Cpu => Some(DLDevice { device_type: CPU, device_id: 0 }),
        tch::Device::Cuda(index) => Some(DLDevice { device_type: CUDA, device_id: index.try_into().ok()? }),
        _ => None,
    }
}

/// Strides in elements of memory without gaps, the last dimension innermost.
fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension].max(1);
    }
    strides
}

impl Batch {
    /// Exports a column to another framework by DLPack: NumPy, PyTorch in Python, JAX, CuPy. It works on the CPU and on CUDA devices, with and
    /// without libtorch.
    ///
    /// # Memory
    /// Nothing is copied. The tensor is the column's own memory and keeps it alive, so the batch may be dropped. A column can be exported any number
    /// of times.
    ///
    /// # Order
    /// On a CUDA device the values are there for work that is queued on the device's default stream after this call. A consumer that works on another
    /// stream first makes that stream wait for the default stream. Before it calls the deleter, it makes the default stream wait for that stream:
    /// freed memory is used again in the order of the default stream.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column, or it holds bytes.
    ///
    /// # Example
    /// See [`ManagedTensor`]; `examples/dlpack.rs` feeds a Python program.
    pub fn to_dlpack(&self, name: &str) -> Result<ManagedTensor> {
        ManagedTensor::of(self.column(name)?).map_err(|error| error.column(name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use arrow::array::{ArrayRef, BinaryViewArray, BooleanArray, FixedSizeListArray, Float32Array, Int64Array};
    use arrow::datatypes::{Field, Float32Type};

    use super::*;
    use crate::batch::buffer::Allocator;
    use crate::engine::Budget;
    use crate::engine::budget::Account;
    use crate::schema::{Column, Shape};
    use crate::{Dataset, Pad};

    /// A column in plain memory, as in builds without libtorch, and what else keeps that memory.
    fn plain(dtype: Dtype, shape: &[usize]) -> (BatchColumn, Weak<Buffer>) {
        let account = Account::new(Budget::mebibytes(1));
        let buffer = Arc::new(Allocator::new(&account).allocate(0, dtype, shape).unwrap());
        let column = Column::new("x", dtype, Shape::Fixed(shape[1..].to_vec()));
        let kept = Arc::downgrade(&buffer);
        (BatchColumn { column, shape: shape.to_vec(), data: Data::Host(buffer), lengths: None }, kept)
    }

    fn batch_of(columns: Vec<(&str, ArrayRef)>) -> Batch {
        let dataset = Dataset::from_columns(columns).unwrap().pad("ragged", Pad::longest()).batch(3);
        dataset.loader().build().unwrap().into_iter().next().unwrap().unwrap()
    }

    fn delete_versioned(raw: *mut DLManagedTensorVersioned) {
        // SAFETY: `raw` was handed over by `into_raw` and is deleted here alone.
        unsafe { (*raw).deleter.unwrap()(raw) };
    }

    fn delete_unversioned(raw: *mut DLManagedTensor) {
        // SAFETY: as above.
        unsafe { (*raw).deleter.unwrap()(raw) };
    }

    #[test]
    fn structs_are_laid_out_as_the_header_says() {
        use std::mem::offset_of;
        assert_eq!((size_of::<DLDevice>(), size_of::<DLDataType>(), size_of::<DLPackVersion>()), (8, 4, 8));
        #[cfg(target_pointer_width = "64")]
        {
            assert_eq!(size_of::<DLTensor>(), 48);
            let tensor = [offset_of!(DLTensor, ndim), offset_of!(DLTensor, dtype), offset_of!(DLTensor, shape)];
            assert_eq!((tensor, offset_of!(DLTensor, byte_offset)), ([16, 20, 24], 40));
            assert_eq!((offset_of!(DLManagedTensor, deleter), size_of::<DLManagedTensor>()), (56, 64));
            assert_eq!(offset_of!(DLManagedTensorVersioned, deleter), 16);
            assert_eq!(offset_of!(DLManagedTensorVersioned, flags), 24);
            assert_eq!(offset_of!(DLManagedTensorVersioned, dl_tensor), 32);
        }
    }

    #[test]
    fn columns_of_a_batch_are_its_memory_with_shape_strides_and_dtype() {
        let item = Arc::new(Field::new_list_field(arrow::datatypes::DataType::Float32, false));
        let pairs =
            FixedSizeListArray::new(item, 2, Arc::new(Float32Array::from_iter_values((0..6).map(|v| v as f32))), None);
        let ragged = arrow::array::ListArray::from_iter_primitive::<Float32Type, _, _>([
            Some(vec![Some(1.0)]),
            Some(vec![]),
            Some(vec![Some(2.0), Some(3.0), Some(4.0), Some(5.0)]),
        ]);
        let batch = batch_of(vec![
            ("scalar", Arc::new(Int64Array::from(vec![7, 8, 9]))),
            ("pairs", Arc::new(pairs)),
            ("ragged", Arc::new(ragged)),
            ("truth", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ]);
        let expected: [(&str, &[i64], &[i64], DLDataType); 4] = [
            ("scalar", &[3], &[1], data_type(0, 64)),
            ("pairs", &[3, 2], &[2, 1], data_type(2, 32)),
            ("ragged", &[3, 4], &[4, 1], data_type(2, 32)),
            ("truth", &[3], &[1], data_type(6, 8)),
        ];
        for (name, shape, strides, dtype) in expected {
            let column = batch.to_dlpack(name).unwrap();
            assert_eq!((column.shape(), column.strides(), column.dtype()), (shape, strides, dtype), "{name}");
            assert_eq!(column.device(), DLDevice { device_type: 1, device_id: 0 });
            #[cfg(feature = "tch")]
            assert_eq!(column.data, batch.tensor(name).unwrap().data_ptr(), "{name}");
        }
        let raw = batch.to_dlpack("pairs").unwrap().into_raw();
        drop(batch);
        // SAFETY: handed over above, with 6 floats, and not deleted yet.
        let (version, flags, values) = unsafe {
            let tensor = &(*raw).dl_tensor;
            assert_eq!((tensor.ndim, tensor.byte_offset, *tensor.shape.add(1), *tensor.strides), (2, 0, 2, 2));
            ((*raw).version, (*raw).flags, std::slice::from_raw_parts(tensor.data.cast::<f32>(), 6).to_vec())
        };
        assert_eq!((version, flags), (DLPackVersion { major: 1, minor: 0 }, 0));
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        delete_versioned(raw);
    }

    #[test]
    fn strides_of_empty_extents_are_those_of_one() {
        assert_eq!(row_major(&[4, 3, 2]), [6, 2, 1]);
        assert_eq!(row_major(&[4, 0, 2]), [2, 2, 1]);
        assert_eq!(row_major(&[4]), [1]);
    }

    #[test]
    fn a_column_without_elements_is_handed_over_and_freed() {
        let (column, kept) = plain(Dtype::F32, &[3, 0]);
        let raw = ManagedTensor::of(&column).unwrap().into_raw();
        drop(column);
        // SAFETY: handed over above, with two extents.
        assert_eq!(unsafe { [*(*raw).dl_tensor.shape, *(*raw).dl_tensor.shape.add(1)] }, [3, 0]);
        assert_eq!(kept.strong_count(), 1);
        delete_versioned(raw);
        assert_eq!(kept.strong_count(), 0);
    }

    #[test]
    fn memory_is_freed_once_by_the_deleter_or_by_dropping() {
        let ways: [fn(ManagedTensor); 3] = [
            drop,
            |tensor| delete_versioned(tensor.into_raw()),
            |tensor| delete_unversioned(tensor.into_raw_unversioned()),
        ];
        for way in ways {
            let (column, kept) = plain(Dtype::I32, &[2, 5]);
            let (first, second) = (ManagedTensor::of(&column).unwrap(), ManagedTensor::of(&column).unwrap());
            assert_eq!(kept.strong_count(), 3);
            way(first);
            assert_eq!(kept.strong_count(), 2, "one export keeps no other");
            drop(column);
            assert_eq!(kept.strong_count(), 1, "the export outlives the batch");
            way(second);
            assert_eq!(kept.strong_count(), 0);
        }
    }

    #[test]
    fn the_deleter_may_be_called_on_another_thread() {
        let (column, kept) = plain(Dtype::U8, &[64]);
        let tensor = ManagedTensor::of(&column).unwrap();
        drop(column);
        std::thread::scope(|scope| _ = scope.spawn(move || delete_versioned(tensor.into_raw())));
        assert_eq!(kept.strong_count(), 0);
    }

    #[test]
    fn bytes_and_unknown_columns_are_errors_that_name_the_column() {
        let ragged = arrow::array::ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0)])]);
        let batch =
            batch_of(vec![("text", Arc::new(BinaryViewArray::from_iter_values([b"a"]))), ("ragged", Arc::new(ragged))]);
        let error = batch.to_dlpack("text").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("column text: byte strings are no tensor"), "{error}");
        assert!(batch.to_dlpack("nothing").unwrap_err().to_string().contains("no column \"nothing\""));
    }

    #[cfg(feature = "tch")]
    #[test]
    fn tensors_of_each_kind_keep_their_strides_and_values() {
        use tch::{Kind, Tensor};
        let export = |tensor: &Tensor| {
            let shape = tensor.size().iter().map(|&extent| extent as usize).collect();
            let column = Column::new("x", Dtype::F32, Shape::Scalar);
            let data = Data::Tensor(tensor.shallow_clone());
            ManagedTensor::of(&BatchColumn { column, shape, data, lengths: None })
        };
        let kinds = [
            (Kind::Uint8, (1, 8)),
            (Kind::Int8, (0, 8)),
            (Kind::Int16, (0, 16)),
            (Kind::Int, (0, 32)),
            (Kind::Int64, (0, 64)),
            (Kind::Half, (2, 16)),
            (Kind::Float, (2, 32)),
            (Kind::Double, (2, 64)),
            (Kind::BFloat16, (4, 16)),
            (Kind::Bool, (6, 8)),
        ];
        for (kind, (code, bits)) in kinds {
            let exported = export(&Tensor::zeros([2, 3], (kind, tch::Device::Cpu))).unwrap();
            assert_eq!(exported.dtype(), data_type(code, bits), "{kind:?}");
        }
        assert_eq!(
            export(&Tensor::zeros([1], (Kind::ComplexFloat, tch::Device::Cpu))).unwrap_err().kind(),
            ErrorKind::Device
        );

        let tensor = Tensor::arange(12, (Kind::Int64, tch::Device::Cpu)).view([3, 4]);
        let column = tensor.transpose(0, 1).narrow(0, 1, 2);
        let raw = export(&column).unwrap().into_raw();
        drop((tensor, column));
        // SAFETY: handed over above; element (i, j) of the view is at i * 1 + j * 4, both below 2 and 3, from its first.
        let (shape, strides, last) = unsafe {
            let dl = &(*raw).dl_tensor;
            let pair = |at: *mut i64| [*at, *at.add(1)];
            (pair(dl.shape), pair(dl.strides), *dl.data.cast::<i64>().add(1 + 2 * 4))
        };
        assert_eq!((shape, strides, last), ([2, 3], [1, 4], 10));
        delete_versioned(raw);
    }

    #[cfg(feature = "tch")]
    #[test]
    fn devices_have_their_kind_and_number() {
        assert_eq!(of_device(tch::Device::Cuda(3)), Some(DLDevice { device_type: 2, device_id: 3 }));
        assert_eq!(of_device(tch::Device::Cpu), Some(DLDevice { device_type: 1, device_id: 0 }));
        assert_eq!(of_device(tch::Device::Mps), None);
    }
}

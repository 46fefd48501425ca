//! A batch's memory: allocated once in its final layout, filled slot by slot from several threads.
#![expect(
    unsafe_code,
    reason = "workers write disjoint parts of one allocation, and libtorch's tensors are made of it"
)]

use std::ops::Range;
use std::sync::{Arc, Weak};

#[cfg(feature = "tch")]
use crate::device::Slot;
use crate::engine::budget::Account;
use crate::engine::memory::Memory;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Dtype;

/// Where one batch gets its memory from.
pub(crate) struct Allocator {
    account: Weak<Account>,
    /// The slot of a device's ring, which has a place for most columns.
    #[cfg(feature = "tch")]
    slot: Option<Arc<Slot>>,
}

impl Allocator {
    /// Allocates plain memory, which is given back to `account` for the next batches.
    pub(crate) fn new(account: &Arc<Account>) -> Self {
        Self {
            account: Arc::downgrade(account),
            #[cfg(feature = "tch")]
            slot: None,
        }
    }

    /// Allocates columns at their places in this slot, or in plain memory if they have none there.
    #[cfg(feature = "tch")]
    pub(crate) fn with_slot(mut self, slot: Slot) -> Self {
        self.slot = Some(Arc::new(slot));
        self
    }

    /// Allocates memory for the column of this number.
    pub(crate) fn allocate(&self, column: usize, dtype: Dtype, shape: &[usize]) -> Result<Buffer> {
        let len = shape
            .iter()
            .try_fold(dtype.size().unwrap_or(1), |product, &extent| product.checked_mul(extent))
            .filter(|&bytes| bytes <= isize::MAX as usize - 64)
            .ok_or_else(|| {
                Error::new(ErrorKind::Memory, format!("a batch column of shape {shape:?} has too many bytes"))
            })?;
        #[cfg(feature = "tch")]
        if let Some((slot, place)) = self.slot.as_ref().and_then(|slot| Some((slot, slot.claim(column, len)?))) {
            return Ok(Buffer { owner: Owner::Slot { slot: slot.clone(), start: place }, len });
        }
        #[cfg(not(feature = "tch"))]
        let _ = column;
        let memory = self.account.upgrade().map_or_else(|| Memory::new(len), |account| account.memory(len));
        Ok(Buffer { owner: Owner::Plain(Plain { memory: Some(memory), account: self.account.clone() }), len })
    }
}

/// Who owns the memory of a column.
enum Owner {
    Plain(Plain),
    /// The part of a slot from `start`. Each column of a batch has its own place there.
    #[cfg(feature = "tch")]
    Slot {
        slot: Arc<Slot>,
        start: usize,
    },
}

impl Owner {
    /// The start of the column's bytes: valid for as long as the owner lives, wherever it is moved.
    fn pointer(&self) -> *mut u8 {
        match self {
            Self::Plain(plain) => plain.memory.as_ref().expect("taken when it is dropped").pointer(),
            #[cfg(feature = "tch")]
            Self::Slot { slot, start } => slot.pointer(*start),
        }
    }
}

/// Plain memory, which goes back to its account.
struct Plain {
    /// `None` once it is dropped.
    memory: Option<Memory>,
    account: Weak<Account>,
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let (Some(memory), Some(account)) = (self.memory.take(), self.account.upgrade()) {
            account.give_back(memory);
        }
    }
}

/// The memory of one column of one batch.
pub(crate) struct Buffer {
    owner: Owner,
    len: usize,
}

impl Buffer {
    /// Cuts the buffer into parts of these sizes, to be filled on any threads; [`Whole::join`] puts it together again.
    ///
    /// # Panics
    /// If the sizes do not add up to the buffer's.
    pub(crate) fn split(self, sizes: impl IntoIterator<Item = usize>) -> (Whole, Vec<Part>) {
        let Self { owner, len } = self;
        let owner = Arc::new(owner);
        let mut start = 0;
        let parts = sizes
            .into_iter()
            .map(|len| {
                start += len;
                Part { owner: owner.clone(), start: start - len, len }
            })
            .collect();
        assert_eq!(start, len, "the parts make up the buffer");
        (Whole { owner, len }, parts)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated, or are the column's place in its slot; no part exists while there is a `Buffer`.
        unsafe { std::slice::from_raw_parts(self.owner.pointer(), self.len) }
    }

    /// Returns the first byte, for code that is not Rust.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.owner.pointer()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.owner.pointer(), self.len) }
    }

    /// Keeps only these ranges of bytes, in ascending order, and moves them together.
    pub(crate) fn keep(&mut self, ranges: impl Iterator<Item = Range<usize>>) {
        let mut end = 0;
        for range in ranges {
            let len = range.len();
            self.bytes_mut().copy_within(range, end);
            end += len;
        }
        self.len = end;
    }
}

#[cfg(feature = "tch")]
pub(crate) mod torch {
    use std::ffi::c_void;

    use super::{Buffer, Owner};
    use crate::device::{HostBytes, Slot, scalar_type};
    use crate::error::{Error, ErrorKind, Result};
    use crate::schema::Dtype;

    unsafe extern "C" {
        /// From libtorch's stable C interface, `torch/csrc/stable/c/shim.h`: makes a tensor over memory that `deleter` frees. 0 means success.
        fn torch_from_blob(
            data: *mut c_void,
            ndim: i64,
            sizes: *const i64,
            strides: *const i64,
            storage_offset: i64,
            dtype: i32,
            device_type: i32,
            device_index: i32,
            tensor: *mut *mut torch_sys::C_tensor,
            layout: i32,
            opaque_metadata: *const u8,
            opaque_metadata_size: i64,
            deleter: extern "C" fn(*mut c_void, *mut c_void),
            deleter_context: *mut c_void,
        ) -> i32;
    }

    const CPU: i32 = 0;
    const STRIDED: i32 = 0;

    /// Makes a CPU tensor over memory that `owner` keeps. The owner is dropped with the last tensor that shares the memory, on whichever thread that
    /// is.
    ///
    /// # Safety
    /// `data` is the start of the elements of this shape and dtype, aligned for libtorch, valid and not aliased for as long as the owner lives.
    pub(crate) unsafe fn tensor_over<T: Send>(
        data: *mut u8,
        dtype: Dtype,
        shape: &[usize],
        owner: Box<T>,
    ) -> Result<tch::Tensor> {
        extern "C" fn free<T>(_data: *mut c_void, owner: *mut c_void) {
            // SAFETY: the pointer was made from a box of this type, for this call, which libtorch makes once.
            drop(unsafe { Box::from_raw(owner.cast::<T>()) });
        }
        let sizes: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
        let mut strides = vec![1; sizes.len()];
        for axis in (1..sizes.len()).rev() {
            strides[axis - 1] = strides[axis] * sizes[axis].max(1);
        }
        let owner = Box::into_raw(owner);
        let mut tensor = std::ptr::null_mut();
        // SAFETY: the caller answers for the memory, which lives until `free` is called with its owner. The pointers to sizes and strides have as
        // many elements as is said, and are read during the call only.
        let code = unsafe {
            torch_from_blob(
                data.cast(),
                sizes.len() as i64,
                sizes.as_ptr(),
                strides.as_ptr(),
                0,
                scalar_type(dtype),
                CPU,
                -1,
                &raw mut tensor,
                STRIDED,
                std::ptr::null(),
                0,
                free::<T>,
                owner.cast(),
            )
        };
        if code != 0 || tensor.is_null() {
            // What libtorch did with the owner is not known: it is left alone.
            return Err(Error::new(ErrorKind::Memory, format!("libtorch makes no tensor of shape {shape:?}")));
        }
        // SAFETY: the call gave a new reference, in the form that tch keeps: a pointer to a tensor of its own on libtorch's heap.
        Ok(unsafe { tch::Tensor::from_ptr(tensor) })
    }

    impl Buffer {
        /// Turns the buffer into a CPU tensor, which owns it: its memory is given back when the last tensor that shares it is dropped.
        pub(crate) fn into_tensor(self, dtype: Dtype, shape: &[usize]) -> Result<tch::Tensor> {
            debug_assert_eq!(self.len, shape.iter().product::<usize>() * dtype.size().unwrap_or(1));
            // SAFETY: the buffer holds the elements of this shape and dtype, aligned to 64, and nobody else has it.
            unsafe { tensor_over(self.owner.pointer(), dtype, shape, Box::new(self.owner)) }
        }
    }

    impl HostBytes for Buffer {
        fn bytes(&self) -> &[u8] {
            self.bytes()
        }

        fn slot(&self) -> Option<(&Slot, usize)> {
            match &self.owner {
                Owner::Slot { slot, start } => Some((slot, *start)),
                Owner::Plain(_) => None,
            }
        }
    }
}

/// A buffer that is being filled.
pub(crate) struct Whole {
    owner: Arc<Owner>,
    len: usize,
}

impl Whole {
    /// Returns the buffer once all its parts were dropped; `None` before.
    pub(crate) fn join(self) -> Option<Buffer> {
        let len = self.len;
        Arc::try_unwrap(self.owner).ok().map(|owner| Buffer { owner, len })
    }
}

/// A range of a buffer that only its holder can reach.
pub(crate) struct Part {
    owner: Arc<Owner>,
    start: usize,
    len: usize,
}

impl Part {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `split` made the ranges disjoint and within the memory, `Whole::join` waits for all parts to be gone,
        // and `&mut self` makes this the only slice of this range.
        unsafe { std::slice::from_raw_parts_mut(self.owner.pointer().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Budget;

    fn account() -> Arc<Account> {
        let account = Account::new(Budget::mebibytes(64));
        account.keep_spare(64 << 20);
        account
    }

    #[test]
    fn parts_are_disjoint_and_join_to_the_whole() {
        let buffer = Allocator::new(&account()).allocate(0, Dtype::U8, &[10]).unwrap();
        let (whole, parts) = buffer.split([3, 0, 7]);
        std::thread::scope(|scope| {
            for (value, mut part) in (1..).zip(parts) {
                scope.spawn(move || part.bytes().fill(value));
            }
        });
        let mut buffer = whole.join().expect("all parts are gone");
        assert_eq!(buffer.bytes(), [1, 1, 1, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!(buffer.bytes().as_ptr() as usize % 64, 0);
        buffer.keep([1..2, 2..4, 9..9].into_iter());
        assert_eq!(buffer.bytes(), [1, 1, 3]);
    }

    #[test]
    fn a_buffer_is_not_joined_while_a_part_lives() {
        let (whole, parts) = Allocator::new(&account()).allocate(0, Dtype::I64, &[2]).unwrap().split([8, 8]);
        assert!(whole.join().is_none());
        drop(parts);
    }

    #[test]
    fn memory_goes_back_to_its_account_or_to_the_system() {
        let account = account();
        let allocator = Allocator::new(&account);
        let buffer = allocator.allocate(0, Dtype::F32, &[1 << 20]).unwrap();
        let first = buffer.bytes().as_ptr();
        drop(buffer);
        let again = allocator.allocate(0, Dtype::F32, &[1 << 20]).unwrap();
        assert_eq!(again.bytes().as_ptr(), first);
        drop(account);
        drop(again);
        drop(allocator.allocate(0, Dtype::U8, &[0]).unwrap());
    }

    #[cfg(feature = "tch")]
    #[test]
    fn a_tensor_owns_its_memory_until_the_last_view_is_dropped() {
        let account = account();
        let allocator = Allocator::new(&account);
        let (whole, mut parts) = allocator.allocate(0, Dtype::I64, &[512, 512]).unwrap().split([8 << 18]);
        let values: &mut [i64] = bytemuck::cast_slice_mut(parts[0].bytes());
        values.iter_mut().zip(0..).for_each(|(value, number)| *value = number);
        drop(parts);
        let tensor = whole.join().unwrap().into_tensor(Dtype::I64, &[512, 512]).unwrap();
        let place = tensor.data_ptr();
        assert_eq!((tensor.size(), tensor.kind(), tensor.is_contiguous()), (vec![512, 512], tch::Kind::Int64, true));
        assert_eq!((tensor.int64_value(&[3, 5]), tensor.device()), (3 * 512 + 5, tch::Device::Cpu));
        let row = tensor.get(511);
        drop(tensor);
        let other = allocator.allocate(0, Dtype::I64, &[512, 512]).unwrap();
        assert_ne!(other.bytes().as_ptr(), place.cast(), "a row still shares it");
        assert_eq!(row.int64_value(&[511]), (512 * 512) - 1);
        drop(row);
        let again = allocator.allocate(0, Dtype::I64, &[512, 512]).unwrap();
        assert_eq!(again.bytes().as_ptr(), place.cast());
        for shape in [&[0][..], &[4, 0, 2], &[]] {
            let tensor = allocator.allocate(0, Dtype::F16, shape).unwrap().into_tensor(Dtype::F16, shape).unwrap();
            assert_eq!(tensor.size(), shape.iter().map(|&extent| extent as i64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sizes_beyond_memory_are_errors() {
        let error = Allocator::new(&account()).allocate(0, Dtype::I64, &[usize::MAX / 2, 3]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Memory);
    }

    #[test]
    #[should_panic(expected = "the parts make up the buffer")]
    fn parts_must_cover_the_buffer() {
        let _ = Allocator::new(&account()).allocate(0, Dtype::U8, &[4]).unwrap().split([3]);
    }
}

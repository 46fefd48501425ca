//! A batch's memory: allocated once in its final layout, filled slot by slot from several threads.
#![expect(unsafe_code, reason = "workers write disjoint slots of one allocation, some of which belong to libtorch")]

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::Dtype;

/// Who owns the memory of a batch's column: plain memory, libtorch, or (on CUDA machines) a ring of pinned slots.
///
/// # Safety
/// `pointer` gives the start of `len` bytes, aligned to 64, valid and not aliased for as long as the owner lives, wherever
/// the owner is moved. The bytes may be uninitialised: until a batch is finished its parts are written and never read.
pub(crate) unsafe trait BatchMemory: Send + Sync + 'static {
    fn pointer(&self) -> *mut u8;
    fn len(&self) -> usize;
    /// The owner back as what it is, for handing it on.
    #[cfg(feature = "tch")]
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}

/// Where batches get their memory from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocator {
    /// Plain memory.
    #[cfg(any(test, not(feature = "tch")))]
    Plain,
    /// CPU tensors of libtorch, which become the user's without a copy.
    #[cfg(feature = "tch")]
    Torch,
}

impl Allocator {
    /// The allocator of this build: libtorch where it is compiled in.
    pub(crate) fn of_this_build() -> Self {
        #[cfg(feature = "tch")]
        return Self::Torch;
        #[cfg(not(feature = "tch"))]
        Self::Plain
    }

    pub(crate) fn allocate(self, dtype: Dtype, shape: &[usize]) -> Result<Buffer> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size().unwrap_or(1), |product, &extent| product.checked_mul(extent))
            .filter(|&bytes| bytes <= isize::MAX as usize - 64)
            .ok_or_else(|| {
                Error::new(ErrorKind::Memory, format!("a batch column of shape {shape:?} has too many bytes"))
            })?;
        let owner: Box<dyn BatchMemory> = match self {
            #[cfg(any(test, not(feature = "tch")))]
            Self::Plain => Box::new(PlainMemory::new(bytes)),
            #[cfg(feature = "tch")]
            Self::Torch => Box::new(torch::TorchMemory::new(dtype, shape, bytes)?),
        };
        #[cfg(target_os = "linux")]
        ask_for_huge_pages(&*owner);
        Ok(Buffer { owner })
    }
}

/// Asks Linux to back large memory by pages of 2 MiB, before it is first written.
///
/// A batch of 256 images (f32, 224 x 224) is 154 MB of fresh memory: 37,632 page faults of 4 KiB each, which took a fifth of the CPU time of the
/// whole loader.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &dyn BatchMemory) {
    const HUGE: usize = 2 << 20;
    let start = (memory.pointer() as usize).next_multiple_of(HUGE);
    let end = (memory.pointer() as usize + memory.len()) / HUGE * HUGE;
    if start < end {
        // SAFETY: the range lies within memory that `BatchMemory` promises to be valid; the advice changes neither its content nor who
        // may use it, and a refusal does no harm.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(any(test, not(feature = "tch")))]
/// Zeroed memory aligned to 64 bytes.
struct PlainMemory {
    lines: Box<[Line]>,
    len: usize,
}

#[cfg(any(test, not(feature = "tch")))]
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

#[cfg(any(test, not(feature = "tch")))]
impl PlainMemory {
    fn new(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)].into_boxed_slice(), len }
    }
}

#[cfg(any(test, not(feature = "tch")))]
// SAFETY: the boxed slice is `len` bytes or more, aligned to 64, and stays where it is when the box moves.
unsafe impl BatchMemory for PlainMemory {
    fn pointer(&self) -> *mut u8 {
        self.lines.as_ptr().cast_mut().cast()
    }

    fn len(&self) -> usize {
        self.len
    }

    #[cfg(feature = "tch")]
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

#[cfg(feature = "tch")]
pub(crate) mod torch {
    use super::*;
    use crate::device::kind_of;

    /// A CPU tensor that nobody else knows of until its batch is finished.
    pub(crate) struct TorchMemory {
        tensor: tch::Tensor,
        pointer: *mut u8,
        len: usize,
    }

    // SAFETY: the tensor is not touched while the memory is shared: only its bytes are, through disjoint slots. A tensor
    // may move between threads (tch: Tensor is Send).
    unsafe impl Send for TorchMemory {}
    // SAFETY: as above.
    unsafe impl Sync for TorchMemory {}

    impl TorchMemory {
        pub(crate) fn new(dtype: Dtype, shape: &[usize], len: usize) -> Result<Self> {
            let shape: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
            let tensor = tch::Tensor::f_empty(&shape, (kind_of(dtype), tch::Device::Cpu)).map_err(|e| {
                Error::new(ErrorKind::Memory, format!("libtorch cannot allocate {len} bytes")).because(e)
            })?;
            let pointer = tensor.data_ptr().cast();
            Ok(Self { tensor, pointer, len })
        }

        pub(crate) fn into_tensor(self) -> tch::Tensor {
            self.tensor
        }
    }

    // SAFETY: an empty CPU tensor is contiguous, `len` bytes as computed from its shape and dtype, aligned to 64 by
    // libtorch's CPU allocator, and fresh: no other tensor shares its storage.
    unsafe impl BatchMemory for TorchMemory {
        fn pointer(&self) -> *mut u8 {
            self.pointer
        }

        fn len(&self) -> usize {
            self.len
        }

        fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
            self
        }
    }
}

/// The memory of one column of one batch.
pub(crate) struct Buffer {
    owner: Box<dyn BatchMemory>,
}

impl Buffer {
    /// Cuts the buffer into parts of these sizes, to be filled on any threads; [`Whole::join`] puts it together again.
    ///
    /// # Panics
    /// If the sizes do not add up to the buffer's.
    pub(crate) fn split(self, sizes: impl IntoIterator<Item = usize>) -> (Whole, Vec<Part>) {
        let owner = Arc::new(self.owner);
        let mut start = 0;
        let parts = sizes
            .into_iter()
            .map(|len| {
                start += len;
                Part { owner: owner.clone(), start: start - len, len }
            })
            .collect();
        assert_eq!(start, owner.len(), "the parts make up the buffer");
        (Whole { owner }, parts)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.owner.len() == 0 {
            return &[];
        }
        // SAFETY: `BatchMemory` promises `len` valid bytes; no part exists while there is a `Buffer`.
        unsafe { std::slice::from_raw_parts(self.owner.pointer(), self.owner.len()) }
    }

    /// The first byte, for code that is not Rust.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.owner.pointer()
    }

    /// The owner, as what it is.
    #[cfg(feature = "tch")]
    pub(crate) fn into_owner(self) -> Box<dyn std::any::Any + Send> {
        self.owner.into_any()
    }
}

/// A buffer that is being filled.
pub(crate) struct Whole {
    owner: Arc<Box<dyn BatchMemory>>,
}

impl Whole {
    /// The buffer again, once all its parts were dropped; `None` before.
    pub(crate) fn join(self) -> Option<Buffer> {
        Arc::try_unwrap(self.owner).ok().map(|owner| Buffer { owner })
    }
}

/// A range of a buffer that only its holder can reach.
pub(crate) struct Part {
    owner: Arc<Box<dyn BatchMemory>>,
    start: usize,
    len: usize,
}

impl Part {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: `split` made the ranges disjoint and within the memory, `Whole::join` waits for all parts to be gone,
        // and `&mut self` makes this the only slice of this range.
        unsafe { std::slice::from_raw_parts_mut(self.owner.pointer().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_join_to_the_whole() {
        for allocator in [Allocator::Plain, Allocator::of_this_build()] {
            let buffer = allocator.allocate(Dtype::U8, &[10]).unwrap();
            let (whole, parts) = buffer.split([3, 0, 7]);
            std::thread::scope(|scope| {
                for (value, mut part) in (1..).zip(parts) {
                    scope.spawn(move || part.bytes().fill(value));
                }
            });
            let buffer = whole.join().expect("all parts are gone");
            assert_eq!(buffer.bytes(), [1, 1, 1, 3, 3, 3, 3, 3, 3, 3]);
            assert_eq!(buffer.bytes().as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn a_buffer_is_not_joined_while_a_part_lives() {
        let (whole, parts) = Allocator::Plain.allocate(Dtype::I64, &[2]).unwrap().split([8, 8]);
        assert!(whole.join().is_none());
        drop(parts);
    }

    #[test]
    fn sizes_beyond_memory_are_errors() {
        let error = Allocator::Plain.allocate(Dtype::I64, &[usize::MAX / 2, 3]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Memory);
    }

    #[test]
    #[should_panic(expected = "the parts make up the buffer")]
    fn parts_must_cover_the_buffer() {
        let _ = Allocator::Plain.allocate(Dtype::U8, &[4]).unwrap().split([3]);
    }
}

//! Batches for a program in another language: a shared library with a loader behind seven C functions, which hands over columns by DLPack.
//!
//! This is a template: put your data set into `dataset()`. `examples/dlpack.py` next to it loads the library with nothing but ctypes and gets the columns as
//! NumPy arrays or PyTorch tensors, without a copy; the checks run it. By hand:
//!
//! ```sh
//! cargo build --no-default-features --example dlpack
//! python3 examples/dlpack.py target/debug/examples/libdlpack.so
//! ```
//!
//! Without default features the library contains no libtorch. A Python process that imports torch brings its own libtorch, and two of them in one process
//! conflict. For programs without another libtorch, build it with the feature `tch` and deliver to a CUDA device: the C functions stay the same.
//!
//! Only one thread at a time may use each loader and each batch. A panic ends the process.
#![expect(unsafe_code, reason = "pointers come from and go to another language")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array};
use forebay::dlpack::{DLManagedTensor, DLManagedTensorVersioned, ManagedTensor};
use forebay::{Batch, Column, Dataset, Dtype, Epoch, Result, Shape, Shuffle, float32};

const ROWS: i64 = 1000;
const SIDE: usize = 32;

/// The data that is delivered. Every value follows from the column `id`, so that the other side can check what it gets.
fn dataset() -> Result<Dataset> {
    let ids = Int64Array::from_iter_values(0..ROWS);
    let odd = BooleanArray::from_iter((0..ROWS).map(|id| Some(id % 2 == 1)));
    let columns = [
        Column::new("pixels", Dtype::U8, Shape::Fixed(vec![SIDE, SIDE, 3])),
        float32("pair").fixed([2]),
        Column::new("half", Dtype::F16, Shape::Scalar),
    ];
    Ok(Dataset::from_columns([("id", Arc::new(ids) as ArrayRef), ("odd", Arc::new(odd) as ArrayRef)])?
        .map("features", columns, |_, row, out| {
            let id = row.get::<i64>("id")?;
            let pixels: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (id as usize + i) as u8).collect();
            out.set_values("pixels", &pixels)?;
            out.set_values("pair", &[id as f32, id as f32 / 4.0])?;
            out.set("half", half::f16::from_f64(id as f64 / 8.0))
        })
        .shuffle(Shuffle::buffer(200)))
}

/// A loader and the epoch it is in.
pub struct Loader {
    loader: forebay::Loader,
    epoch: Option<Epoch>,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Returns the value, or `failed` and keeps the error for [`forebay_error`].
fn or_keep_error<T>(result: Result<T>, failed: T) -> T {
    result.unwrap_or_else(|error| {
        // A message holds no NUL, but what it quotes might.
        let message = CString::new(error.to_string().replace('\0', "\\0")).unwrap_or_default();
        LAST_ERROR.set(message);
        failed
    })
}

/// Returns the message of the last call that failed on this thread, in UTF-8. It is valid until the next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_error() -> *const c_char {
    LAST_ERROR.with_borrow(|message| message.as_ptr())
}

/// Opens a loader of batches of `batch` samples; null after an error.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_open(seed: u64, batch: u64) -> *mut Loader {
    let loader = dataset().and_then(|dataset| dataset.batch(batch as usize).loader().seed(seed).build());
    let opened = loader.map(|loader| Box::into_raw(Box::new(Loader { loader, epoch: None })));
    or_keep_error(opened, std::ptr::null_mut())
}

/// Puts the next batch into `*batch`; give it back with [`forebay_free`]. Returns 1 for a batch, 0 at the end of an epoch, after which the next epoch begins,
/// and -1 after an error.
///
/// # Safety
/// `loader` comes from [`forebay_open`], and `batch` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_next(loader: *mut Loader, batch: *mut *mut Batch) -> i32 {
    // SAFETY: the caller says so, and calls from one thread at a time.
    let Loader { loader, epoch } = unsafe { &mut *loader };
    let next = epoch.get_or_insert_with(|| (&mut *loader).into_iter()).next();
    if !matches!(next, Some(Ok(_))) {
        *epoch = None;
    }
    let found = next.transpose().map(|next| match next {
        Some(next) => {
            // SAFETY: the caller says that it is a place for a pointer.
            unsafe { *batch = Box::into_raw(Box::new(next)) };
            1
        }
        None => 0,
    });
    or_keep_error(found, -1)
}

/// # Safety
/// `batch` comes from [`forebay_next`] and was not given back, and `name` is a string that ends in NUL.
unsafe fn column(batch: *const Batch, name: *const c_char) -> Result<ManagedTensor> {
    // SAFETY: the caller says so.
    let (batch, name) = unsafe { (&*batch, CStr::from_ptr(name)) };
    batch.to_dlpack(&name.to_string_lossy())
}

/// Returns a column of a batch, without a copy; null after an error. The receiver calls the column's deleter, before or after the batch is given back.
///
/// # Safety
/// `batch` comes from [`forebay_next`] and was not given back, and `name` is a string that ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_column(batch: *const Batch, name: *const c_char) -> *mut DLManagedTensorVersioned {
    // SAFETY: as for this function.
    let column = unsafe { column(batch, name) };
    or_keep_error(column.map(ManagedTensor::into_raw), std::ptr::null_mut())
}

/// Like [`forebay_column`], for consumers that do not know DLPack 1.x.
///
/// # Safety
/// As for [`forebay_column`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_column_unversioned(batch: *const Batch, name: *const c_char) -> *mut DLManagedTensor {
    // SAFETY: as for this function.
    let column = unsafe { column(batch, name) };
    or_keep_error(column.map(ManagedTensor::into_raw_unversioned), std::ptr::null_mut())
}

/// Gives a batch back. Columns that were handed over stay valid.
///
/// # Safety
/// `batch` comes from [`forebay_next`] and was not given back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_free(batch: *mut Batch) {
    // SAFETY: it came from a box, and the caller gives it back once.
    drop(unsafe { Box::from_raw(batch) });
}

/// Ends a loader and its threads. Batches stay valid.
///
/// # Safety
/// `loader` comes from [`forebay_open`] and was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_close(loader: *mut Loader) {
    // SAFETY: it came from a box, and the caller closes it once.
    drop(unsafe { Box::from_raw(loader) });
}

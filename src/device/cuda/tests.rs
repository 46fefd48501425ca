//! The copier's calls, checked with a model of the driver (`tests/data/cuda/driver.rs`) that is strict about handles, contexts and locked memory.
//! "Device" memory is that of CPU tensors. `examples/gpu_throughput.rs` shows what a driver and a GPU really do.

use std::process::Command;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, ListArray};
use arrow::datatypes::Int32Type;

use super::*;
use crate::device::ring::{Ring, SlotLayout};

/// Builds the model and loads it before anything asks for `libcuda.so`; that name stands for the model from then on.
fn model() -> &'static Library {
    static MODEL: OnceLock<Library> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("forebay-cuda-model-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (source, library) =
            (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cuda/driver.rs"), folder.join("libcuda.so"));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2021", "--crate-type", "cdylib", "-C", "link-arg=-Wl,-soname,libcuda.so", "-o"])
            .arg(&library)
            .arg(source)
            .status();
        assert!(built.unwrap().success(), "rustc compiles the model");
        // SAFETY: its initialisers are those of Rust's standard library.
        let model = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        model
    })
}

/// Contexts, streams, events and locked pieces that live, and copies made; also what was wrong.
fn report() -> ([usize; 5], String) {
    type Report = unsafe extern "C" fn(*mut usize, *mut u8, usize) -> usize;
    let (mut counts, mut text) = ([0; 5], vec![0; 4096]);
    // SAFETY: the function has this type, and writes five numbers and up to as many bytes as it is told.
    let len = unsafe {
        let report = model().get::<Report>(b"model_report").unwrap();
        report(counts.as_mut_ptr(), text.as_mut_ptr(), text.len())
    };
    text.truncate(len);
    (counts, String::from_utf8(text).unwrap())
}

/// Holds the model's copies back, or lets them go.
fn hold(hold: bool) {
    // SAFETY: the function has this type.
    unsafe { (model().get::<unsafe extern "C" fn(bool)>(b"model_hold").unwrap())(hold) };
}

fn copier() -> Cuda {
    model();
    Cuda { driver: Arc::new(Driver::new(0).unwrap()), device: tch::Device::Cpu }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_comes_from_a_node_for_as_long_as_it_is_asked_for() {
    // Machines without NUMA, and containers that may not, have no policy.
    let Some(before) = Policy::of_this_thread() else { return };
    Policy { mode: libc::MPOL_INTERLEAVE, ..Policy::prefer(0) }.set();
    let interleaved = Policy::of_this_thread();
    let within = on_node(Some(0), Policy::of_this_thread);
    assert_eq!(within.map(|policy| (policy.mode, policy.nodes[0])), Some((libc::MPOL_PREFERRED, 1)));
    assert_eq!(Policy::of_this_thread(), interleaved, "what the thread had is so again");
    before.set();
    assert_eq!(Policy::of_this_thread(), Some(before));
}

/// One test only, because the model counts what the whole process does.
#[test]
fn calls_of_the_driver_are_in_order_and_what_is_made_is_freed() {
    let cuda = copier();
    assert_eq!(report().0[..4], [1, 1, 0, 0]);
    let locked = cuda.lock(1 << 20).unwrap();
    let to = cuda.allocate(1 << 20).unwrap();
    // SAFETY: the memory is this test's.
    unsafe { std::slice::from_raw_parts_mut(locked.pointer(), 1 << 20) }.fill(9);
    let ready = cuda.record(Stream::Default).unwrap();
    cuda.wait(Stream::Copy, &ready).unwrap();
    let asked = Instant::now();
    let begun = cuda.mark(Stream::Copy).unwrap();
    cuda.synchronize(&begun).unwrap();
    hold(true);
    // SAFETY: both ends are kept, and waited for.
    unsafe { cuda.copy(locked.pointer(), &to, 1 << 20).unwrap() };
    let copied = cuda.record(Stream::Copy).unwrap();
    assert!(!cuda.is_done(&copied).unwrap());
    hold(false);
    cuda.wait(Stream::Default, &copied).unwrap();
    cuda.synchronize(&copied).unwrap();
    assert!(cuda.is_done(&copied).unwrap());
    assert_eq!(i64::try_from(&to.sum(tch::Kind::Int64)).unwrap(), 9 << 20);
    let (there, back) = (cuda.seconds(&begun, &copied).unwrap(), cuda.seconds(&copied, &begun).unwrap());
    assert!(0.0 < there && there <= asked.elapsed().as_secs_f64() && back == -there, "{there} {back}");
    drop((ready, begun, copied, locked));
    cuda.drain().unwrap();
    assert_eq!(report(), ([1, 1, 0, 0, 1], String::new()));

    let error = cuda.lock(1 << 41).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Device);
    let text = error.to_string();
    assert!(text.contains("cuda:0 cannot lock 2199023255552 bytes of host memory: CUDA_ERROR_OUT_OF_MEMORY"), "{text}");
    assert!(text.contains("less prefetch") && text.contains("its container may have a limit"), "{text}");
    let text = cuda.driver.check(CUresult::CUDA_ERROR_OUT_OF_MEMORY, "make an event").unwrap_err().to_string();
    assert!(text.contains("the device's memory") && !text.contains("container"), "{text}");
    // A driver and a device are there; libtorch's runtime, where it is loaded, does not know this driver.
    let (text, runtime) = (why_not().to_string(), what_the_runtime_says());
    let words = if runtime.is_some() { "finds no device: " } else { "asked about CUDA before" };
    assert!(text.contains(words), "{text}");
    assert!(Driver::new(1).err().unwrap().to_string().contains("CUDA_ERROR_INVALID_DEVICE"));
    assert_eq!(report().0[..4], [1, 1, 0, 0], "what is refused leaves nothing behind");

    // A whole loader, from threads that never saw the context before.
    let numbers = Int64Array::from_iter_values(0..1000);
    // Without a bound: it crosses in pieces, once in nine of them.
    const LONGEST: usize = 220_000;
    let len = |row: usize| if row == 505 { LONGEST } else { row % 7 };
    let tokens = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..1000).map(|row| Some((0..len(row)).map(move |at| Some((row + at) as i32)))),
    );
    let sum_of_tokens: usize = (0..1000).flat_map(|row| (0..len(row)).map(move |at| row + at)).sum();
    let columns = [("x", Arc::new(numbers) as ArrayRef), ("tokens", Arc::new(tokens) as ArrayRef)];
    let dataset = crate::Dataset::from_columns(columns).unwrap().batch(10).prefetch(2);
    let cuda: Arc<dyn Copier> = Arc::new(cuda);
    let mut loader = dataset.loader().build().unwrap();
    loader.deliver_through(cuda.clone()).unwrap();
    for epoch in 0..2 {
        let mut sums = [0; 2];
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap();
            // Memory of the CPU is not used again in the order of a stream: the test waits before it reads, or lets go.
            cuda.drain().unwrap();
            for (name, sum) in ["x", "tokens"].iter().zip(&mut sums) {
                *sum += i64::try_from(&batch.tensor(name).unwrap().sum(tch::Kind::Int64)).unwrap();
            }
        }
        assert_eq!(sums, [499_500, sum_of_tokens as i64]);
    }
    let begun = Instant::now();
    while loader.report().rings[0].timed < 200 && begun.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    let ring = loader.report().rings[0];
    // Padded to the longest of ten rows.
    let bytes_of_tokens = 99 * 10 * 6 * 4 + 10 * LONGEST as u64 * 4;
    assert_eq!((ring.crossed, ring.timed, ring.timed_bytes), (200, 200, 16_000 + 2 * bytes_of_tokens));
    assert!(ring.copying > Duration::ZERO && ring.device_wait_for_copies <= ring.device_wait, "{ring:?}");
    for batch in loader.epoch(2).take(3) {
        let batch = batch.unwrap();
        cuda.drain().unwrap();
        drop(batch);
    }
    drop(loader);
    let ring = Ring::new(cuda.clone(), SlotLayout::new(&[Some(100)]), 2).unwrap();
    drop((ring, cuda));
    // A worker that ends its task may be the last that has the ring.
    let begun = Instant::now();
    while report().0[..4] != [0; 4] && begun.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    let (counts, wrong) = report();
    assert_eq!((&counts[..4], wrong.as_str()), (&[0; 4][..], ""));
    // Of each batch what lies in its slot and the pieces of its tokens, beside those of the test's own.
    assert!(counts[4] > 2 * (100 + 99 + 9), "{counts:?}");
}

//! JPEG files as large as most of ImageNet's, made from their numbers.
#![expect(unsafe_code, reason = "libjpeg-turbo is a C library")]

use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::random::Key;
use rand::{Rng as _, RngCore as _};
use turbojpeg_sys as tj;

use super::Result;

/// The size of most of ImageNet's.
pub(crate) const WIDTH: usize = 500;
pub(crate) const HEIGHT: usize = 375;
/// Gives files of about 110 KB for these pictures, the mean of ImageNet's.
const QUALITY: c_int = 92;

/// No more are begun then: what there is does too.
const LONGEST: Duration = Duration::from_secs(10);

/// So many files, if there is time.
pub(crate) fn make(count: u64) -> Result<Vec<Vec<u8>>> {
    let (start, next, files) = (Instant::now(), AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && number < count
            && (number == 0 || start.elapsed() < LONGEST)
        {
            let file = encode(&paint(number)).map_err(|error| error.to_string());
            files.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(file);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let files = files.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(files.into_iter().collect::<Result<_, String>>()?)
}

/// A picture that compresses like a photograph: soft areas, edges, and grain; as `forebay bench image` paints them (`src/cli/bench/data.rs`).
fn paint(number: u64) -> Vec<u8> {
    let mut rng = Key::new(0).with("gpu_throughput").with_number(number).rng();
    let mut unit = || rng.random::<f32>();
    let waves: Vec<[f32; 4]> = (0..6)
        .map(|i| [unit() * 0.01 * 3f32.powi(i / 2), unit() * 0.01 * 3f32.powi(i / 2), unit() * 6.3, unit() * 30.0])
        .collect();
    let discs: Vec<[f32; 6]> = (0..12)
        .map(|_| [unit() * WIDTH as f32, unit() * HEIGHT as f32, 10.0 + unit() * 90.0, unit(), unit(), unit()])
        .collect();
    let base = [unit(), unit(), unit()];
    let grain = 50.0 + 50.0 * unit();
    let mut pixels = vec![0; WIDTH * HEIGHT * 3];
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((at % WIDTH) as f32, (at / WIDTH) as f32);
        let wave: f32 = waves.iter().map(|w| (w[0] * x + w[1] * y + w[2]).sin() * w[3]).sum();
        let disc = discs.iter().find(|disc| (x - disc[0]).powi(2) + (y - disc[1]).powi(2) < disc[2] * disc[2]);
        let noise = rng.next_u32();
        for (channel, value) in pixel.iter_mut().enumerate() {
            let under = disc.map_or(base[channel], |disc| disc[3 + channel]) * 255.0;
            let speckle = (noise >> (8 * channel) & 0xff) as f32 / 255.0 - 0.5;
            *value = (under + wave + speckle * grain) as u8;
        }
    }
    pixels
}

/// An RGB picture as JPEG, chroma at half the size in both directions.
fn encode(pixels: &[u8]) -> Result<Vec<u8>> {
    assert_eq!(pixels.len(), WIDTH * HEIGHT * 3);
    let (mut file, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: the compressor and the file's memory are the library's, and given back once, here; the pixels are as many as it reads, and the file's bytes as
    // many as it says.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
        if handle.is_null() {
            return Err("libjpeg-turbo has no memory".into());
        }
        tj::tj3Set(handle, tj::TJPARAM_TJPARAM_QUALITY as c_int, QUALITY);
        tj::tj3Set(handle, tj::TJPARAM_TJPARAM_SUBSAMP as c_int, tj::TJSAMP_TJSAMP_420 as c_int);
        let (width, height) = (WIDTH as c_int, HEIGHT as c_int);
        let rgb = tj::TJPF_TJPF_RGB as c_int;
        let code = tj::tj3Compress8(handle, pixels.as_ptr(), width, 0, height, rgb, &raw mut file, &raw mut len);
        let encoded = (code == 0).then(|| std::slice::from_raw_parts(file, len as usize).to_vec());
        tj::tj3Free(file.cast());
        tj::tj3Destroy(handle);
        encoded.ok_or_else(|| "libjpeg-turbo cannot encode a picture".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_of_the_size_of_imagenets() {
        let files = make(6).unwrap();
        assert_eq!(files.len(), 6);
        let mean = files.iter().map(Vec::len).sum::<usize>() / files.len();
        assert!((100_000..120_000).contains(&mean), "{mean}");
    }
}

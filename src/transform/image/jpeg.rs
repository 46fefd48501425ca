//! JPEG through libjpeg-turbo 3: the binding, and which part of a file it decodes.
//!
//! Only the crop window is decoded. Columns outside it, and rows above it, are entropy-decoded but not transformed. Rows below it are not read (which is why
//! the end-of-image marker is looked for separately). The pixels are bit for bit those of a full decode; the test `crops_equal_the_full_decode` checks that.
//!
//! The transform is the accurate one and chroma is upsampled smoothly, as in Pillow, OpenCV and torchvision. The fast variants were 1 to 4 % faster for whole
//! random resized crops of ImageNet photographs, which is within the noise: Huffman decoding takes 60 % of the time.
#![expect(unsafe_code, reason = "libjpeg-turbo is a C library")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;

use turbojpeg_sys as tj;

use crate::error::{Error, ErrorKind, Result};

use super::limits::{ImageLimits, resize_buffer};
use super::markers::{self, Markers};
use super::window::Rect;

/// Progressive files with more scans are refused: each scan costs a pass over the picture. Encoders write about ten.
const MAX_SCANS: c_int = 100;

/// Pixels to decode to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pixels {
    Gray,
    Rgb,
}

impl Pixels {
    pub(super) fn channels(self) -> usize {
        match self {
            Pixels::Gray => 1,
            Pixels::Rgb => 3,
        }
    }
}

/// A decompressor and its buffers, reused from image to image. One per thread.
#[derive(Default)]
pub(super) struct JpegDecoder {
    handle: Option<Handle>,
    cmyk: Vec<u8>,
    wide: Vec<u16>,
}

/// What to decode: at least `window` of the picture reduced `n` times (1, 2, 4 or 8; 1 for lossless files).
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) encoded: &'a [u8],
    pub(super) markers: &'a Markers,
    pub(super) n: u32,
    pub(super) window: Rect,
    pub(super) pixels: Pixels,
    pub(super) limits: &'a ImageLimits,
}

/// The size of a picture reduced `n` times.
pub(super) fn reduced_size(size: (u32, u32), n: u32) -> (u32, u32) {
    (size.0.div_ceil(n), size.1.div_ceil(n))
}

impl JpegDecoder {
    /// Decodes into `out` and returns the window, in pixels of the reduced picture, that lies there row by row.
    ///
    /// It contains the window asked for, whose pixels equal those of a full decode; pixels outside may differ. For an empty window nothing is decoded.
    pub(super) fn decode(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Result<Rect> {
        if !markers::is_ended(request.encoded, request.markers) {
            return Err(Error::corrupt("the JPEG image is cut off: it has no end-of-image marker"));
        }
        if request.window.is_empty() {
            return Ok(request.window);
        }
        let mut handle = match self.handle.take() {
            Some(handle) => handle,
            None => Handle::new()?,
        };
        // After an error the handle is not used again: libjpeg-turbo may keep half of a header in it.
        let rect = self.decode_with(&mut handle, request, out)?;
        self.handle = Some(handle);
        Ok(rect)
    }

    /// Bytes of the buffers held.
    pub(super) fn bytes(&self) -> usize {
        self.cmyk.capacity() + 2 * self.wide.capacity()
    }

    /// Releases buffers above `keep` bytes.
    pub(super) fn trim(&mut self, keep: usize) {
        if self.bytes() > keep {
            (self.cmyk, self.wide) = Default::default();
        }
    }

    fn decode_with(&mut self, handle: &mut Handle, request: &Request<'_>, out: &mut Vec<u8>) -> Result<Rect> {
        let Request { encoded, markers, n, window, pixels, limits } = *request;
        handle.reset(limits)?;
        let size = (markers.width, markers.height);
        handle.read_header(encoded)?;
        if handle.size() != size {
            return Err(Error::corrupt("the JPEG image's headers contradict each other"));
        }
        let rect = handle.set_window(n, window, size, markers.lossless)?;

        let area = u64::from(rect.width) * u64::from(rect.height);
        let cmyk = handle.is_cmyk();
        let channels = if cmyk { 4 } else { pixels.channels() };
        let sample_bytes = if markers.precision > 8 { 2 } else { 1 };
        let beside = if sample_bytes == 2 || cmyk { channels * sample_bytes } else { 0 };
        limits.check_bytes(area * (pixels.channels() + beside) as u64)?;
        let len = area as usize * channels;
        let out = resize_buffer(out, area as usize * pixels.channels());
        let format = match pixels {
            _ if cmyk => tj::TJPF_TJPF_CMYK,
            Pixels::Gray => tj::TJPF_TJPF_GRAY,
            Pixels::Rgb => tj::TJPF_TJPF_RGB,
        };
        if !cmyk {
            decompress(handle, encoded, markers.precision, rect, format, &mut self.wide, out)?;
        } else {
            let decoded = resize_buffer(&mut self.cmyk, len);
            decompress(handle, encoded, markers.precision, rect, format, &mut self.wide, decoded)?;
            from_cmyk(decoded, pixels, out);
        }
        Ok(rect)
    }
}

/// Decodes to bytes at any precision: of more than eight bits the upper eight are kept; fewer are stretched to 0 to 255.
fn decompress(
    handle: &mut Handle,
    encoded: &[u8],
    precision: u8,
    rect: Rect,
    format: tj::TJPF,
    wide: &mut Vec<u16>,
    out: &mut [u8],
) -> Result<()> {
    if precision <= 8 {
        handle.decompress8(encoded, rect, format, out)?;
        if precision < 8 {
            let top = (1u32 << precision) - 1;
            out.iter_mut().for_each(|v| *v = (u32::from(*v).min(top) * 255 / top) as u8);
        }
        return Ok(());
    }
    let wide = resize_buffer(wide, out.len());
    if precision <= 12 {
        handle.decompress12(encoded, rect, format, wide)?;
    } else {
        handle.decompress16(encoded, rect, format, wide)?;
    }
    let shift = precision - 8;
    out.iter_mut().zip(wide).for_each(|(to, from)| *to = (*from >> shift).min(255) as u8);
    Ok(())
}

/// Converts CMYK as Adobe writes it, inverted, to RGB or grey. Like Pillow, it takes all CMYK files to be so.
fn from_cmyk(cmyk: &[u8], pixels: Pixels, out: &mut [u8]) {
    let times = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    for (from, to) in cmyk.chunks_exact(4).zip(out.chunks_exact_mut(pixels.channels())) {
        let [r, g, b] = [0, 1, 2].map(|c| times(from[c], from[3]));
        match to {
            [gray] => *gray = super::decode::luma(r, g, b),
            [red, green, blue] => (*red, *green, *blue) = (r, g, b),
            _ => unreachable!("pixels have one or three channels"),
        }
    }
}

/// An owned TurboJPEG instance.
struct Handle(NonNull<c_void>);

// SAFETY: an instance is plain memory with no tie to the thread that made it; only its error text may be thread-local, and
// that is read right after the call that set it, in the same `&mut self` method.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from tj3Init and is destroyed once, here.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) }
    }
}

impl Handle {
    fn new() -> Result<Self> {
        // SAFETY: tj3Init takes any value and answers null when it fails.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let handle = NonNull::new(handle)
            .ok_or_else(|| Error::new(ErrorKind::Memory, "libjpeg-turbo could not allocate a decompressor"))?;
        let mut handle = Self(handle);
        handle.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)?;
        // Colour profiles are not used; by default each one is copied.
        handle.set(tj::TJPARAM_TJPARAM_SAVEMARKERS, 0)?;
        Ok(handle)
    }

    fn set(&mut self, param: tj::TJPARAM, value: c_int) -> Result<()> {
        // SAFETY: the handle is live; unknown parameters and values are answered with -1.
        match unsafe { tj::tj3Set(self.0.as_ptr(), param as c_int, value) } {
            0 => Ok(()),
            _ => Err(self.error()),
        }
    }

    fn get(&self, param: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is live; unknown parameters are answered with -1.
        unsafe { tj::tj3Get(self.0.as_ptr(), param as c_int) }
    }

    /// Forgets the last image's window and scale, and sets the limits.
    fn reset(&mut self, limits: &ImageLimits) -> Result<()> {
        self.set_scale_and_window(1, Rect { x: 0, y: 0, width: 0, height: 0 })?;
        let cap = |n: u64| c_int::try_from(n).unwrap_or(c_int::MAX);
        self.set(tj::TJPARAM_TJPARAM_MAXPIXELS, cap(limits.max_pixels.max(1)))?;
        self.set(tj::TJPARAM_TJPARAM_MAXMEMORY, cap(limits.max_bytes >> 20).max(1))
    }

    fn set_scale_and_window(&mut self, n: u32, rect: Rect) -> Result<()> {
        let region =
            tj::tjregion { x: rect.x as c_int, y: rect.y as c_int, w: rect.width as c_int, h: rect.height as c_int };
        // SAFETY: the handle is live, both values are passed by copy and checked by the library.
        let set = unsafe {
            tj::tj3SetScalingFactor(self.0.as_ptr(), tj::tjscalingfactor { num: 1, denom: n as c_int }) == 0
                && tj::tj3SetCroppingRegion(self.0.as_ptr(), region) == 0
        };
        if set { Ok(()) } else { Err(self.error()) }
    }

    fn read_header(&mut self, encoded: &[u8]) -> Result<()> {
        // SAFETY: the handle is live; the library reads at most `len` bytes and keeps no pointer that a later call follows
        // (each decompression starts with a source of its own).
        let answer = unsafe { tj::tj3DecompressHeader(self.0.as_ptr(), encoded.as_ptr(), encoded.len() as tj::size_t) };
        self.judge(answer)
    }

    fn size(&self) -> (u32, u32) {
        let get = |param| u32::try_from(self.get(param)).unwrap_or(0);
        (get(tj::TJPARAM_TJPARAM_JPEGWIDTH), get(tj::TJPARAM_TJPARAM_JPEGHEIGHT))
    }

    fn is_cmyk(&self) -> bool {
        let space = self.get(tj::TJPARAM_TJPARAM_COLORSPACE);
        space == tj::TJCS_TJCS_CMYK as c_int || space == tj::TJCS_TJCS_YCCK as c_int
    }

    /// Sets scale and window for the image whose header was read, and returns the window that will be decoded. That is `window`, widened to where the library
    /// can start, and to what makes its edges equal to a full decode.
    fn set_window(&mut self, n: u32, window: Rect, size: (u32, u32), lossless: bool) -> Result<Rect> {
        let whole = Rect::whole(reduced_size(size, n));
        let sampling = self.get(tj::TJPARAM_TJPARAM_SUBSAMP);
        // Columns of an iMCU for each of the library's subsamplings, 4:4:4 to 4:4:1; the rest cannot be cut.
        let unit = match usize::try_from(sampling).ok().and_then(|s| [8, 16, 16, 8, 8, 32, 8].get(s).copied()) {
            Some(unit) if !lossless => (unit / n).max(1),
            _ => {
                self.set_scale_and_window(n, Rect { x: 0, y: 0, width: 0, height: 0 })?;
                return Ok(whole);
            }
        };
        // Chroma at the cut is upsampled without its neighbour, which spoils the outermost pixels (one at scale 1; two are
        // taken): so start and end that much further out.
        const SPOILED: u32 = 2;
        let x = window.x.saturating_sub(SPOILED) / unit * unit;
        let right = (window.right() + SPOILED).min(whole.width);
        let rect = Rect { x, width: right - x, ..window };
        self.set_scale_and_window(n, rect)?;
        Ok(rect)
    }

    fn decompress8(&mut self, encoded: &[u8], rect: Rect, format: tj::TJPF, out: &mut [u8]) -> Result<()> {
        let pitch = self.check_room(rect, format, out.len());
        // SAFETY: the library writes `rect.height` rows of `pitch` bytes, and `check_room` has checked that `out` has them; it
        // reads at most `len` bytes of the source. `rect` is the window set in `set_window` for this very source.
        let answer = unsafe {
            tj::tj3Decompress8(
                self.0.as_ptr(),
                encoded.as_ptr(),
                encoded.len() as tj::size_t,
                out.as_mut_ptr(),
                pitch,
                format as c_int,
            )
        };
        self.judge(answer)
    }

    fn decompress12(&mut self, encoded: &[u8], rect: Rect, format: tj::TJPF, out: &mut [u16]) -> Result<()> {
        let pitch = self.check_room(rect, format, out.len());
        // SAFETY: as in `decompress8`, in samples of two bytes. They are 0 to 4095, so the sign of the type is without meaning.
        let answer = unsafe {
            tj::tj3Decompress12(
                self.0.as_ptr(),
                encoded.as_ptr(),
                encoded.len() as tj::size_t,
                out.as_mut_ptr().cast(),
                pitch,
                format as c_int,
            )
        };
        self.judge(answer)
    }

    fn decompress16(&mut self, encoded: &[u8], rect: Rect, format: tj::TJPF, out: &mut [u16]) -> Result<()> {
        let pitch = self.check_room(rect, format, out.len());
        // SAFETY: as in `decompress8`, in samples of two bytes.
        let answer = unsafe {
            tj::tj3Decompress16(
                self.0.as_ptr(),
                encoded.as_ptr(),
                encoded.len() as tj::size_t,
                out.as_mut_ptr(),
                pitch,
                format as c_int,
            )
        };
        self.judge(answer)
    }

    /// The samples of a row; panics unless `samples` holds all rows.
    fn check_room(&self, rect: Rect, format: tj::TJPF, samples: usize) -> c_int {
        let channels = match format {
            tj::TJPF_TJPF_GRAY => 1,
            tj::TJPF_TJPF_RGB => 3,
            _ => 4,
        };
        let pitch = rect.width as usize * channels;
        assert!(samples >= pitch * rect.height as usize, "the buffer was sized for the window");
        c_int::try_from(pitch).expect("at most 65535 pixels of four samples")
    }

    /// Returns an error, unless the library succeeded or its warning is one that leaves the pixels whole.
    ///
    /// The library reports its first warning only. Extra bytes between segments are common in real files. The other warnings (bad codes, data that ends early)
    /// mean missing or grey pixels.
    fn judge(&self, answer: c_int) -> Result<()> {
        const HARMLESS: [&str; 5] = [
            "extraneous bytes before marker",
            "Unknown Adobe color transform",
            "unknown JFIF revision",
            "Invalid SOS parameters for sequential",
            "bad ICC marker",
        ];
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: the handle is live.
        let warning = unsafe { tj::tj3GetErrorCode(self.0.as_ptr()) } == tj::TJERR_TJERR_WARNING as c_int;
        if warning && HARMLESS.iter().any(|text| self.message().contains(text)) {
            return Ok(());
        }
        Err(self.error())
    }

    fn message(&self) -> String {
        // SAFETY: the handle is live; the text is a C string that stays as it is until the next call, and is copied here.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) };
        text.to_string_lossy().into_owned()
    }

    fn error(&self) -> Error {
        Error::corrupt(format!("the JPEG image cannot be decoded: {}", self.message()))
    }
}

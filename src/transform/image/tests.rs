//! Whole images: golden files compared with Pillow's pixels, damage, limits, and randomness. `tests/data/images/README.md` says how the files were made.

use super::*;
use crate::ErrorKind;

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The expected picture: width, height, RGB bytes.
fn expected(name: &str) -> (u32, u32, Vec<u8>) {
    let picture = ::image::load_from_memory(&golden(&format!("{name}.expected.png"))).unwrap().to_rgb8();
    (picture.width(), picture.height(), picture.into_raw())
}

fn decode(image: &Image, encoded: &[u8], key: u64) -> Result<Vec<u8>> {
    let (dtype, shape) = image.output()?;
    // Starts at every value, so that a byte left out shows.
    let mut out = vec![0xa5; shape.iter().product::<usize>() * dtype.size().unwrap()];
    image.decode_into(encoded, Key::new(key), &mut out, &mut Scratch::default())?;
    Ok(out)
}

fn decode_f32(image: &Image, encoded: &[u8], key: u64) -> Vec<f32> {
    let (_, shape) = image.output().unwrap();
    let mut out = vec![f32::NAN; shape.iter().product()];
    let mut scratch = Scratch::default();
    image.decode_into(encoded, Key::new(key), bytemuck::cast_slice_mut(&mut out), &mut scratch).unwrap();
    out
}

/// The whole picture as RGB bytes, pixel after pixel.
fn whole(width: u32, height: u32) -> Image {
    Image::rgb().resize(height, width).layout(Layout::Nhwc)
}

/// The largest and the mean absolute difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (differences.max().unwrap_or(0), sum as f64 / a.len() as f64)
}

#[track_caller]
fn assert_close(name: &str, got: &[u8], want: &[u8], max: u8, mean: f64) {
    let (worst, average) = difference(got, want);
    assert!(worst <= max && average <= mean, "{name}: differs by up to {worst}, {average:.3} on average");
}

/// Lossless formats: exact, unless a second number allows for rounding.
const LOSSLESS: &[&str] = &[
    "rgb8.png",
    "gray8.png",
    "rgba8.png",
    "la8.png",
    "gray1.png",
    "gray2.png",
    "gray4.png",
    "palette4.png",
    "palette8-trns.png",
    "rgb8-trns.png",
    "interlaced.png",
    "rgb16.png",
    "gray16.png",
    "rgba16.png",
    "animated.gif",
    "lossless.webp",
    "animated.webp",
    "rgb.bmp",
    "palette.bmp",
    "lzw.tiff",
    "gray.tiff",
];

#[test]
fn lossless_formats_hold_the_pixels_that_pillow_reads() {
    for name in LOSSLESS {
        let (width, height, want) = expected(name);
        let got = decode(&whole(width, height), &golden(name), 0).unwrap();
        assert_close(name, &got, &want, 0, 0.0);
    }
}

#[test]
fn lossy_webp_is_near_what_pillow_reads() {
    // Chroma is upsampled by another implementation than libwebp's.
    let (width, height, want) = expected("lossy.webp");
    assert_close("lossy.webp", &decode(&whole(width, height), &golden("lossy.webp"), 0).unwrap(), &want, 3, 0.5);
}

#[test]
fn gray_is_the_luma_of_the_picture() {
    for name in ["rgb8.png", "gray8.png", "rgba16.png", "lzw.tiff", "palette4.png"] {
        let (width, height, want) = expected(name);
        let want: Vec<u8> = want.chunks_exact(3).map(|p| decode::luma(p[0], p[1], p[2])).collect();
        let got = decode(&Image::gray().resize(height, width), &golden(name), 0).unwrap();
        assert_close(name, &got, &want, 0, 0.0);
    }
}

#[test]
fn headers_are_read_without_decoding() {
    for (name, format, channels, bit_depth) in [
        ("rgb16.png", ImageFormat::Png, 3, 16),
        ("gray1.png", ImageFormat::Png, 1, 1),
        ("la8.png", ImageFormat::Png, 2, 8),
        ("animated.gif", ImageFormat::Gif, 4, 8),
        ("lossless.webp", ImageFormat::WebP, 3, 8),
        ("rgb.bmp", ImageFormat::Bmp, 3, 8),
        ("lzw.tiff", ImageFormat::Tiff, 3, 8),
        ("rgb-420.jpg", ImageFormat::Jpeg, 3, 8),
        ("gray.jpg", ImageFormat::Jpeg, 1, 8),
        ("cmyk.jpg", ImageFormat::Jpeg, 4, 8),
        ("twelve-bit.jpg", ImageFormat::Jpeg, 3, 12),
    ] {
        let info = probe(&golden(name)).unwrap();
        assert_eq!((info.format, info.channels, info.bit_depth), (format, channels, bit_depth), "{name}");
        assert_eq!((info.width, info.height, info.orientation), (45, 35, 1), "{name}");
    }
    for orientation in 1..=8 {
        let info = probe(&golden(&format!("exif-{orientation}.jpg"))).unwrap();
        assert_eq!((info.width, info.height, info.orientation), (24, 16, orientation));
    }
}

#[test]
fn layouts_and_dtypes_hold_the_same_picture() {
    let encoded = golden("rgb8.png");
    let base = Image::rgb().resize(20, 30).horizontal_flip(1.0);
    let interleaved = decode(&base.clone().layout(Layout::Nhwc), &encoded, 0).unwrap();
    let planes = decode(&base, &encoded, 0).unwrap();
    let normalized = decode_f32(&base.clone().normalize(IMAGENET_MEAN, IMAGENET_STD), &encoded, 0);
    let unit = decode_f32(&base.to_f32().layout(Layout::Nhwc), &encoded, 0);
    for p in 0..600 {
        for c in 0..3 {
            let byte = interleaved[3 * p + c];
            assert_eq!(planes[600 * c + p], byte);
            assert_eq!(unit[3 * p + c], f32::from(byte) / 255.0);
            assert_eq!(normalized[600 * c + p], (f32::from(byte) / 255.0 - IMAGENET_MEAN[c]) / IMAGENET_STD[c]);
        }
    }
}

#[test]
fn a_flip_mirrors_the_pixels() {
    let (encoded, image) = (golden("rgb8.png"), whole(45, 35));
    let plain = decode(&image, &encoded, 0).unwrap();
    let flipped = decode(&image.horizontal_flip(1.0), &encoded, 0).unwrap();
    for (row, mirrored) in plain.chunks(135).zip(flipped.chunks(135)) {
        assert!(row.chunks(3).eq(mirrored.chunks(3).rev()));
    }
}

#[test]
fn a_pad_behind_the_rest_leaves_the_picture_as_it_is() {
    let encoded = golden("rgb8.png");
    let fill = [114, 0, 255];
    for before in [
        Image::rgb().random_resized_crop(24, 31),
        Image::rgb().random_resized_crop(24, 31).interpolation(Interpolation::Bicubic),
        Image::rgb().random_crop(24, 31).horizontal_flip(0.5),
        Image::rgb().resize_longer(31).horizontal_flip(0.5),
    ] {
        for key in 0..8 {
            let fixed = if before.fixed_size().is_some() { before.clone() } else { before.clone().center_crop(24, 31) };
            let plain = decode_f32(&fixed.normalize(IMAGENET_MEAN, IMAGENET_STD), &encoded, key);
            let padded = before.clone().pad_to(30, 40).fill(fill).normalize(IMAGENET_MEAN, IMAGENET_STD);
            for (i, value) in decode_f32(&padded, &encoded, key).into_iter().enumerate() {
                let (c, y, x) = (i / 1200, i % 1200 / 40, i % 40);
                let inside = (3..27).contains(&y) && (4..35).contains(&x);
                let around = (f32::from(fill[c]) / 255.0 - IMAGENET_MEAN[c]) / IMAGENET_STD[c];
                let expected = if inside { plain[c * 24 * 31 + (y - 3) * 31 + x - 4] } else { around };
                assert_eq!(value, expected, "{padded}: channel {c}, row {y}, column {x}");
            }
        }
    }
}

#[test]
fn a_damaged_picture_is_an_error_though_nothing_of_it_is_seen() {
    let image = Image::rgb().pad(60).fill([1, 2, 3]).random_crop(2, 2).layout(Layout::Nhwc);
    for name in ["rgb8.png", "gray8.png", "animated.gif", "rgb-420.jpg"] {
        let encoded = golden(name);
        if name.ends_with("jpg") && cfg!(not(feature = "jpeg")) {
            continue;
        }
        let unseen = |key: &u64| decode(&image, &encoded, *key).unwrap() == [1, 2, 3].repeat(4);
        let key = (0..).find(unseen).expect("there is always another key");
        let error = decode(&image, &encoded[..encoded.len() / 2], key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
    }
}

#[test]
fn colours_are_changed_once_the_picture_is_finished_wherever_that_is_declared() {
    let encoded = golden("rgb8.png");
    let mut changed = 0;
    for (key, gray, dtype, layout) in (0..12).flat_map(|key| {
        let kinds = [
            (Dtype::U8, Layout::Nchw),
            (Dtype::U8, Layout::Nhwc),
            (Dtype::F32, Layout::Nchw),
            (Dtype::F32, Layout::Nhwc),
        ];
        kinds.into_iter().flat_map(move |(dtype, layout)| [false, true].map(|gray| (key, gray, dtype, layout)))
    }) {
        let start = || if gray { Image::gray() } else { Image::rgb() };
        let geometry = |image: Image| image.random_resized_crop(9, 13).horizontal_flip(0.5).pad_to(12, 14);
        let colors = |image: Image| {
            image.color_jitter(0.8, 0.8, 0.8, 0.2).jitter_probability(0.8).random_grayscale(0.2).exif_orientation(true)
        };
        let finish = |image: Image| match (dtype, gray) {
            (Dtype::U8, _) => image,
            (_, true) => image.normalize([0.5], [0.25]),
            (_, false) => image.normalize(IMAGENET_MEAN, IMAGENET_STD),
        };
        let first = finish(colors(geometry(start()))).layout(layout);
        let last = geometry(finish(colors(start()))).layout(layout);
        assert_eq!(first.to_string(), last.to_string());
        let got = decode(&first, &encoded, key).unwrap();
        assert_eq!(got, decode(&last, &encoded, key).unwrap());

        // The same geometry in planes, the same changes, then the slot.
        let mut planes = decode(&geometry(start()), &encoded, key).unwrap();
        let mut changes = Vec::new();
        color::draw(&first.tints, Key::new(key), &mut changes);
        color::apply(&changes, &mut planes, first.channels());
        changed += u32::from(!changes.is_empty());
        let (channels, pixels) = (first.channels(), 12 * 14);
        let floats = matches!(dtype, Dtype::F32).then(|| bytemuck::pod_collect_to_vec::<u8, f32>(&got));
        for (i, &byte) in planes.iter().enumerate() {
            let (c, pixel) = (i / pixels, i % pixels);
            let at = if layout == Layout::Nchw { i } else { pixel * channels + c };
            let (mean, std) = if gray { (0.5, 0.25) } else { (IMAGENET_MEAN[c], IMAGENET_STD[c]) };
            match &floats {
                Some(floats) => assert_eq!(floats[at], (f32::from(byte) / 255.0 - mean) / std, "{first}, {i}"),
                None => assert_eq!(got[at], byte, "{first}, {i}"),
            }
        }
    }
    assert!((40..90).contains(&changed), "{changed} of 96");
}

#[test]
fn colours_leave_the_draws_of_the_geometry_as_they_were() {
    let encoded = golden("rgb8.png");
    let plain = Image::rgb().random_crop(9, 9).horizontal_flip(0.5).random_crop(5, 5);
    // A jitter that is declared and never applied.
    let jittered = Image::rgb()
        .color_jitter(0.8, 0.8, 0.8, 0.2)
        .jitter_probability(0.0)
        .random_crop(9, 9)
        .random_grayscale(0.0)
        .horizontal_flip(0.5)
        .random_crop(5, 5);
    for key in 0..20 {
        assert_eq!(decode(&plain, &encoded, key).unwrap(), decode(&jittered, &encoded, key).unwrap());
    }
}

#[test]
fn limits_hold_for_padded_pictures() {
    let limits = ImageLimits { max_pixels: 45 * 45, ..ImageLimits::default() };
    let image = |margin| Image::rgb().pad(margin).center_crop(5, 5).limits(limits);
    assert!(decode(&image(2), &golden("rgb8.png"), 0).is_ok());
    let error = decode(&image(5), &golden("rgb8.png"), 0).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("55 x 45 pixels"), "{error}");
    // What the second stage sees is held in memory.
    let limits = ImageLimits { max_bytes: 1 << 20, ..ImageLimits::default() };
    let error = decode(&Image::rgb().pad(400).resize(5, 5).limits(limits), &golden("rgb8.png"), 0).unwrap_err();
    assert!(error.to_string().contains("would hold 2116725 bytes"), "{error}");
}

#[test]
fn descriptions_tell_pipelines_apart_and_stay_what_they_were() {
    // States hold digests of them.
    let all = Image::rgb()
        .exif_orientation(true)
        .resize_shorter(256)
        .random_crop(224, 224)
        .random_resized_crop(20, 30)
        .horizontal_flip(0.25)
        .center_crop(10, 12)
        .interpolation(Interpolation::Lanczos3)
        .antialias(false);
    assert_eq!(
        all.to_string(),
        "rgb, exif_orientation, resize_shorter 256, random_crop 224x224, random_resized_crop 20x30 (area 0.08 to 1, ratio 0.750 to \
         1.333), horizontal_flip 0.25, center_crop 10x12, lanczos3 without antialias, u8 [3, 10, 12]"
    );
    assert_eq!(
        Image::gray().resize(8, 8).normalize([0.5], [0.25]).to_string(),
        "gray, resize 8x8, normalize [0.5] [0.25], bilinear, f32 [1, 8, 8]"
    );
    let letterbox = Image::rgb().resize_longer(640).pad_to(640, 640).fill([114, 114, 114]);
    assert_eq!(
        letterbox.to_string(),
        "rgb, resize_longer 640, pad_to 640x640 (fill [114, 114, 114]), bilinear, u8 [3, 640, 640]"
    );
    let padded = Image::gray().pad(4).random_crop(32, 32);
    assert_eq!(padded.to_string(), "gray, pad 4, random_crop 32x32, bilinear, u8 [1, 32, 32]");
    assert_eq!(
        Image::gray().resize(8, 8).pad(2).fill([9]).to_string(),
        "gray, resize 8x8, pad 2 (fill [9]), bilinear, u8 [1, 12, 12]"
    );
    let jittered =
        Image::rgb().color_jitter(0.4, 0.4, 0.2, 0.1).jitter_probability(0.8).random_grayscale(0.2).resize(8, 8);
    assert_eq!(
        jittered.to_string(),
        "rgb, resize 8x8, color_jitter 0.4 0.4 0.2 0.1 (probability 0.8), random_grayscale 0.2, bilinear, u8 [3, 8, 8]"
    );
}

#[test]
fn two_resizes_are_done_one_after_the_other() {
    let encoded = golden("rgb8.png");
    let both = decode(&Image::rgb().resize(8, 8).resize(32, 32).layout(Layout::Nhwc), &encoded, 0).unwrap();
    let small = decode(&Image::rgb().resize(8, 8).layout(Layout::Nhwc), &encoded, 0).unwrap();
    let small = ::image::RgbImage::from_raw(8, 8, small).unwrap();
    let mut between = std::io::Cursor::new(Vec::new());
    small.write_to(&mut between, ::image::ImageFormat::Png).unwrap();
    let after = decode(&Image::rgb().resize(32, 32).layout(Layout::Nhwc), between.get_ref(), 0).unwrap();
    assert_eq!(both, after);
}

#[test]
fn the_result_depends_on_the_key_alone() {
    let files = ["rgb8.png", "gray8.png", "animated.gif", "rgb.bmp"].map(golden);
    let image = Image::rgb().random_resized_crop(9, 13).horizontal_flip(0.5);
    let alone: Vec<_> = (0..40).map(|n| decode(&image, &files[n as usize % 4], n).unwrap()).collect();
    let mut scratch = Scratch::default();
    for n in (0..40).rev() {
        let mut out = vec![0; 3 * 9 * 13];
        image.decode_into(&files[n as usize % 4], Key::new(n), &mut out, &mut scratch).unwrap();
        assert_eq!(out, alone[n as usize], "{n}");
    }
    assert_ne!(alone[0], alone[4]);
}

#[test]
fn every_mistake_is_reported_at_once_with_what_mends_it() {
    let error = Image::gray()
        .scale(0.5..=1.0)
        .resize(0, 5)
        .center_crop(9, 9)
        .horizontal_flip(1.5)
        .random_resized_crop(8, 8)
        .scale(0.5..=2.0)
        .fill([1])
        .center_crop(6, 6)
        .pad_to(5, 9)
        .fill([1, 2, 3])
        .pad(16_380)
        .resize_shorter(7)
        .jitter_probability(0.5)
        .color_jitter(0.1, -0.2, 0.3, 0.1)
        .color_jitter(0.4, f64::INFINITY, 0.6, 0.7)
        .jitter_probability(1.5)
        .random_grayscale(-1.0)
        .normalize(IMAGENET_MEAN, [0.0, 1.0, 1.0])
        .to_u8()
        .validate()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    for part in [
        "right after .random_resized_crop",
        ".resize(0, 5)",
        ".center_crop(9, 9)",
        ".horizontal_flip(1.5)",
        ".scale(0.5..=2)",
        ".fill(..) belongs right after .pad(..)",
        ".pad_to(5, 9) is smaller than the 6 x 6",
        ".fill(..) has 3 channels, the image 1",
        ".pad(16380): sides",
        ".jitter_probability(..) belongs behind",
        ".color_jitter(0.1, -0.2, 0.3, 0.1): strengths",
        ".color_jitter(0.4, inf, 0.6, 0.7): strengths",
        ".jitter_probability(1.5)",
        ".random_grayscale(-1)",
        "end with .resize(h, w)",
        "one mean and one deviation a channel",
        "not 0",
        "leave out .to_u8()",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert!(Image::rgb().output().is_err());
    assert!(Image::rgb().resize(1, 1).decode_into(&[], Key::new(0), &mut [0; 2], &mut Scratch::default()).is_err());
}

#[test]
fn what_validation_refuses_is_not_decoded() {
    for image in [
        Image::rgb().resize(5, 5).normalize([0.5], [0.5]),
        Image::rgb().resize(5, 5).normalize(IMAGENET_MEAN, IMAGENET_STD).to_u8(),
        Image::rgb().resize(0, 5),
    ] {
        for bytes in [0, 75, 300] {
            let mut out = vec![0f32; bytes / 4 + 1];
            let out = &mut bytemuck::cast_slice_mut(&mut out)[..bytes];
            let error = image.decode_into(&golden("rgb8.png"), Key::new(0), out, &mut Scratch::default()).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && image.validate().is_err(), "{image}: {error}");
        }
    }
}

#[test]
fn what_is_no_image_says_so() {
    let image = Image::rgb().resize(4, 4);
    for bytes in
        [&b""[..], b"\0\0", b"not an image", b"\xff\xd8", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]
    {
        assert_eq!(decode(&image, bytes, 0).unwrap_err().kind(), ErrorKind::Corrupt, "{bytes:?}");
        assert!(probe(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn declared_bombs_are_refused_before_anything_is_allocated() {
    let image = Image::rgb().resize(4, 4);
    let mut png = golden("rgb8.png");
    png[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let crc = {
        let mut hasher = flate2::Crc::new();
        hasher.update(&png[12..29]);
        hasher.sum()
    };
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut bmp = golden("rgb.bmp");
    bmp[18..26].copy_from_slice(&[0x30, 0x75, 0, 0, 0x30, 0x75, 0, 0]);
    let mut jpeg = golden("rgb-420.jpg");
    // The frame header: marker, length, precision, then height and width.
    let at = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    jpeg[at..at + 4].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    for bytes in [png, bmp, jpeg] {
        let mut scratch = Scratch::default();
        let error = image.decode_into(&bytes, Key::new(0), &mut [0; 48], &mut scratch).unwrap_err();
        let jpeg_without_decoder = bytes[0] == 0xff && cfg!(not(feature = "jpeg"));
        let kind = if jpeg_without_decoder { ErrorKind::Config } else { ErrorKind::Corrupt };
        assert!(error.kind() == kind && scratch.bytes() < 4096, "{error}");
        assert_eq!(probe(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// A GIF of 2 x 3 pixels whose palette has two colours and whose pixels are all of the fourth.
const BEYOND_THE_PALETTE: &[u8] =
    b"GIF89a\x02\0\x03\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x02\0\x03\0\0\x02\x04\xdc\xb8\x71\x2b\0;";

#[test]
fn pixels_without_a_colour_are_not_those_of_the_image_before() {
    let image = Image::rgb().resize(3, 2);
    let mut scratch = Scratch::default();
    for before in ["rgb8.png", "rgba8.png"] {
        image.decode_into(&golden(before), Key::new(0), &mut [0; 18], &mut scratch).unwrap();
        let mut out = [7; 18];
        image.decode_into(BEYOND_THE_PALETTE, Key::new(0), &mut out, &mut scratch).unwrap();
        assert_eq!(out, [0; 18]);
    }
}

#[test]
fn every_prefix_of_a_png_is_an_error_or_the_image() {
    let encoded = golden("rgb8.png");
    let image = whole(45, 35);
    let want = decode(&image, &encoded, 0).unwrap();
    let mut decoded = 0;
    for end in 0..encoded.len() {
        if let Ok(got) = decode(&image, &encoded[..end], 0) {
            assert_eq!(got, want, "{end}");
            decoded += 1;
        }
    }
    // Only what follows the pixel data may be missing: the checksum of the last IDAT, and IEND.
    assert!(decoded <= 24, "{decoded}");
}

#[test]
fn damaged_files_end_in_an_error_or_in_pixels() {
    let image = Image::rgb().random_resized_crop(8, 8);
    let mut scratch = Scratch::default();
    let mut out = vec![0; 3 * 8 * 8];
    let names =
        ["palette4.png", "interlaced.png", "animated.gif", "lossy.webp", "lossless.webp", "palette.bmp", "gray.tiff"];
    for name in names {
        let encoded = golden(name);
        for end in 0..encoded.len().min(1500) {
            let _ = image.decode_into(&encoded[..end], Key::new(1), &mut out, &mut scratch);
        }
        for at in 0..encoded.len().min(1500) {
            let mut damaged = encoded.clone();
            damaged[at] ^= 1 << (at % 8);
            let _ = image.decode_into(&damaged, Key::new(1), &mut out, &mut scratch);
            let _ = probe(&damaged);
        }
    }
}

#[cfg(not(feature = "jpeg"))]
#[test]
fn without_the_feature_a_jpeg_is_an_error_that_names_it() {
    let error = decode(&Image::rgb().resize(4, 4), &golden("gray.jpg"), 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("--features jpeg"), "{error}");
}

#[cfg(feature = "jpeg")]
mod jpeg {
    use super::super::jpeg::{JpegDecoder, Pixels, Request, reduced_size};
    use super::super::markers;
    use super::*;

    #[test]
    fn every_variant_of_jpeg_is_near_what_pillow_reads() {
        // Pillow has the same library, so ordinary files agree bit for bit; CMYK goes through another rounding, 12-bit and
        // lossy files are compared with the picture before encoding.
        for (name, max, mean) in [
            ("rgb-420.jpg", 0, 0.0),
            ("rgb-422.jpg", 0, 0.0),
            ("rgb-444.jpg", 0, 0.0),
            ("gray.jpg", 0, 0.0),
            ("progressive.jpg", 0, 0.0),
            ("arithmetic.jpg", 0, 0.0),
            ("restarts.jpg", 0, 0.0),
            ("cmyk.jpg", 1, 0.5),
            ("ycck.jpg", 1, 0.5),
            ("twelve-bit.jpg", 12, 1.5),
            ("lossless.jpg", 0, 0.0),
            ("lossless-16-bit.jpg", 0, 0.0),
        ] {
            let (width, height, want) = expected(name);
            let got = decode(&whole(width, height), &golden(name), 0).unwrap();
            assert_close(name, &got, &want, max, mean);
        }
    }

    #[test]
    fn exif_orientations_turn_the_picture_when_asked() {
        for orientation in 1..=8 {
            let name = format!("exif-{orientation}.jpg");
            let (width, height, want) = expected(&name);
            let got = decode(&whole(width, height).exif_orientation(true), &golden(&name), 0).unwrap();
            assert_close(&name, &got, &want, 0, 0.0);
            let stored = decode(&whole(24, 16), &golden(&name), 0).unwrap();
            assert_close(&name, &stored, &expected("exif-1.jpg").2, 0, 0.0);
        }
    }

    #[test]
    fn resizes_are_near_those_of_pillow() {
        let encoded = golden("large.jpg");
        let base = || Image::rgb().layout(Layout::Nhwc).scaled_decoding(false);
        for (name, image) in [
            ("large.resize-32x48-nearest", base().resize(32, 48).interpolation(Interpolation::Nearest)),
            ("large.resize-32x48-bilinear", base().resize(32, 48)),
            ("large.resize-32x48-bicubic", base().resize(32, 48).interpolation(Interpolation::Bicubic)),
            ("large.resize-32x48-lanczos3", base().resize(32, 48).interpolation(Interpolation::Lanczos3)),
            ("large.resize-90x230-bilinear", base().resize(90, 230)),
            ("large.shorter-64-center-56", base().resize_shorter(64).center_crop(56, 56)),
            ("large.crop-70x90-resize-40x40", base().center_crop(70, 90).resize(40, 40)),
        ] {
            assert_close(name, &decode(&image, &encoded, 0).unwrap(), &expected(name).2, 1, 0.2);
        }
    }

    #[test]
    fn scaled_decoding_stays_near_the_full_one() {
        let encoded = golden("large.jpg");
        for side in [75, 37, 18] {
            let image = Image::rgb().resize(side, side);
            let full = decode(&image.clone().scaled_decoding(false), &encoded, 0).unwrap();
            let scaled = decode(&image, &encoded, 0).unwrap();
            assert_ne!(full, scaled, "{side}");
            assert_close(&format!("side {side}"), &scaled, &full, 40, 2.0);
        }
    }

    #[test]
    fn crops_equal_the_full_decode() {
        let mut decoder = JpegDecoder::default();
        let limits = ImageLimits::default();
        let (mut full, mut part) = (Vec::new(), Vec::new());
        for name in
            ["rgb-420.jpg", "rgb-422.jpg", "rgb-444.jpg", "gray.jpg", "progressive.jpg", "restarts.jpg", "large.jpg"]
        {
            let encoded = golden(name);
            let markers = markers::read(&encoded).unwrap();
            for n in [1, 2, 4, 8] {
                let size = reduced_size((markers.width, markers.height), n);
                let whole = Rect::whole(size);
                let request = Request {
                    encoded: &encoded,
                    markers: &markers,
                    n,
                    window: whole,
                    pixels: Pixels::Rgb,
                    limits: &limits,
                };
                assert_eq!(decoder.decode(&request, &mut full).unwrap(), whole);
                let step = if name == "large.jpg" { 7 } else { 3 };
                for x in (0..size.0).step_by(step) {
                    for y in (0..size.1).step_by(step) {
                        for (width, height) in [(1, 1), (17, 9), (33, 31)] {
                            let window = Rect { x, y, width: width.min(size.0 - x), height: height.min(size.1 - y) };
                            let held = decoder.decode(&Request { window, ..request }, &mut part).unwrap();
                            assert!(held.contains(window));
                            for row in window.y..window.bottom() {
                                let at = |held: Rect| (((row - held.y) * held.width + window.x - held.x) * 3) as usize;
                                let length = window.width as usize * 3;
                                assert_eq!(
                                    part[at(held)..][..length],
                                    full[at(whole)..][..length],
                                    "{name}, 1/{n}, {window:?}, row {row}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gray_of_a_colour_jpeg_is_its_luma() {
        let (width, height, rgb) = expected("rgb-444.jpg");
        let want: Vec<u8> = rgb.chunks_exact(3).map(|p| decode::luma(p[0], p[1], p[2])).collect();
        let got = decode(&Image::gray().resize(height, width), &golden("rgb-444.jpg"), 0).unwrap();
        assert_close("rgb-444.jpg", &got, &want, 3, 0.6);
        let got = decode(&Image::gray().resize(35, 45), &golden("cmyk.jpg"), 0).unwrap();
        let want: Vec<u8> = expected("cmyk.jpg").2.chunks_exact(3).map(|p| decode::luma(p[0], p[1], p[2])).collect();
        assert_close("cmyk.jpg", &got, &want, 1, 0.5);
    }

    #[test]
    fn every_prefix_of_a_jpeg_is_an_error() {
        for name in ["rgb-420.jpg", "progressive.jpg", "restarts.jpg", "gray.jpg", "exif-6.jpg"] {
            let encoded = golden(name);
            for image in [whole(45, 35), Image::rgb().random_resized_crop(8, 8)] {
                for end in 0..encoded.len() {
                    let error = decode(&image, &encoded[..end], 0).err();
                    assert!(error.is_some_and(|e| e.kind() == ErrorKind::Corrupt), "{name} cut at {end}");
                }
            }
        }
    }

    #[test]
    fn pixel_data_that_ends_early_is_an_error_even_with_an_end_marker() {
        for name in ["rgb-420.jpg", "progressive.jpg", "large.jpg"] {
            let mut encoded = golden(name);
            encoded.truncate(encoded.len() * 3 / 4);
            encoded.extend([0xff, 0xd9]);
            let error = decode(&whole(45, 35), &encoded, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        }
    }

    #[test]
    fn bytes_after_the_image_do_no_harm() {
        let mut encoded = golden("rgb-420.jpg");
        let want = decode(&whole(45, 35), &encoded, 0).unwrap();
        encoded.extend([0, 0, 1, 2, 3]);
        assert_eq!(decode(&whole(45, 35), &encoded, 0).unwrap(), want);
        let end = encoded.len() - 7;
        encoded.splice(end..end, [0; 3]);
        assert_eq!(decode(&whole(45, 35), &encoded, 0).unwrap(), want);
    }

    #[test]
    fn a_damaged_image_leaves_the_next_one_whole() {
        let (good, image) = (golden("rgb-420.jpg"), whole(45, 35));
        let want = decode(&image, &good, 0).unwrap();
        let mut scratch = Scratch::default();
        let mut out = vec![0; want.len()];
        for name in ["rgb-420.jpg", "progressive.jpg", "twelve-bit.jpg", "cmyk.jpg", "arithmetic.jpg", "lossless.jpg"] {
            let encoded = golden(name);
            for at in 0..encoded.len() {
                let mut damaged = encoded.clone();
                damaged[at] ^= 1 << (at % 8);
                let _ = image.decode_into(&damaged, Key::new(0), &mut out, &mut scratch);
                if at % 16 == 0 {
                    image.decode_into(&good, Key::new(0), &mut out, &mut scratch).unwrap();
                    assert_eq!(out, want, "after {name} with byte {at} damaged");
                }
            }
        }
    }

    #[test]
    fn one_scratch_serves_images_of_any_kind_in_any_order() {
        let names = ["rgb-420.jpg", "gray.jpg", "large.jpg", "cmyk.jpg", "twelve-bit.jpg", "lossless.jpg", "rgb8.png"];
        let files = names.map(golden);
        let image = Image::rgb().random_resized_crop(12, 12).horizontal_flip(0.5);
        let mut scratch = Scratch::default();
        let mut out = vec![0; 3 * 12 * 12];
        for n in 0..200 {
            let file = &files[(n * n + n / 3) as usize % files.len()];
            image.decode_into(file, Key::new(n), &mut out, &mut scratch).unwrap();
            assert_eq!(out, decode(&image, file, n).unwrap(), "{n}");
        }
    }

    #[test]
    fn files_of_endless_scans_are_refused() {
        // The last scan of a progressive file, two hundred times over.
        let encoded = golden("progressive.jpg");
        let last = encoded.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
        let (head, scan) = (&encoded[..last], &encoded[last..encoded.len() - 2]);
        let bomb = [head, &scan.repeat(200), &[0xff, 0xd9]].concat();
        let error = decode(&whole(45, 35), &bomb, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

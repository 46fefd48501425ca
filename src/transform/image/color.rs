//! Colours of a finished picture: brightness, contrast, saturation, hue and grey.
//!
//! Here a picture is planes of bytes, so that loops run over vectors. Every value is bit for bit the one that torchvision makes of a Pillow image: each change
//! rounds to bytes, blends are f32 whose fraction is cut off, and hues turn by way of bytes (`hue`).
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the call of a function that needs AVX2, after asking the processor")
)]

use crate::random::{Key, Rng, below, uniform};

use super::hue;

/// A change of colours, as declared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tint {
    ColorJitter { brightness: f64, contrast: f64, saturation: f64, hue: f64, probability: f64 },
    RandomGrayscale { probability: f64 },
}

impl Tint {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Tint::ColorJitter { .. } => "color_jitter",
            Tint::RandomGrayscale { .. } => "random_grayscale",
        }
    }
}

/// A change of colours, as drawn for one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    /// 0 is black, 1 the picture as it is.
    Brightness(f32),
    /// 0 is the mean of the grey picture everywhere.
    Contrast(f32),
    /// 0 is the grey picture.
    Saturation(f32),
    /// Steps around the circle of hues, which has 255 steps, modulo 256.
    Hue(u8),
    /// Every channel becomes the luma.
    Gray,
}

/// Draws the changes that `tints` make in the picture of this key.
pub(super) fn draw(tints: &[Tint], key: Key, changes: &mut Vec<Change>) {
    changes.clear();
    for (number, tint) in (0..).zip(tints) {
        // The step's own numbers, as those of the geometry.
        let rng = &mut key.with(tint.name()).with_number(number).rng();
        match *tint {
            Tint::ColorJitter { brightness, contrast, saturation, hue, probability } => {
                let is_applied = uniform(rng) < probability;
                // All of them, whatever is applied, so that one does not depend on the others.
                let factors = [brightness, contrast, saturation].map(|strength| factor(strength, rng));
                let turn = (2.0 * uniform(rng) - 1.0) * hue;
                let mut drawn = [
                    (brightness > 0.0).then_some(Change::Brightness(factors[0])),
                    (contrast > 0.0).then_some(Change::Contrast(factors[1])),
                    (saturation > 0.0).then_some(Change::Saturation(factors[2])),
                    // The fraction is cut off towards no turn; a negative one wraps around.
                    (hue > 0.0).then_some(Change::Hue((turn * 255.0) as i32 as u8)),
                ];
                for last in (1..drawn.len()).rev() {
                    drawn.swap(last, below(rng, last as u32 + 1) as usize);
                }
                if is_applied {
                    changes.extend(drawn.into_iter().flatten());
                }
            }
            Tint::RandomGrayscale { probability } => {
                if uniform(rng) < probability {
                    changes.push(Change::Gray);
                }
            }
        }
    }
}

/// Uniform from `1 - strength`, or 0 if that is less, to `1 + strength`.
fn factor(strength: f64, rng: &mut Rng) -> f32 {
    let low = (1.0 - strength).max(0.0);
    (low + uniform(rng) * (1.0 + strength - low)) as f32
}

/// Changes the colours of a picture: one plane of grey, or three of red, green and blue.
///
/// Grey has no saturation and no hue to change.
pub(super) fn apply(changes: &[Change], planes: &mut [u8], channels: usize) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { apply_avx2(changes, planes, channels) };
    }
    apply_portably(changes, planes, channels);
}

/// As [`apply_portably`], compiled for wider vectors; the bytes are the same.
///
/// For a picture of 224 x 224, a change of saturation takes 80 us instead of 136, the sum that a contrast needs takes 10 instead of 25, and a turn of the hues
/// 153 instead of 300.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn apply_avx2(changes: &[Change], planes: &mut [u8], channels: usize) {
    apply_portably(changes, planes, channels);
}

#[inline(always)]
fn apply_portably(changes: &[Change], planes: &mut [u8], channels: usize) {
    let plane = planes.len() / channels;
    for change in changes {
        match *change {
            Change::Brightness(factor) => blend_with(0, planes, factor),
            Change::Contrast(factor) => {
                let mean = sum(planes, channels) as f64 / plane as f64;
                blend_with((mean + 0.5) as u8, planes, factor);
            }
            Change::Saturation(_) | Change::Hue(_) | Change::Gray if channels == 1 => {}
            Change::Saturation(factor) => {
                for_pixels(planes, |r, g, b| {
                    let gray = luma(*r, *g, *b);
                    [r, g, b].into_iter().for_each(|value| *value = blend(gray, *value, factor));
                });
            }
            Change::Hue(steps) => {
                let (r, g, b) = three(planes);
                hue::turn(r, g, b, steps);
            }
            Change::Gray => for_pixels(planes, |r, g, b| {
                let gray = byte(luma(*r, *g, *b));
                (*r, *g, *b) = (gray, gray, gray);
            }),
        }
    }
}

/// Blends one value with every byte.
#[inline(always)]
fn blend_with(from: u8, bytes: &mut [u8], factor: f32) {
    let mut table = [0; 256];
    for (to, value) in (0..=255).zip(&mut table) {
        *value = blend(from.into(), to, factor);
    }
    bytes.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// The sum of the grey picture's bytes.
#[inline(always)]
fn sum(planes: &[u8], channels: usize) -> u64 {
    // So few that four bytes hold their sum.
    const PART: usize = 4096;
    if channels == 1 {
        return planes.iter().map(|&value| u64::from(value)).sum();
    }
    let (r, rest) = planes.split_at(planes.len() / 3);
    let (g, b) = rest.split_at(r.len());
    let parts = r.chunks(PART).zip(g.chunks(PART)).zip(b.chunks(PART));
    let sum = |((r, g), b): ((&[u8], &[u8]), &[u8])| -> u32 {
        r.iter().zip(g).zip(b).map(|((&r, &g), &b)| u32::from(super::decode::luma(r, g, b))).sum()
    };
    parts.map(|part| u64::from(sum(part))).sum()
}

#[inline(always)]
fn three(planes: &mut [u8]) -> (&mut [u8], &mut [u8], &mut [u8]) {
    let (r, rest) = planes.split_at_mut(planes.len() / 3);
    let (g, b) = rest.split_at_mut(r.len());
    (r, g, b)
}

#[inline(always)]
fn for_pixels(planes: &mut [u8], change: impl Fn(&mut u8, &mut u8, &mut u8)) {
    let (r, g, b) = three(planes);
    r.iter_mut().zip(g).zip(b).for_each(|((r, g), b)| change(r, g, b));
}

/// `decode::luma` in f32, which can hold all its bits.
#[inline(always)]
fn luma(r: u8, g: u8, b: u8) -> f32 {
    let [r, g, b] = [r, g, b].map(f32::from);
    whole((r * 19595.0 + g * 38470.0 + b * 7471.0 + 32768.0) * (1.0 / 65536.0))
}

/// Interpolates between two values: at 0 the first, at 1 the second, beyond them cut to bytes.
#[inline(always)]
fn blend(from: f32, to: u8, factor: f32) -> u8 {
    let value = from + factor * (f32::from(to) - from);
    let value = if value > 0.0 { value } else { 0.0 };
    byte(whole(if value < 255.0 { value } else { 255.0 }))
}

/// Above 2^23, floats have no fraction: a number added to this constant is rounded to a whole number, which stands in the lower bits.
pub(super) const ROUNDER: f32 = (3 << 22) as f32;

/// The whole part of a number from 0 to 2^22. A cast gives the same, but checks for numbers beyond the integers, for which vectors have no instruction.
#[inline(always)]
pub(super) fn whole(number: f32) -> f32 {
    let near = number + ROUNDER - ROUNDER;
    if near > number { near - 1.0 } else { near }
}

/// A number from 0 to 255 as a byte, rounded.
#[inline(always)]
pub(super) fn byte(number: f32) -> u8 {
    (number + ROUNDER).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    const JITTER: Tint =
        Tint::ColorJitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1, probability: 1.0 };

    fn drawn(tint: Tint, key: u64) -> Vec<Change> {
        let mut changes = vec![Change::Gray];
        draw(&[tint], Key::new(key), &mut changes);
        changes
    }

    /// A golden picture, with all rows of one plane after another, and its pixels.
    fn golden(name: &str) -> (Vec<u8>, usize) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name);
        let pixels = ::image::open(path).unwrap().to_rgb8().into_raw();
        let planes = (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect();
        (planes, pixels.len() / 3)
    }

    fn hue(turn: f64) -> Change {
        Change::Hue((turn * 255.0) as i32 as u8)
    }

    #[test]
    fn changes_are_those_of_torchvision() {
        let (picture, pixels) = golden("color.png");
        let (all, stacked) = golden("color.expected.png");
        let expected = |number: usize| {
            let plane = |c: usize| &all[c * stacked + number * pixels..][..pixels];
            [plane(0), plane(1), plane(2)].concat()
        };
        let factors = |change: fn(f32) -> Change, factors: &[f32]| factors.iter().map(|&f| vec![change(f)]).collect();
        let colored: Vec<Vec<Change>> = [
            factors(Change::Brightness, &[0.0, 0.6, 1.0, 1.4]),
            factors(Change::Contrast, &[0.0, 0.5, 1.7]),
            factors(Change::Saturation, &[0.0, 0.4, 1.8]),
            [0.0, 0.1, -0.1, 0.5, -0.5, -0.003].into_iter().map(|turn| vec![hue(turn)]).collect(),
            vec![vec![Change::Gray]],
            vec![vec![Change::Brightness(1.2), hue(0.2), Change::Contrast(0.8), Change::Saturation(1.5)]],
        ]
        .concat();
        for (number, changes) in colored.iter().enumerate() {
            for run in [apply, apply_portably] {
                let mut planes = picture.clone();
                run(changes, &mut planes, 3);
                let different = planes.iter().zip(expected(number)).filter(|(a, b)| *a != b).count();
                assert_eq!(different, 0, "{changes:?}");
            }
        }
        let mut gray = picture;
        apply(&[Change::Gray], &mut gray, 3);
        gray.truncate(pixels);
        for (number, change) in
            (colored.len()..).zip([Change::Brightness(0.7), Change::Contrast(1.3), Change::Saturation(1.3), hue(0.3)])
        {
            let mut plane = gray.clone();
            apply(&[change, Change::Gray], &mut plane, 1);
            assert!(plane == expected(number)[..pixels], "{change:?}");
        }
        assert_eq!(stacked, (colored.len() + 4) * pixels);
    }

    #[test]
    fn the_way_of_this_processor_and_the_portable_one_give_the_same_bytes() {
        for pixels in [1, 2, 31, 255, 256, 257, 5000] {
            let rng = &mut Key::new(pixels).rng();
            let picture: Vec<u8> = (0..3 * pixels).map(|_| rng.random()).collect();
            for key in 0..20 {
                let changes = [drawn(JITTER, key), drawn(Tint::RandomGrayscale { probability: 0.3 }, key)].concat();
                for (channels, length) in [(3, 3 * pixels), (1, pixels)] {
                    let [mut one, mut other] = [(); 2].map(|()| picture[..length as usize].to_vec());
                    apply(&changes, &mut one, channels);
                    apply_portably(&changes, &mut other, channels);
                    assert!(one == other, "{pixels} pixels of {channels}, {changes:?}");
                }
            }
        }
    }

    #[test]
    fn whole_parts_of_bytes_are_found_at_whole_numbers_and_beside_them() {
        for number in 0..=255_u8 {
            let at = f32::from(number);
            assert_eq!(byte(whole(at)), number);
            assert_eq!(byte(whole(at.next_up())), number);
            assert_eq!(byte(whole(at + 0.5)), number);
            assert_eq!(byte(whole((at + 1.0).next_down())), number);
        }
        for sum in [4095_f32, 65_535.0, 4_194_302.0] {
            assert_eq!((whole(sum), whole(sum.next_up()), whole(sum.next_down())), (sum, sum, sum - 1.0));
        }
    }

    #[test]
    fn factors_are_drawn_evenly_from_their_ranges_and_in_any_order() {
        const TIMES: u32 = 4000;
        let mut orders = std::collections::HashMap::new();
        let (mut sums, mut low, mut high) = ([0.0; 4], [f32::MAX; 4], [f32::MIN; 4]);
        for key in 0..TIMES {
            let changes = drawn(JITTER, key.into());
            let order: Vec<usize> = changes
                .iter()
                .map(|change| {
                    let (kind, value) = match *change {
                        Change::Brightness(factor) => (0, factor),
                        Change::Contrast(factor) => (1, factor),
                        Change::Saturation(factor) => (2, factor),
                        Change::Hue(steps) => (3, f32::from(steps as i8)),
                        Change::Gray => unreachable!("a jitter makes nothing grey"),
                    };
                    sums[kind] += f64::from(value);
                    (low[kind], high[kind]) = (low[kind].min(value), high[kind].max(value));
                    kind
                })
                .collect();
            *orders.entry(order).or_insert(0) += 1;
        }
        assert!(orders.len() == 24 && orders.values().all(|n| (110..230).contains(n)), "{orders:?}");
        // The contrast's range is cut at 0; hues turn by up to 25 of 255.
        let ranges = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-25.0, 25.0)];
        for (kind, (from, to)) in ranges.into_iter().enumerate() {
            let (low, high, mean) = (low[kind], high[kind], sums[kind] / f64::from(TIMES));
            let slack = (to - from) * 0.01;
            assert!((from..=from + slack).contains(&low) && (to - slack..=to).contains(&high), "{kind}: {low}, {high}");
            // Four standard errors.
            let error = f64::from(to - from) / 12_f64.sqrt() / f64::from(TIMES).sqrt();
            assert!((mean - f64::from(from + to) / 2.0).abs() < 4.0 * error, "{kind}: {mean}");
        }
    }

    #[test]
    fn draws_are_pinned_and_depend_on_the_place_among_the_colours_alone() {
        assert_eq!(drawn(JITTER, 42), PINNED);
        let mut behind = Vec::new();
        draw(&[JITTER, Tint::RandomGrayscale { probability: 1.0 }], Key::new(42), &mut behind);
        assert_eq!(behind, [&PINNED[..], &[Change::Gray]].concat());
        draw(&[Tint::RandomGrayscale { probability: 0.0 }, JITTER], Key::new(42), &mut behind);
        assert_ne!(behind, PINNED);
        // One strength less leaves the other draws, and their order.
        let Tint::ColorJitter { brightness, contrast, saturation, .. } = JITTER else { unreachable!() };
        let without = Tint::ColorJitter { brightness, contrast, saturation, hue: 0.0, probability: 1.0 };
        let expected: Vec<_> = PINNED.into_iter().filter(|change| !matches!(change, Change::Hue(_))).collect();
        assert_eq!(drawn(without, 42), expected);
    }

    const PINNED: [Change; 4] = [
        Change::Saturation(1.055_419_1),
        Change::Contrast(2.307_551_6),
        Change::Brightness(0.878_793_66),
        Change::Hue(1),
    ];

    #[test]
    fn images_are_changed_as_often_as_asked() {
        let Tint::ColorJitter { brightness, contrast, saturation, hue, .. } = JITTER else { unreachable!() };
        for tint in [
            Tint::ColorJitter { brightness, contrast, saturation, hue, probability: 0.8 },
            Tint::RandomGrayscale { probability: 0.8 },
        ] {
            let changed = (0..4000).filter(|&key| !drawn(tint, key).is_empty()).count();
            assert!((3100..3300).contains(&changed), "{tint:?}: {changed}");
        }
    }
}

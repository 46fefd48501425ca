//! Turns hues, as Pillow does by way of the mode HSV: one byte each for hue, saturation and value.
//!
//! Pillow computes in f64 and cuts off the fractions of quotients, which often are whole numbers except for their rounding. This module computes in f32 as far
//! as the bytes stay the same, sixteen to thirty-two pixels at a time: no branches, no casts from floats, each step in its own loop. All 2^24 colours, turned
//! by five angles, were compared with Pillow 13.0.

use super::color::{ROUNDER, byte, whole};

/// Pixels processed at a time; the values between two steps stay in the first-level cache.
const CHUNK: usize = 256;

/// Turns the hues of three planes by `steps` of 255, modulo 256.
#[inline(always)]
pub(super) fn turn(r: &mut [u8], g: &mut [u8], b: &mut [u8], steps: u8) {
    let ((r, r_rest), (g, g_rest), (b, b_rest)) = (r.as_chunks_mut(), g.as_chunks_mut(), b.as_chunks_mut());
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        turn_chunk([r, g, b], steps);
    }
    let rest = r_rest.len();
    if rest == 0 {
        return;
    }
    let mut padded = [[0; CHUNK]; 3];
    for (padded, rest) in padded.iter_mut().zip([&r_rest, &g_rest, &b_rest]) {
        padded[..rest.len()].copy_from_slice(rest);
    }
    turn_chunk(padded.each_mut(), steps);
    for (padded, to) in padded.iter().zip([r_rest, g_rest, b_rest]) {
        to.copy_from_slice(&padded[..rest]);
    }
}

#[inline(always)]
fn turn_chunk(rgb: [&mut [u8; CHUNK]; 3], steps: u8) {
    let mut hsv = to_hsv(&rgb);
    hsv.hue.iter_mut().for_each(|hue| *hue = hue.wrapping_add(steps));
    to_rgb(&hsv, rgb);
}

struct Hsv {
    hue: [u8; CHUNK],
    saturation: [u8; CHUNK],
    value: [u8; CHUNK],
}

/// All ones or all zeros, to choose without a branch.
#[inline(always)]
fn mask(yes: bool) -> u8 {
    u8::from(yes).wrapping_neg()
}

/// Saturation and value are those of Pillow, and so is the hue, if there is one.
#[inline(always)]
fn to_hsv(rgb: &[&mut [u8; CHUNK]; 3]) -> Hsv {
    let mut hsv = Hsv { hue: [0; CHUNK], saturation: [0; CHUNK], value: [0; CHUNK] };
    // Of the largest, the middle and the smallest channel: how much the largest is above the smallest, and above the middle.
    let (mut span, mut below) = ([0; CHUNK], [0; CHUNK]);
    // In sixths of the circle: the hue where the middle channel is the largest too, and whether it rises or falls from there.
    let (mut start, mut slope) = ([0; CHUNK], [0; CHUNK]);
    for i in 0..CHUNK {
        let [r, g, b] = [rgb[0][i], rgb[1][i], rgb[2][i]];
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        hsv.value[i] = max;
        span[i] = max - min;
        // Twice the largest, less the largest and the middle one, modulo 256.
        let others = r.wrapping_add(g).wrapping_add(b).wrapping_sub(min);
        below[i] = max.wrapping_add(max).wrapping_sub(others);
        let red = mask(r == max);
        let green = mask(g == max) & !red;
        let blue = !(red | green);
        // The middle channel is the one that follows red, green, blue, red.
        let falls = (red & mask(b == min)) | (green & mask(b != min)) | (blue & mask(g == min));
        let largest = (green & 2) | (blue & 4);
        start[i] = (largest + (falls & 2)).wrapping_sub(1) as i8;
        slope[i] = (falls | 1) as i8;
    }
    for i in 0..CHUNK {
        let sixths = f32::from(start[i]) + f32::from(slope[i]) * (f32::from(below[i]) / f32::from(span[i].max(1)));
        let part = sixths / 6.0;
        let part = if part < 0.0 { 1.0 + part } else { part };
        // Pillow's product is not rounded. Where ours was rounded up, to a whole number that is, it must not count as one.
        let product = part * 255.0;
        let lost = part * 256.0 - product - part;
        hsv.hue[i] = byte(whole(product - if lost < 0.0 { 0.001 } else { 0.0 }));
        hsv.saturation[i] = byte(whole(f32::from(span[i]) * 255.0 / f32::from(hsv.value[i].max(1))));
    }
    hsv
}

#[inline(always)]
fn to_rgb(hsv: &Hsv, rgb: [&mut [u8; CHUNK]; 3]) {
    // Above 2^52 doubles have no fraction.
    const ROUNDER_F64: f64 = (3_u64 << 51) as f64;
    let (mut sector, mut smallest, mut middle) = ([0; CHUNK], [0; CHUNK], [0; CHUNK]);
    for i in 0..CHUNK {
        let [hue, saturation, value] = [hsv.hue[i], hsv.saturation[i], hsv.value[i]].map(f32::from);
        smallest[i] = byte(value * (255.0 - saturation) * (1.0 / 255.0));
        // From 0 to 6, which is 0 again.
        let sixth = hue * 6.0 * (1.0 / 255.0) - 0.4995 + ROUNDER - ROUNDER;
        sector[i] = byte(sixth);
        let is_odd = sector[i] & 1 == 1;
        let into = f64::from((hue * 6.0 - sixth * 255.0) / 255.0);
        // Where the middle channel falls, Pillow has this product in f32.
        let less = f64::from(saturation / 255.0) * if is_odd { into } else { 1.0 - into };
        let less = if is_odd { f64::from(less as f32) } else { less };
        middle[i] = byte((f64::from(value) * (1.0 - less) + ROUNDER_F64 - ROUNDER_F64) as f32);
    }
    let [r, g, b] = rgb;
    for i in 0..CHUNK {
        let is = |number: u8| mask(sector[i] == number);
        let red = is(0) | is(6);
        let choose = |mid: u8, max: u8| mid & middle[i] | max & hsv.value[i] | !(mid | max) & smallest[i];
        r[i] = choose(is(1) | is(4), red | is(5));
        g[i] = choose(red | is(3), is(1) | is(2));
        b[i] = choose(is(2) | is(5), is(3) | is(4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's arithmetic, one pixel after the other: it uses f64, cuts off and rounds wherever Pillow does.
    fn turned([r, g, b]: [u8; 3], steps: u8) -> [u8; 3] {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let (mut hue, mut saturation) = (0, 0);
        if max > min {
            let span = f32::from(max - min);
            let [to_r, to_g, to_b] = [r, g, b].map(|channel| f32::from(max - channel) / span);
            let sixths = if r == max {
                to_b - to_g
            } else if g == max {
                (2.0 + f64::from(to_r) - f64::from(to_b)) as f32
            } else {
                (4.0 + f64::from(to_g) - f64::from(to_r)) as f32
            };
            let part = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
            hue = (f64::from(part) * 255.0) as u8;
            saturation = (f64::from(span / f32::from(max)) * 255.0) as u8;
        }
        let hue = hue.wrapping_add(steps);
        if saturation == 0 {
            return [max; 3];
        }
        let sixths = f64::from(hue) * 6.0 / 255.0;
        let (sector, into) = (sixths.floor(), (sixths - sixths.floor()) as f32);
        let (less, value) = ((f64::from(saturation) / 255.0) as f32, f64::from(max));
        let p = (value * (1.0 - f64::from(less))).round() as u8;
        let q = (value * (1.0 - f64::from(less * into))).round() as u8;
        let t = (value * (1.0 - f64::from(less) * (1.0 - f64::from(into)))).round() as u8;
        match sector as u8 % 6 {
            0 => [max, t, p],
            1 => [q, max, p],
            2 => [p, max, t],
            3 => [p, q, max],
            4 => [t, p, max],
            _ => [max, p, q],
        }
    }

    #[test]
    fn colours_turn_as_one_by_one_in_doubles() {
        for red in 0..=255_u8 {
            // Of the other two, every third and every fifth, from where it differs.
            let others = (red % 3..=255).step_by(3).flat_map(|g| (red % 5..=255).step_by(5).map(move |b| (g, b)));
            let (mut g, mut b): (Vec<u8>, Vec<u8>) = others.unzip();
            let mut r = vec![red; g.len()];
            let steps = red.wrapping_mul(77);
            let expected: Vec<_> = g.iter().zip(&b).map(|(&g, &b)| ([red, g, b], turned([red, g, b], steps))).collect();
            turn(&mut r, &mut g, &mut b, steps);
            for (i, (from, to)) in expected.into_iter().enumerate() {
                assert_eq!([r[i], g[i], b[i]], to, "{from:?}, {steps} steps");
            }
        }
    }
}

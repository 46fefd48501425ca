//! Draws the numbers for flips, mixup and cutmix. No tensors here.

use std::collections::HashMap;

use super::OnDevice;
use crate::random::{Key, Rng, below, uniform};

/// The rows of a batch that are flipped, ascending.
pub(crate) fn flipped(key: Key, probability: f64, samples: &[u64]) -> Vec<i64> {
    let mut seen: HashMap<u64, u64> = HashMap::with_capacity(samples.len());
    let rows = (0..).zip(samples).filter(|(_, id)| {
        // Rows that a flat_map made of one sample, or a repetition in one batch.
        let before = seen.entry(**id).and_modify(|count| *count += 1).or_default();
        let key = key.with_number(**id);
        let key = if *before == 0 { key } else { key.with_number(*before) };
        uniform(&mut key.rng()) < probability
    });
    rows.map(|(row, _)| row).collect()
}

/// How a batch is mixed: each sample with the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mixed {
    Not,
    /// Whole images, and labels, are mixed; this share is their own.
    Whole(f64),
    /// The box is that of the other image; labels have this share of their own.
    Box(Window, f64),
}

/// A window in pixels: ends are exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) right: u32,
    pub(crate) bottom: u32,
}

/// How one batch of images of this size is mixed.
pub(crate) fn mixed(key: Key, what: &OnDevice, (height, width): (u32, u32)) -> Mixed {
    let mut rng = key.rng();
    let turn = uniform(&mut rng);
    let until = what.mixup.map_or(0.0, |mixup| mixup.probability);
    match (what.mixup, what.cutmix) {
        (Some(mixup), _) if turn < until => Mixed::Whole(beta(mixup.alpha, &mut rng)),
        (_, Some(cutmix)) if turn < until + cutmix.probability => {
            let own = beta(cutmix.alpha, &mut rng);
            let window = window(own, (height, width), &mut rng);
            let cut = f64::from(window.right - window.left) * f64::from(window.bottom - window.top);
            Mixed::Box(window, 1.0 - cut / (f64::from(height) * f64::from(width)))
        }
        _ => Mixed::Not,
    }
}

/// A box of about `1 - own` of the area, as the paper's code and torchvision draw it.
fn window(own: f64, (height, width): (u32, u32), rng: &mut Rng) -> Window {
    let (x, y) = (below(rng, width), below(rng, height));
    let half = 0.5 * libm::sqrt(1.0 - own);
    let (half_width, half_height) = ((half * f64::from(width)) as u32, (half * f64::from(height)) as u32);
    Window {
        left: x.saturating_sub(half_width),
        top: y.saturating_sub(half_height),
        right: (x + half_width).min(width),
        bottom: (y + half_height).min(height),
    }
}

/// A number from the Beta distribution of (`alpha`, `alpha`): X / (X + Y) for two numbers from the Gamma distribution.
///
/// It is computed from their logarithms, because for a small alpha both are too often 0 as floats.
fn beta(alpha: f64, rng: &mut Rng) -> f64 {
    let (x, y) = (log_gamma(alpha, rng), log_gamma(alpha, rng));
    1.0 / (1.0 + libm::exp(y - x))
}

/// The logarithm of a number from the Gamma distribution of this shape and scale 1.
///
/// Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", ACM Transactions on Mathematical Software 26 (2000). The number is drawn
/// for shape + 1 and multiplied by `u^(1 / shape)`, as section 6 does for shapes below 1 and as holds for all.
fn log_gamma(shape: f64, rng: &mut Rng) -> f64 {
    let d = shape + 1.0 - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    // Uniform above 0: logarithms are taken of it.
    let positive = |rng: &mut Rng| 1.0 - uniform(rng);
    loop {
        // A number of the normal distribution, by Box and Muller.
        let radius = libm::sqrt(-2.0 * libm::log(positive(rng)));
        let x = radius * libm::cos(std::f64::consts::TAU * uniform(rng));
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let log_v = 3.0 * libm::log(v);
        if libm::log(positive(rng)) < 0.5 * x * x + d * (1.0 - libm::exp(log_v) + log_v) {
            return libm::log(d) + log_v + libm::log(positive(rng)) / shape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng(number: u64) -> Rng {
        Key::new(1).with_number(number).rng()
    }

    #[test]
    fn beta_has_the_mean_and_variance_of_its_shape() {
        for alpha in [0.1, 0.2, 0.8, 1.0, 4.0] {
            let numbers: Vec<f64> = (0..20_000).map(|n| beta(alpha, &mut rng(n))).collect();
            assert!(numbers.iter().all(|x| (0.0..=1.0).contains(x)));
            let mean = numbers.iter().sum::<f64>() / 2e4;
            let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 2e4;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            // Four standard errors of the mean of 20,000.
            assert!((mean - 0.5).abs() < 4.0 * (expected / 2e4).sqrt(), "alpha {alpha}: mean {mean}");
            assert!(
                (variance / expected - 1.0).abs() < 0.04,
                "alpha {alpha}: variance {variance}, {expected} expected"
            );
        }
        // Of (1, 1) it is uniform: a tenth lies in each tenth.
        let tenths = (0..20_000).filter(|&n| beta(1.0, &mut rng(n)) < 0.1).count();
        assert!((1800..2200).contains(&tenths), "{tenths}");
    }

    #[test]
    fn what_is_drawn_is_pinned() {
        let what = OnDevice::images("x").labels("y", 2).mixup(0.2, 0.5).cutmix(1.0, 0.5);
        let drawn: Vec<Mixed> = (2..5).map(|n| mixed(Key::new(42).with_number(n), &what, (224, 160))).collect();
        let window = Window { left: 12, top: 176, right: 48, bottom: 224 };
        let expected = [
            Mixed::Box(window, 0.9517857142857142),
            Mixed::Whole(0.015327540592537778),
            Mixed::Whole(0.0002132377584467634),
        ];
        assert_eq!(drawn, expected);
        assert_eq!(flipped(Key::new(42), 0.5, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), [3, 4, 6, 7, 8]);
    }

    #[test]
    fn tiny_alphas_give_numbers() {
        let numbers = (0..1000).map(|n| beta(1e-3, &mut rng(n)));
        assert!(numbers.into_iter().all(|x| (0.0..=1.0).contains(&x)));
    }

    #[test]
    fn boxes_lie_in_the_image_and_labels_have_the_rest_of_its_area() {
        let what = OnDevice::images("x").labels("y", 2).cutmix(1.0, 1.0);
        let mut area = 0.0;
        for number in 0..2000 {
            let Mixed::Box(window, own) = mixed(Key::new(3).with_number(number), &what, (6, 10)) else {
                panic!("it is certain")
            };
            assert!(
                window.left <= window.right && window.right <= 10 && window.top <= window.bottom && window.bottom <= 6
            );
            let pixels = (window.right - window.left) * (window.bottom - window.top);
            assert!((own - (1.0 - f64::from(pixels) / 60.0)).abs() < 1e-12);
            area += f64::from(pixels) / 60.0;
        }
        // A half of the pixels, were nothing cut off at edges and at whole pixels.
        assert!((0.15..0.45).contains(&(area / 2000.0)), "{area}");
    }

    #[test]
    fn mixup_and_cutmix_are_drawn_as_often_as_asked() {
        let what = OnDevice::images("x").labels("y", 2).mixup(1.0, 0.5).cutmix(1.0, 0.2);
        let mut counts = [0; 3];
        for number in 0..4000 {
            counts[match mixed(Key::new(5).with_number(number), &what, (4, 4)) {
                Mixed::Not => 0,
                Mixed::Whole(own) => {
                    assert!((0.0..=1.0).contains(&own));
                    1
                }
                Mixed::Box(..) => 2,
            }] += 1;
        }
        assert!((1080..1320).contains(&counts[0]) && (1870..2130).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn flips_follow_the_sample_wherever_it_stands_in_the_batch() {
        let key = Key::new(7);
        let all: Vec<u64> = (0..400).collect();
        let rows = flipped(key, 0.25, &all);
        assert!((70..130).contains(&rows.len()), "{}", rows.len());
        let part = flipped(key, 0.25, &all[100..]);
        assert_eq!(part, rows.iter().filter(|row| **row >= 100).map(|row| row - 100).collect::<Vec<_>>());
        assert_eq!((flipped(key, 0.0, &all).len(), flipped(key, 1.0, &all).len()), (0, 400));
    }

    #[test]
    fn rows_of_one_sample_are_drawn_each_for_itself() {
        let same = flipped(Key::new(7), 0.5, &[9; 200]);
        assert!((60..140).contains(&same.len()), "{}", same.len());
    }
}

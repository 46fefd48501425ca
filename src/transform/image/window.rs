//! Which part of a picture is wanted, and at which size: crop windows and the geometry of a pipeline.
//!
//! Only numbers here, no pixels. A list of steps and the size in the file's header become one or more [`Stage`]s: "these
//! pixels of the source, resampled to this size". Consecutive steps melt together as far as the result stays the same: a resize
//! followed by a crop computes only the pixels that the crop keeps. A second resize starts a second stage.

use crate::error::{Error, ErrorKind, Result};
use crate::random::{Key, Rng, below, uniform};

use super::builder::Step;
use super::exif::Turn;

/// A window in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Rect {
    pub(super) fn whole((width, height): (u32, u32)) -> Self {
        Self { x: 0, y: 0, width, height }
    }

    pub(super) fn right(self) -> u32 {
        self.x + self.width
    }

    pub(super) fn bottom(self) -> u32 {
        self.y + self.height
    }

    #[cfg(test)]
    pub(super) fn contains(self, other: Self) -> bool {
        self.x <= other.x && self.y <= other.y && other.right() <= self.right() && other.bottom() <= self.bottom()
    }
}

/// A window in fractions of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// One resampling: `area` of the source becomes `size` pixels, and no pixel outside `bounds` has a say in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) bounds: Rect,
    pub(super) area: Area,
    pub(super) size: (u32, u32),
    pub(super) resampled: bool,
}

impl Stage {
    fn whole(size: (u32, u32)) -> Self {
        let area = Area { x: 0.0, y: 0.0, width: size.0.into(), height: size.1.into() };
        Self { bounds: Rect::whole(size), area, size, resampled: false }
    }

    fn crop(&mut self, window: Rect) {
        let (sx, sy) = (self.area.width / f64::from(self.size.0), self.area.height / f64::from(self.size.1));
        self.area = Area {
            x: self.area.x + f64::from(window.x) * sx,
            y: self.area.y + f64::from(window.y) * sy,
            width: f64::from(window.width) * sx,
            height: f64::from(window.height) * sy,
        };
        self.size = (window.width, window.height);
        if !self.resampled {
            self.bounds.x += window.x;
            self.bounds.y += window.y;
            (self.bounds.width, self.bounds.height) = self.size;
        }
    }

    /// The source pixels that a filter reaching `support` pixels (at scale 1) looks at.
    pub(super) fn needed(&self, support: f64, antialias: bool) -> Rect {
        if !self.resampled {
            return self.bounds;
        }
        let reach = |start: f64, length: f64, out: u32, low: u32, extent: u32| {
            let scale = length / f64::from(out);
            // One pixel more on each side than the filter can reach, so that rounding never matters.
            let support = support * if antialias { scale.max(1.0) } else { 1.0 } + 1.0;
            let high = low + extent;
            let first = ((start - support).floor().max(0.0) as u32).clamp(low, high - 1);
            let last = ((start + length + support).ceil().max(0.0) as u32).clamp(first + 1, high);
            (first, last - first)
        };
        let (x, width) = reach(self.area.x, self.area.width, self.size.0, self.bounds.x, self.bounds.width);
        let (y, height) = reach(self.area.y, self.area.height, self.size.1, self.bounds.y, self.bounds.height);
        Rect { x, y, width, height }
    }

    /// The largest of 8, 4 and 2 by which the source can be reduced and still has `size` pixels in the area, or 1.
    pub(super) fn reduction(&self) -> u32 {
        let fits = |n: u32| {
            self.area.width >= f64::from(self.size.0) * f64::from(n)
                && self.area.height >= f64::from(self.size.1) * f64::from(n)
        };
        if !self.resampled { 1 } else { [8, 4, 2].into_iter().find(|&n| fits(n)).unwrap_or(1) }
    }

    /// The same stage on a source reduced `n` times, of size `reduced`. Bounds that do not divide by `n` widen to whole
    /// reduced pixels.
    pub(super) fn reduced(&self, n: u32, reduced: (u32, u32)) -> Self {
        let f = f64::from(n);
        let (x, y) = (self.bounds.x / n, self.bounds.y / n);
        let bounds = Rect {
            x,
            y,
            width: self.bounds.right().div_ceil(n).min(reduced.0) - x,
            height: self.bounds.bottom().div_ceil(n).min(reduced.1) - y,
        };
        let area =
            Area { x: self.area.x / f, y: self.area.y / f, width: self.area.width / f, height: self.area.height / f };
        Self { bounds, area, ..*self }
    }
}

/// Turns `steps` on a picture of size `stored` into stages, and says how the result is turned in the end.
///
/// Every stage is in the coordinates of the stored picture; steps are declared in those of the turned one.
pub(super) fn plan(
    steps: &[Step],
    stored: (u32, u32),
    orientation: u8,
    key: Key,
    stages: &mut Vec<Stage>,
) -> Result<Turn> {
    let mut turn = Turn::from_exif(orientation);
    let mut stage = Stage::whole(stored);
    stages.clear();
    for (number, step) in steps.iter().enumerate() {
        // The step's own numbers: they depend on what it is and where it stands, not on what was drawn before.
        let key = key.with(step.name()).with_number(number as u64);
        let (width, height) = turn.size(stage.size);
        let (window, size) = match *step {
            Step::Resize { height, width } => (None, Some((width, height))),
            Step::ResizeShorter { side } => (None, Some(shorter_side(width, height, side))),
            Step::CenterCrop { height: h, width: w } => (Some(center(width, height, w, h)?), None),
            Step::RandomCrop { height: h, width: w } => {
                (Some(random_position(width, height, w, h, &mut key.rng())?), None)
            }
            Step::RandomResizedCrop { height: h, width: w, scale, ratio } => {
                (Some(random_window(width, height, scale, ratio, &mut key.rng())), Some((w, h)))
            }
            Step::HorizontalFlip { probability } => {
                turn.flip_x ^= uniform(&mut key.rng()) < probability;
                (None, None)
            }
        };
        if let Some(window) = window {
            stage.crop(turn.to_stored(window, (width, height)));
        }
        if let Some(size) = size.map(|size| turn.size(size)) {
            if size == stage.size {
                continue;
            }
            if stage.resampled {
                stages.push(stage);
                stage = Stage::whole(stage.size);
            }
            stage.size = size;
            stage.resampled = true;
        }
    }
    stages.push(stage);
    Ok(turn)
}

/// The size whose shorter side is `side`; the longer one is cut to whole pixels, as torchvision does.
fn shorter_side(width: u32, height: u32, side: u32) -> (u32, u32) {
    let longer = |long: u32, short: u32| {
        u32::try_from(u64::from(side) * u64::from(long) / u64::from(short)).unwrap_or(u32::MAX).max(1)
    };
    if width <= height { (side, longer(height, width)) } else { (longer(width, height), side) }
}

fn fits(width: u32, height: u32, w: u32, h: u32) -> Result<()> {
    if w > width || h > height {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("an image of {height} x {width} (height x width) is smaller than the crop of {h} x {w}"),
        )
        .advice(format!(
            "resize first, for instance with .resize_shorter({}), or take .random_resized_crop({h}, {w})",
            w.max(h)
        )));
    }
    Ok(())
}

/// The window in the middle. An odd margin is rounded half to even, as torchvision does.
fn center(width: u32, height: u32, w: u32, h: u32) -> Result<Rect> {
    fits(width, height, w, h)?;
    let middle = |margin: u32| (f64::from(margin) / 2.0).round_ties_even() as u32;
    Ok(Rect { x: middle(width - w), y: middle(height - h), width: w, height: h })
}

fn random_position(width: u32, height: u32, w: u32, h: u32, rng: &mut Rng) -> Result<Rect> {
    fits(width, height, w, h)?;
    let y = below(rng, height - h + 1);
    let x = below(rng, width - w + 1);
    Ok(Rect { x, y, width: w, height: h })
}

/// A window of random size, shape and place; after ten draws that do not fit, the middle one of the nearest shape.
fn random_window(width: u32, height: u32, scale: (f64, f64), ratio: (f64, f64), rng: &mut Rng) -> Rect {
    let pixels = f64::from(width) * f64::from(height);
    // libm rather than the platform's functions: a last bit that differs could move a window by a pixel.
    let (low, high) = (libm::log(ratio.0), libm::log(ratio.1));
    for _ in 0..10 {
        let area = pixels * (scale.0 + uniform(rng) * (scale.1 - scale.0));
        let aspect = libm::exp(low + uniform(rng) * (high - low));
        let w = (area * aspect).sqrt().round_ties_even();
        let h = (area / aspect).sqrt().round_ties_even();
        if (1.0..=f64::from(width)).contains(&w) && (1.0..=f64::from(height)).contains(&h) {
            let (w, h) = (w as u32, h as u32);
            let y = below(rng, height - h + 1);
            let x = below(rng, width - w + 1);
            return Rect { x, y, width: w, height: h };
        }
    }
    let aspect = f64::from(width) / f64::from(height);
    let (w, h) = if aspect < ratio.0 {
        (width, (f64::from(width) / ratio.0).round_ties_even() as u32)
    } else if aspect > ratio.1 {
        ((f64::from(height) * ratio.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Rect { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

    fn stages(steps: &[Step], size: (u32, u32), key: u64) -> (Vec<Stage>, Turn) {
        let mut stages = Vec::new();
        let turn = plan(steps, size, 1, Key::new(key), &mut stages).unwrap();
        (stages, turn)
    }

    #[test]
    fn windows_lie_inside_and_keep_to_scale_and_ratio() {
        let key = Key::new(1);
        let (mut mean_area, mut mean_log_ratio, mut drawn) = (0.0, 0.0, 0);
        for (width, height) in [(500, 375), (375, 500), (224, 224), (1, 1), (3, 2), (2000, 10), (65_535, 1)] {
            for n in 0..2000 {
                let r = random_window(width, height, (0.08, 1.0), RATIO, &mut key.with_number(n).rng());
                assert!(Rect::whole((width, height)).contains(r) && r.width > 0 && r.height > 0, "{r:?}");
                if (width, height) == (500, 375) {
                    let area = f64::from(r.width * r.height) / 187_500.0;
                    let ratio = f64::from(r.width) / f64::from(r.height);
                    assert!((0.078..=1.0).contains(&area), "{r:?}");
                    assert!((0.74..=1.35).contains(&ratio), "{r:?}");
                    mean_area += area;
                    mean_log_ratio += ratio.ln();
                    drawn += 1;
                }
            }
        }
        // 200,000 draws of the published procedure, by another program, have means of 0.433 and 0.031: large windows of the wrong
        // shape are drawn again, which favours small and wide ones in a wide picture. Four standard errors are allowed.
        let (area, ratio) = (mean_area / f64::from(drawn), mean_log_ratio / f64::from(drawn));
        assert!((0.413..0.453).contains(&area), "{area}");
        assert!((0.016..0.046).contains(&ratio), "{ratio}");
    }

    #[test]
    fn positions_cover_the_whole_margin_evenly() {
        let mut counts = [0; 5];
        for n in 0..5000 {
            counts[random_position(14, 10, 10, 10, &mut Key::new(3).with_number(n).rng()).unwrap().x as usize] += 1;
        }
        assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
    }

    #[test]
    fn windows_are_pinned() {
        let draw = |n| random_window(500, 375, (0.08, 1.0), RATIO, &mut Key::new(42).with_number(n).rng());
        let windows: Vec<_> = (0..3).map(draw).map(|r| (r.x, r.y, r.width, r.height)).collect();
        assert_eq!(windows, PINNED);
    }

    const PINNED: [(u32, u32, u32, u32); 3] = [(148, 34, 270, 301), (174, 11, 293, 276), (140, 2, 357, 370)];

    #[test]
    fn a_long_strip_falls_back_to_the_middle_with_the_nearest_ratio() {
        let wide = random_window(1000, 10, (1.0, 1.0), RATIO, &mut Key::new(1).rng());
        assert_eq!(wide, Rect { x: 493, y: 0, width: 13, height: 10 });
        let tall = random_window(10, 1000, (1.0, 1.0), RATIO, &mut Key::new(1).rng());
        assert_eq!(tall, Rect { x: 0, y: 493, width: 10, height: 13 });
    }

    #[test]
    fn the_drawn_window_depends_on_the_key_and_its_own_place_alone() {
        let crop = Step::RandomResizedCrop { height: 8, width: 8, scale: (0.08, 1.0), ratio: RATIO };
        let flip = Step::HorizontalFlip { probability: 0.0 };
        let (alone, _) = stages(&[crop], (500, 375), 5);
        let (followed, _) = stages(&[crop, flip], (500, 375), 5);
        assert_eq!(alone, followed);
        assert_ne!(alone, stages(&[crop], (500, 375), 6).0);
        let twice = stages(&[crop, crop], (500, 375), 5).0;
        assert_ne!((twice[0].area.x, twice[0].area.y), (twice[1].area.x, twice[1].area.y));
    }

    #[test]
    fn resize_then_crop_is_one_stage_with_a_fractional_area() {
        let steps = [Step::ResizeShorter { side: 256 }, Step::CenterCrop { height: 224, width: 224 }];
        let (stages, _) = stages(&steps, (500, 375), 0);
        let [stage] = stages[..] else { panic!("{stages:?}") };
        assert_eq!((stage.bounds, stage.size), (Rect::whole((500, 375)), (224, 224)));
        // 500 x 375 becomes 341 x 256; margins of 117 and 32 give a left edge at round(58.5) = 58, a top edge at 16.
        assert!((stage.area.x - 58.0 * 500.0 / 341.0).abs() < 1e-9);
        assert!((stage.area.y - 16.0 * 375.0 / 256.0).abs() < 1e-9);
        assert!((stage.area.height - 224.0 * 375.0 / 256.0).abs() < 1e-9);
    }

    #[test]
    fn crop_then_resize_sees_nothing_outside_the_crop() {
        let steps = [Step::CenterCrop { height: 100, width: 100 }, Step::Resize { height: 50, width: 50 }];
        let (stages, _) = stages(&steps, (200, 100), 0);
        assert_eq!(stages[0].bounds, Rect { x: 50, y: 0, width: 100, height: 100 });
        assert_eq!(stages[0].needed(1.0, true), stages[0].bounds);
    }

    #[test]
    fn a_second_resize_is_a_second_stage() {
        let steps = [Step::Resize { height: 64, width: 64 }, Step::Resize { height: 32, width: 32 }];
        assert_eq!(stages(&steps, (200, 100), 0).0.len(), 2);
        let same = [Step::Resize { height: 64, width: 64 }, Step::Resize { height: 64, width: 64 }];
        assert_eq!(stages(&same, (200, 100), 0).0.len(), 1);
    }

    #[test]
    fn a_flip_before_a_crop_mirrors_the_crop() {
        let crop = Step::RandomCrop { height: 10, width: 10 };
        let flip = |probability| Step::HorizontalFlip { probability };
        let (plain, a) = stages(&[flip(0.0), crop], (100, 10), 9);
        let (mirrored, b) = stages(&[flip(1.0), crop], (100, 10), 9);
        assert_eq!(plain[0].bounds.x, 100 - 10 - mirrored[0].bounds.x);
        assert_eq!((a.flip_x, b.flip_x), (false, true));
    }

    #[test]
    fn flips_happen_as_often_as_asked() {
        let step = [Step::HorizontalFlip { probability: 0.25 }];
        let flipped = (0..4000).filter(|&n| stages(&step, (10, 10), n).1.flip_x).count();
        assert!((900..1100).contains(&flipped), "{flipped}");
    }

    #[test]
    fn reduction_keeps_at_least_the_wanted_pixels() {
        for (side, expected) in [(447, 1), (448, 2), (895, 2), (896, 4), (1791, 4), (1792, 8), (9000, 8)] {
            let (stages, _) = stages(&[Step::Resize { height: 224, width: 224 }], (side, side), 0);
            assert_eq!(stages[0].reduction(), expected, "{side}");
        }
    }

    #[test]
    fn small_images_are_refused_by_crops_with_advice() {
        let error = plan(&[Step::CenterCrop { height: 224, width: 224 }], (200, 300), 1, Key::new(0), &mut Vec::new());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("300 x 200") && error.contains(".resize_shorter(224)"), "{error}");
    }
}

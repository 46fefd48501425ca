//! Crop windows and the geometry of a pipeline: which part of a picture is needed, and at which size.
//!
//! This module handles only numbers, no pixels. From a list of steps and the size in the file's header it makes one or more [`Stage`]s: "these pixels of the
//! source, resampled to this size, on a canvas". Consecutive steps are merged as long as the result stays the same: a resize followed by a crop computes only
//! the pixels that the crop keeps, and a crop after a pad keeps what it sees of the picture and of the padding. A second resize starts a second stage, and so
//! does a resize of a padded picture.

use crate::error::{Error, ErrorKind, Result};
use crate::random::{Key, Rng, below, uniform};

use super::builder::Step;
use super::exif::Turn;
use super::limits::ImageLimits;

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

    pub(super) fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The intersection of both windows, if it is not empty.
    fn common(self, other: Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let (right, bottom) = (self.right().min(other.right()), self.bottom().min(other.bottom()));
        (x < right && y < bottom).then(|| Self { x, y, width: right - x, height: bottom - y })
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

/// A window of a larger whole: where a picture lies on its canvas, or in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) size: (u32, u32),
    /// Empty if nothing of the picture is left.
    pub(super) picture: Rect,
}

impl Frame {
    /// The frame of a picture that fills the whole.
    pub(super) fn filled(size: (u32, u32)) -> Self {
        Self { size, picture: Rect::whole(size) }
    }

    /// The same frame after turning.
    pub(super) fn turned(self, turn: Turn) -> Self {
        Self { size: turn.size(self.size), picture: turn.to_meant(self.picture, self.size) }
    }
}

/// The canvas on which a stage puts its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Canvas {
    pub(super) size: (u32, u32),
    /// Where the picture's corner is; its sides are those of the stage.
    pub(super) x: u32,
    pub(super) y: u32,
    /// The bytes of each channel around it.
    pub(super) fill: [u8; 3],
}

/// One resampling: `area` of the source becomes `size` pixels, and no pixel outside `bounds` affects them. The result is then put on a canvas, if that is
/// larger.
///
/// `size` is zero if crops have left nothing but padding; `bounds` and `area` mean nothing then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) bounds: Rect,
    pub(super) area: Area,
    pub(super) size: (u32, u32),
    pub(super) resampled: bool,
    pub(super) canvas: Option<Canvas>,
}

impl Stage {
    fn whole(size: (u32, u32)) -> Self {
        let area = Area { x: 0.0, y: 0.0, width: size.0.into(), height: size.1.into() };
        Self { bounds: Rect::whole(size), area, size, resampled: false, canvas: None }
    }

    /// Whether anything of the source is left.
    pub(super) fn is_seen(&self) -> bool {
        self.size.0 > 0
    }

    /// Where the picture lies in the stage's output.
    pub(super) fn frame(&self) -> Frame {
        let Some(Canvas { size, x, y, .. }) = self.canvas else { return Frame::filled(self.size) };
        Frame { size, picture: Rect { x, y, width: self.size.0, height: self.size.1 } }
    }

    /// Puts the output so far into `window` of a canvas. Returns false if that needs another stage, because there is padding of another colour already.
    fn pad(&mut self, size: (u32, u32), window: Rect, fill: [u8; 3]) -> bool {
        let Frame { size: before, picture } = self.frame();
        if size == before {
            return true;
        }
        if self.canvas.is_some_and(|canvas| canvas.fill != fill) {
            return false;
        }
        self.canvas = Some(Canvas { size, x: window.x + picture.x, y: window.y + picture.y, fill });
        true
    }

    fn crop(&mut self, window: Rect) {
        let Some(canvas) = self.canvas else { return self.crop_picture(window) };
        let picture = self.frame().picture;
        let size = (window.width, window.height);
        let (x, y) = match picture.common(window) {
            Some(seen) => {
                self.crop_picture(Rect { x: seen.x - picture.x, y: seen.y - picture.y, ..seen });
                (seen.x - window.x, seen.y - window.y)
            }
            None => {
                self.size = (0, 0);
                (0, 0)
            }
        };
        self.canvas = (self.size != size).then_some(Canvas { size, x, y, ..canvas });
    }

    fn crop_picture(&mut self, window: Rect) {
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

    /// The source pixels that a filter reads if it reaches `support` pixels (at scale 1).
    pub(super) fn needed(&self, support: f64, antialias: bool) -> Rect {
        if !self.is_seen() {
            return Rect { width: 0, height: 0, ..self.bounds };
        }
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

    /// The largest of 8, 4 and 2 by which the source can be reduced with at least `size` pixels left in the area, or 1.
    pub(super) fn reduction(&self) -> u32 {
        let fits = |n: u32| {
            self.area.width >= f64::from(self.size.0) * f64::from(n)
                && self.area.height >= f64::from(self.size.1) * f64::from(n)
        };
        if !self.resampled || !self.is_seen() { 1 } else { [8, 4, 2].into_iter().find(|&n| fits(n)).unwrap_or(1) }
    }

    /// The same stage on a source reduced `n` times, of size `reduced`. Bounds that `n` does not divide are widened to whole reduced pixels.
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

/// The effect of a step on the intended picture, before it is turned back to the stored orientation.
enum Act {
    Crop(Rect),
    Resize((u32, u32)),
    CropAndResize(Rect, (u32, u32)),
    Pad { size: (u32, u32), window: Rect, fill: [u8; 3] },
}

/// Makes stages of `steps` on a picture of size `stored`, and returns how the result is turned at the end.
///
/// Every stage is in the coordinates of the stored picture; steps are declared in those of the turned one.
pub(super) fn plan(
    steps: &[Step],
    stored: (u32, u32),
    orientation: u8,
    key: Key,
    limits: &ImageLimits,
    stages: &mut Vec<Stage>,
) -> Result<Turn> {
    let mut turn = Turn::from_exif(orientation);
    let mut stage = Stage::whole(stored);
    stages.clear();
    for (number, step) in steps.iter().enumerate() {
        // The step's own numbers: they depend on what it is and where it stands, not on what was drawn before.
        let key = key.with(step.name()).with_number(number as u64);
        let (width, height) = turn.size(stage.frame().size);
        let act = match *step {
            Step::Resize { height, width } => Act::Resize((width, height)),
            Step::ResizeShorter { side } => Act::Resize(shorter_side(width, height, side)),
            Step::ResizeLonger { side } => Act::Resize(longer_side(width, height, side)),
            Step::CenterCrop { height: h, width: w } => Act::Crop(center(width, height, w, h)?),
            Step::RandomCrop { height: h, width: w } => {
                Act::Crop(random_position(width, height, w, h, &mut key.rng())?)
            }
            Step::RandomResizedCrop { height: h, width: w, scale, ratio } => {
                Act::CropAndResize(random_window(width, height, scale, ratio, &mut key.rng()), (w, h))
            }
            Step::HorizontalFlip { probability } => {
                turn.flip_x ^= uniform(&mut key.rng()) < probability;
                continue;
            }
            Step::Pad { margin, fill } => {
                let side = |side: u32| u64::from(side) + 2 * u64::from(margin);
                limits.check_canvas(side(width), side(height))?;
                let size = (width + 2 * margin, height + 2 * margin);
                Act::Pad { size, window: Rect { x: margin, y: margin, width, height }, fill }
            }
            Step::PadTo { height: h, width: w, fill } => {
                limits.check_canvas(w.into(), h.into())?;
                Act::Pad { size: (w, h), window: middle_of(width, height, w, h)?, fill }
            }
        };
        let whole = (width, height);
        match act {
            Act::Crop(window) => stage.crop(turn.to_stored(window, whole)),
            Act::Resize(size) => resample(&mut stage, turn.size(size), stages),
            Act::CropAndResize(window, size) => {
                stage.crop(turn.to_stored(window, whole));
                resample(&mut stage, turn.size(size), stages);
            }
            Act::Pad { size, window, fill } => {
                let (window, size) = (turn.to_stored(window, size), turn.size(size));
                if !stage.pad(size, window, fill) {
                    stages.push(stage);
                    stage = Stage::whole(stage.frame().size);
                    stage.pad(size, window, fill);
                }
            }
        }
    }
    stages.push(stage);
    Ok(turn)
}

/// Resamples the output of `stage` to `size`. It uses the stage itself if that does not resample or pad yet.
fn resample(stage: &mut Stage, size: (u32, u32), stages: &mut Vec<Stage>) {
    let before = stage.frame().size;
    if size == before {
        return;
    }
    if stage.resampled || stage.canvas.is_some() {
        stages.push(*stage);
        *stage = Stage::whole(before);
    }
    stage.size = size;
    stage.resampled = true;
}

/// The size whose shorter side is `side`; the longer side is cut to whole pixels, as in torchvision.
pub(super) fn shorter_side(width: u32, height: u32, side: u32) -> (u32, u32) {
    if width <= height { (side, other_side(side, height, width)) } else { (other_side(side, width, height), side) }
}

/// The size whose longer side is `side`; the shorter side is cut to whole pixels, and has at least one.
pub(super) fn longer_side(width: u32, height: u32, side: u32) -> (u32, u32) {
    if width > height { (side, other_side(side, height, width)) } else { (other_side(side, width, height), side) }
}

/// The new length of a side of `of` pixels when a side of `from` pixels becomes `side`.
fn other_side(side: u32, of: u32, from: u32) -> u32 {
    u32::try_from(u64::from(side) * u64::from(of) / u64::from(from)).unwrap_or(u32::MAX).max(1)
}

fn fits(width: u32, height: u32, w: u32, h: u32) -> Result<()> {
    if w > width || h > height {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("an image of {height} x {width} (height x width) is smaller than the crop of {h} x {w}"),
        )
        .advice(format!(
            "resize first, for instance with .resize_shorter({}), pad with .pad(..), or take .random_resized_crop({h}, {w})",
            w.max(h)
        )));
    }
    Ok(())
}

/// The window in the middle. An odd margin is rounded half to even, as in torchvision.
fn center(width: u32, height: u32, w: u32, h: u32) -> Result<Rect> {
    fits(width, height, w, h)?;
    let middle = |margin: u32| (f64::from(margin) / 2.0).round_ties_even() as u32;
    Ok(Rect { x: middle(width - w), y: middle(height - h), width: w, height: h })
}

/// Where a picture lies in the middle of `w` x `h` pixels. If a margin is odd, the larger part is on the right and below, as when torchvision's centre crop
/// pads.
fn middle_of(width: u32, height: u32, w: u32, h: u32) -> Result<Rect> {
    if width > w || height > h {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("an image of {height} x {width} (height x width) is larger than the canvas of {h} x {w}"),
        )
        .advice(format!("make it smaller first, for instance with .resize_longer({})", w.min(h))));
    }
    Ok(Rect { x: (w - width) / 2, y: (h - height) / 2, width, height })
}

pub(super) fn random_position(width: u32, height: u32, w: u32, h: u32, rng: &mut Rng) -> Result<Rect> {
    fits(width, height, w, h)?;
    let y = below(rng, height - h + 1);
    let x = below(rng, width - w + 1);
    Ok(Rect { x, y, width: w, height: h })
}

/// A window of random size, shape and place; after ten draws that do not fit, the centred window of the nearest shape.
pub(super) fn random_window(width: u32, height: u32, scale: (f64, f64), ratio: (f64, f64), rng: &mut Rng) -> Rect {
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
        let turn = plan(steps, size, 1, Key::new(key), &ImageLimits::default(), &mut stages).unwrap();
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
        let error = refused(&[Step::CenterCrop { height: 224, width: 224 }], (200, 300));
        assert!(error.contains("300 x 200") && error.contains(".resize_shorter(224)"), "{error}");
    }

    #[test]
    fn a_crop_behind_a_pad_keeps_what_it_sees_of_both() {
        let steps = [Step::Pad { margin: 4, fill: [7; 3] }, Step::RandomCrop { height: 5, width: 3 }];
        let mut seen = std::collections::HashSet::new();
        for key in 0..3000 {
            let (stages, _) = stages(&steps, (6, 2), key);
            let [stage] = stages[..] else { panic!("{stages:?}") };
            let Frame { size, picture } = stage.frame();
            assert_eq!(size, (3, 5));
            assert!(Rect::whole(size).contains(picture) && Rect::whole((6, 2)).contains(stage.bounds), "{stage:?}");
            assert_eq!((picture.width, picture.height), stage.size);
            assert_eq!(stage.needed(1.0, true).is_empty(), !stage.is_seen());
            if stage.is_seen() {
                assert_eq!((stage.bounds.width, stage.bounds.height), stage.size);
                // Where the crop's corner is on the canvas.
                let corner = (4 + stage.bounds.x - picture.x, 4 + stage.bounds.y - picture.y);
                // What is left out of the picture is outside of the crop.
                let whole = Rect { x: 4, y: 4, width: 6, height: 2 };
                let crop = Rect { x: corner.0, y: corner.1, width: 3, height: 5 };
                assert_eq!(crop.common(whole).map(|r| (r.width, r.height)), Some(stage.size));
                seen.insert(corner);
            }
        }
        // Of 12 x 6 places those that do not lie beside or above the picture's 6 x 2 pixels.
        assert_eq!(seen.len(), 8 * 6);
    }

    #[test]
    fn nothing_is_needed_of_a_picture_that_is_out_of_sight() {
        let crop = |side| Step::CenterCrop { height: side, width: side };
        let behind = [
            Step::Pad { margin: 50, fill: [0; 3] },
            Step::RandomCrop { height: 9, width: 9 },
            crop(5),
            Step::Pad { margin: 1, fill: [0; 3] },
            crop(2),
        ];
        for before in [&[][..], &[Step::Resize { height: 7, width: 7 }]] {
            let steps = [before, &behind].concat();
            let planned = (0..).map(|key| stages(&steps, (90, 90), key).0).find(|stages| !stages[0].is_seen());
            let planned = planned.expect("there is always another key");
            assert_eq!((planned.len(), planned[0].frame().size), (1, (2, 2)));
            assert!(planned[0].needed(3.0, true).is_empty() && planned[0].reduction() == 1);
        }
    }

    #[test]
    fn padding_that_is_cut_off_leaves_no_trace() {
        let crop = Step::CenterCrop { height: 6, width: 8 };
        let pad = Step::Pad { margin: 3, fill: [9; 3] };
        let resize = Step::Resize { height: 20, width: 20 };
        let [plain, padded] = [&[crop, resize][..], &[pad, crop, resize]].map(|steps| stages(steps, (12, 10), 0).0);
        assert_eq!(plain, padded);
        assert_eq!(stages(&[Step::Pad { margin: 0, fill: [9; 3] }], (12, 10), 0).0, stages(&[], (12, 10), 0).0);
    }

    #[test]
    fn pads_of_one_colour_are_one_and_a_resize_behind_them_is_a_stage_of_its_own() {
        let pad = |margin, fill| Step::Pad { margin, fill: [fill; 3] };
        let once = stages(&[pad(5, 1)], (10, 20), 0).0;
        assert_eq!(stages(&[pad(2, 1), pad(3, 1)], (10, 20), 0).0, once);
        let twice = stages(&[pad(2, 1), pad(3, 2)], (10, 20), 0).0;
        let frames: Vec<_> = twice.iter().map(Stage::frame).collect();
        let frame = |size, margin, width, height| Frame { size, picture: Rect { x: margin, y: margin, width, height } };
        assert_eq!(frames, [frame((14, 24), 2, 10, 20), frame((20, 30), 3, 14, 24)]);
        let resized = stages(&[pad(5, 1), Step::Resize { height: 8, width: 8 }], (10, 20), 0).0;
        assert_eq!(resized[0], once[0]);
        assert_eq!((resized[1].bounds, resized[1].size), (Rect::whole((20, 30)), (8, 8)));
        // To the size that the padding makes is no resize.
        assert_eq!(stages(&[pad(5, 1), Step::Resize { height: 30, width: 20 }], (10, 20), 0).0, once);
    }

    #[test]
    fn a_picture_lies_in_the_middle_of_its_canvas_however_it_is_turned() {
        let steps = |flips| {
            let flip = Step::HorizontalFlip { probability: 1.0 };
            [&[flip].repeat(flips)[..], &[Step::PadTo { height: 9, width: 8, fill: [0; 3] }]].concat()
        };
        for flips in [0, 1] {
            for orientation in 1..=8 {
                let mut stages = Vec::new();
                let limits = ImageLimits::default();
                let turn = plan(&steps(flips), (3, 4), orientation, Key::new(0), &limits, &mut stages).unwrap();
                let frame = stages[0].frame().turned(turn);
                let (width, height) = turn.size((3, 4));
                // Odd margins are larger on the right and below.
                let picture = Rect { x: (8 - width) / 2, y: (9 - height) / 2, width, height };
                assert_eq!(frame, Frame { size: (8, 9), picture }, "{flips} flips, orientation {orientation}");
            }
        }
    }

    #[test]
    fn the_longer_side_gets_its_pixels_and_the_shorter_one_at_least_one() {
        for ((width, height), expected) in [
            ((500, 375), (640, 480)),
            ((375, 500), (480, 640)),
            ((1000, 333), (640, 213)),
            ((640, 640), (640, 640)),
            ((10_000, 1), (640, 1)),
            ((1, 1), (640, 640)),
        ] {
            assert_eq!(longer_side(width, height, 640), expected);
        }
    }

    #[test]
    fn pictures_larger_than_their_canvas_and_canvases_above_the_limits_are_refused_with_advice() {
        let error = refused(&[Step::PadTo { height: 640, width: 320, fill: [0; 3] }], (321, 100));
        assert!(error.contains("100 x 321") && error.contains(".resize_longer(320)"), "{error}");
        for (step, size) in [
            (Step::Pad { margin: 1, fill: [0; 3] }, (65_535, 1)),
            (Step::Pad { margin: u32::MAX, fill: [0; 3] }, (1, 1)),
            (Step::Pad { margin: 16_384, fill: [0; 3] }, (1, 1)),
            (Step::PadTo { height: 16_384, width: 16_384, fill: [0; 3] }, (1, 1)),
        ] {
            let error = refused(&[step], size);
            assert!(error.contains("padded image") && error.contains(".limits(..)"), "{error}");
        }
    }

    fn refused(steps: &[Step], size: (u32, u32)) -> String {
        let planned = plan(steps, size, 1, Key::new(0), &ImageLimits::default(), &mut Vec::new());
        planned.unwrap_err().to_string()
    }
}

//! The weights of a bilinear filter, as whole numbers: those of Pillow and `fast_image_resize`, bit for bit.

/// For each output pixel of one direction: the first source pixel it reads, and the weight of each of its `taps`.
#[derive(Default)]
pub(super) struct Weights {
    /// Source pixels that an output pixel reads: an even number, so that they can be taken two at a time.
    pub(super) taps: usize,
    /// The weights are fractions of `1 << precision`.
    pub(super) precision: u32,
    /// The first source pixel of each output pixel; the `taps` pixels from there are inside the picture.
    pub(super) starts: Vec<u32>,
    /// `taps` weights for each output pixel.
    pub(super) values: Vec<i16>,
    fractions: Vec<f64>,
    bounds: Vec<(u32, u32)>,
}

impl Weights {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.starts.capacity() * 4
            + self.values.capacity() * 2
            + (self.fractions.capacity() + self.bounds.capacity()) * 8
    }

    /// Computes the weights that turn `length` pixels from `start`, out of `extent`, into `size`. Returns false if the picture has fewer pixels than the
    /// filter.
    ///
    /// The steps and their order are those of `fast_image_resize` (6.1), since another order would round differently. The result differs in one point only. If
    /// an output pixel reads fewer than `taps` pixels, weights of 0 fill up the rest (at the far edge of the picture, in front), so that no reader has to check
    /// where the picture ends.
    ///
    /// The function is inlined, so that floor and round become instructions where the caller may use them.
    #[inline(always)]
    pub(super) fn compute(&mut self, start: f64, length: f64, extent: u32, size: u32, antialias: bool) -> bool {
        let scale = ((start + length) - start) / f64::from(size);
        let reach = if antialias { scale.max(1.0) } else { 1.0 };
        let per_pixel = 1.0 / reach;
        let window = reach.ceil() as usize * 2 + 1;
        self.bounds.clear();
        self.fractions.clear();
        self.fractions.resize(window * size as usize, 0.0);
        let (mut most, mut largest) = (0, 0.0_f64);
        for (x, fractions) in self.fractions.chunks_exact_mut(window).enumerate() {
            let middle = start + (x as f64 + 0.5) * scale;
            let first = (middle - reach).floor().max(0.0) as u32;
            let end = (middle + reach).ceil().min(f64::from(extent)) as u32;
            let (mut from, mut count, mut sum) = (first, 0, 0.0);
            for pixel in first..end {
                let away = ((f64::from(pixel) - (middle - 0.5)) * per_pixel).abs();
                let weight = if away < 1.0 { 1.0 - away } else { 0.0 };
                if pixel == from && weight == 0.0 {
                    from += 1;
                } else {
                    fractions[count] = weight;
                    sum += weight;
                    count += 1;
                }
            }
            while count > 0 && fractions[count - 1] == 0.0 {
                count -= 1;
            }
            for weight in &mut fractions[..count] {
                *weight /= sum;
                largest = largest.max(*weight);
            }
            self.bounds.push((from, count as u32));
            most = most.max(count);
        }
        self.taps = most.max(2).next_multiple_of(2);
        if self.taps > extent as usize {
            return false;
        }
        // As many bits as the largest weight leaves in an i16, and at most 22 beside 8 of value and 2 to spare.
        let too_large = |bits: u32| (largest * f64::from(1 << bits)).round() >= 32768.0;
        self.precision = (0..21).find(|bits| too_large(bits + 1)).unwrap_or(21);
        let one = f64::from(1 << self.precision);
        self.starts.clear();
        self.values.clear();
        self.values.resize(self.taps * size as usize, 0);
        let rows = self.values.chunks_exact_mut(self.taps).zip(self.fractions.chunks_exact(window));
        for ((values, fractions), &(from, count)) in rows.zip(&self.bounds) {
            let start = from.min(extent - self.taps as u32);
            self.starts.push(start);
            let values = &mut values[(from - start) as usize..];
            for (value, fraction) in values.iter_mut().zip(&fractions[..count as usize]) {
                *value = (fraction * one).round() as i16;
            }
        }
        true
    }
}

//! How ragged columns become rectangular.

use std::fmt;

/// An end of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Side {
    /// Before the first row.
    Left,
    /// After the last row.
    #[default]
    Right,
}

/// How the samples of a ragged column are brought to one length.
///
/// # Shape
/// Samples `[l, …]` of a column become `[batch, length, …]`, where `length` is the longest `l` of the batch or the one stated, rounded up by
/// [`multiple_of`](Self::multiple_of). `Batch::lengths` returns the number of rows of each sample that are not padding.
///
/// # Example
/// ```
/// use forebay::{Pad, Side};
///
/// assert_eq!(Pad::to(128).value(-1.0).to_string(), "to 128 with -1");
/// let generate = Pad::longest().multiple_of(8).side(Side::Left);
/// assert_eq!(generate.to_string(), "to the longest, up to a multiple of 8, with 0 on the left");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pad {
    pub(crate) length: Option<usize>,
    pub(crate) truncate: bool,
    pub(crate) value: f64,
    pub(crate) side: Side,
    pub(crate) cut: Side,
    pub(crate) multiple: usize,
}

impl Pad {
    fn new(length: Option<usize>, truncate: bool) -> Self {
        Self { length, truncate, value: 0.0, side: Side::Right, cut: Side::Right, multiple: 1 }
    }

    /// Pads to the longest sample of each batch, with zeros.
    pub fn longest() -> Self {
        Self::new(None, false)
    }

    /// Pads to this many rows, with zeros. A longer sample is an error.
    pub fn to(length: usize) -> Self {
        Self::new(Some(length), false)
    }

    /// Pads to this many rows, with zeros, or cuts a longer sample to them. The first rows are kept, unless [`cut`](Self::cut) says the last.
    pub fn truncate_to(length: usize) -> Self {
        Self::new(Some(length), true)
    }

    /// Fills with this value, which the column's dtype must hold; floats are rounded to it.
    #[must_use]
    pub fn value(mut self, value: f64) -> Self {
        self.value = value;
        self
    }

    /// Sets where the padding stands: after the sample ([`Side::Right`], the default), or before it. Then all samples end together, as decoders want
    /// their prompts.
    #[must_use]
    pub fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// Sets the end at which [`truncate_to`](Self::truncate_to) cuts: with [`Side::Left`] the last rows are kept.
    #[must_use]
    pub fn cut(mut self, side: Side) -> Self {
        self.cut = side;
        self
    }

    /// Rounds the length, a stated one too, up to a multiple of this number: tensor cores and compiled kernels like few, round shapes.
    #[must_use]
    pub fn multiple_of(mut self, rows: usize) -> Self {
        self.multiple = rows;
        self
    }

    /// The length of samples in the batch whose longest sample has `longest` rows.
    pub(crate) fn extent(&self, longest: usize) -> usize {
        self.length.unwrap_or(longest).next_multiple_of(self.multiple.max(1))
    }

    /// What is wrong with the padding, and what would be right.
    pub(crate) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        if self.multiple == 0 {
            return Some(("padded to a multiple of 0", ".multiple_of(n) wants n of at least 1"));
        }
        (self.cut == Side::Left && !self.truncate)
            .then_some(("cut on the left, and nothing is cut", "take Pad::truncate_to(n), or leave .cut() out"))
    }
}

impl Default for Pad {
    fn default() -> Self {
        Self::longest()
    }
}

impl fmt::Display for Pad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            None => f.write_str("to the longest")?,
            Some(length) if self.truncate => write!(f, "or cut to {length}")?,
            Some(length) => write!(f, "to {length}")?,
        }
        if self.multiple != 1 {
            write!(f, ", up to a multiple of {},", self.multiple)?;
        }
        write!(f, " with {}", self.value)?;
        if self.side == Side::Left {
            f.write_str(" on the left")?;
        }
        if self.cut == Side::Left { f.write_str(", cut on the left") } else { Ok(()) }
    }
}

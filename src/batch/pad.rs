//! How ragged columns become rectangular.

use std::fmt;

/// How the samples of a ragged column are brought to one length.
///
/// # Example
/// ```
/// use forebay::Pad;
///
/// assert_eq!(Pad::to(128).value(-1.0).to_string(), "to 128 with -1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pad {
    pub(crate) length: Option<usize>,
    pub(crate) truncate: bool,
    pub(crate) value: f64,
}

impl Pad {
    /// To the longest sample of each batch, with zeros.
    pub fn longest() -> Self {
        Self { length: None, truncate: false, value: 0.0 }
    }

    /// To this many rows, with zeros. A longer sample is an error.
    pub fn to(length: usize) -> Self {
        Self { length: Some(length), truncate: false, value: 0.0 }
    }

    /// To this many rows, with zeros. Of a longer sample the first rows are kept.
    pub fn truncate_to(length: usize) -> Self {
        Self { length: Some(length), truncate: true, value: 0.0 }
    }

    /// Fills with this value, converted to the column's dtype.
    #[must_use]
    pub fn value(mut self, value: f64) -> Self {
        self.value = value;
        self
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
            None => write!(f, "to the longest with {}", self.value),
            Some(length) if self.truncate => write!(f, "or cut to {length} with {}", self.value),
            Some(length) => write!(f, "to {length} with {}", self.value),
        }
    }
}

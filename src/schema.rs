//! What a sample holds: columns with their dtype and shape.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};

use crate::error::{Error, Result};

/// The element type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dtype {
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// One byte, 0 or 1.
    Bool,
    /// Byte strings of any length. They do not become tensors: `Batch::bytes` returns them.
    Bytes,
}

impl Dtype {
    pub(crate) fn is_int(self) -> bool {
        matches!(self, Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64)
    }

    /// Returns the number of bytes of one element; `None` for byte strings.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Dtype::U8 | Dtype::I8 | Dtype::Bool => 1,
            Dtype::I16 | Dtype::F16 => 2,
            Dtype::I32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
            Dtype::Bytes => return None,
        })
    }

    /// Whether elements carried as bytes can become elements of another dtype when a batch is laid out.
    #[cfg(feature = "parquet")]
    pub(crate) fn widens_to(self, dtype: Self) -> bool {
        self == dtype || matches!((self, dtype), (Dtype::I32, Dtype::I64) | (Dtype::F32, Dtype::F64))
    }

    /// The Arrow type of one element.
    pub(crate) fn arrow(self) -> DataType {
        match self {
            Dtype::U8 => DataType::UInt8,
            Dtype::I8 => DataType::Int8,
            Dtype::I16 => DataType::Int16,
            Dtype::I32 => DataType::Int32,
            Dtype::I64 => DataType::Int64,
            Dtype::F16 => DataType::Float16,
            Dtype::F32 => DataType::Float32,
            Dtype::F64 => DataType::Float64,
            Dtype::Bool => DataType::Boolean,
            Dtype::Bytes => DataType::BinaryView,
        }
    }

    /// The dtype of an Arrow element type, if it has one.
    pub(crate) fn from_arrow(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::UInt8 => Dtype::U8,
            DataType::Int8 => Dtype::I8,
            DataType::Int16 => Dtype::I16,
            DataType::Int32 => Dtype::I32,
            DataType::Int64 => Dtype::I64,
            DataType::Float16 => Dtype::F16,
            DataType::Float32 => Dtype::F32,
            DataType::Float64 => Dtype::F64,
            DataType::Boolean => Dtype::Bool,
            DataType::BinaryView => Dtype::Bytes,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::U8 => "u8",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::Bool => "bool",
            Dtype::Bytes => "bytes",
        })
    }
}

/// Rust types that can be elements of a column.
///
/// # Example
/// ```
/// use forebay::{Dtype, Element};
///
/// assert_eq!(<f32 as Element>::DTYPE, Dtype::F32);
/// ```
pub trait Element: bytemuck::Pod + arrow::datatypes::ArrowNativeType + sealed::Sealed {
    /// The dtype of columns with elements of this type.
    const DTYPE: Dtype;
    /// The Arrow type of such columns.
    #[doc(hidden)]
    type Arrow: arrow::datatypes::ArrowPrimitiveType<Native = Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($native:ty, $dtype:ident, $arrow:ident;)*) => {$(
        impl sealed::Sealed for $native {}
        impl Element for $native {
            const DTYPE: Dtype = Dtype::$dtype;
            type Arrow = arrow::datatypes::$arrow;
        }
    )*};
}

elements! {
    u8, U8, UInt8Type;
    i8, I8, Int8Type;
    i16, I16, Int16Type;
    i32, I32, Int32Type;
    i64, I64, Int64Type;
    half::f16, F16, Float16Type;
    f32, F32, Float32Type;
    f64, F64, Float64Type;
}

/// The shape of one sample's value in a column.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// One element: batches are `[batch]`.
    Scalar,
    /// The same extents for every sample: batches are `[batch, extents…]`.
    Fixed(Vec<usize>),
    /// Any number of rows of these inner extents (none: a list of elements): batches are `[batch, longest, extents…]`.
    Ragged(Vec<usize>),
}

impl Shape {
    /// Returns the number of elements of one sample; `None` if it varies.
    pub fn elements(&self) -> Option<usize> {
        match self {
            Shape::Scalar => Some(1),
            Shape::Fixed(extents) => Some(extents.iter().product()),
            Shape::Ragged(_) => None,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |extents: &[usize]| extents.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Shape::Scalar => f.write_str("[]"),
            Shape::Fixed(extents) => write!(f, "[{}]", list(extents)),
            Shape::Ragged(inner) if inner.is_empty() => f.write_str("[*]"),
            Shape::Ragged(inner) => write!(f, "[*, {}]", list(inner)),
        }
    }
}

/// One value of a column, as conditions compare it: a number, a boolean, text or a byte string.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A byte string; text is one.
    Bytes(Vec<u8>),
}

macro_rules! values {
    ($($from:ty => $variant:ident ($make:expr);)*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Value::$variant($make(value))
            }
        }
    )*};
}

values! {
    i64 => Int(|v| v);
    i32 => Int(i64::from);
    u32 => Int(i64::from);
    u8 => Int(i64::from);
    f64 => Float(|v| v);
    f32 => Float(f64::from);
    bool => Bool(|v| v);
    &str => Bytes(|v: &str| v.as_bytes().to_vec());
    String => Bytes(String::into_bytes);
    &[u8] => Bytes(<[u8]>::to_vec);
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value:?}"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Bytes(value) => write!(f, "\"{}\"", value.escape_ascii()),
        }
    }
}

/// What a missing feature becomes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// An error that names the record.
    Error,
    /// This value in every element (an empty list for ragged columns).
    Int(i64),
    /// This value in every element (an empty list for ragged columns).
    Float(#[serde(with = "number_or_name")] f64),
    /// This byte string (an empty list for ragged columns).
    Bytes(Vec<u8>),
}

/// Equal if the kind and the value are the same; NaN equals NaN.
impl PartialEq for Missing {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Error, Self::Error) => true,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a == b || a.is_nan() && b.is_nan(),
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            _ => false,
        }
    }
}

/// Stores numbers that JSON lacks by name: `"NaN"`, `"inf"`, `"-inf"`.
mod number_or_name {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum NumberOrName {
        Number(f64),
        Name(String),
    }

    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        let stored =
            if number.is_finite() { NumberOrName::Number(*number) } else { NumberOrName::Name(number.to_string()) };
        stored.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match NumberOrName::deserialize(deserializer)? {
            NumberOrName::Number(number) => Ok(number),
            NumberOrName::Name(name) => name.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// One column of a data set: its name, dtype and shape, and what replaces a missing value.
///
/// # Example
/// ```
/// use forebay::{float32, int64, bytes, Dtype, Shape};
///
/// let label = int64("image/class/label");
/// let bbox = float32("image/object/bbox/xmin").ragged();
/// let pixels = bytes("pixels").raw(Dtype::U8, [8, 8]);
/// assert_eq!(label.shape(), &Shape::Scalar);
/// assert_eq!(bbox.shape(), &Shape::Ragged(vec![]));
/// assert_eq!((pixels.dtype(), pixels.shape()), (Dtype::U8, &Shape::Fixed(vec![8, 8])));
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    name: Arc<str>,
    dtype: Dtype,
    shape: Shape,
    missing: Missing,
    raw: bool,
    /// The dtype of the elements that raw values hold, if it differs from that of the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored: Option<Dtype>,
    sequence: bool,
    #[serde(skip)]
    demands: Demands,
}

/// Further requirements on shards, beyond the column's own description. They do not affect whether columns are equal.
#[derive(Clone, Debug, Default)]
struct Demands {
    /// The unit of the column in the first shard that has it.
    unit: Option<Unit>,
    /// Nulls within lists are errors, even if a missing value is replaced.
    whole_lists: bool,
}

/// The unit of stored numbers. As integers, numbers of different units look alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// No unit: plain numbers.
    Plain,
    /// The last digit of decimals of this scale.
    Decimal(i8),
    /// Times of this kind and unit.
    Time(DataType),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("plain numbers"),
            Self::Decimal(scale) => write!(f, "decimals of scale {scale}"),
            Self::Time(time) => time.fmt(f),
        }
    }
}

impl PartialEq for Demands {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Describes a scalar column of byte strings: encoded images, text.
pub fn bytes(name: impl Into<Arc<str>>) -> Column {
    Column::new(name, Dtype::Bytes, Shape::Scalar)
}

/// Describes a scalar column of 64-bit integers.
pub fn int64(name: impl Into<Arc<str>>) -> Column {
    Column::new(name, Dtype::I64, Shape::Scalar)
}

/// Describes a scalar column of single-precision floats.
pub fn float32(name: impl Into<Arc<str>>) -> Column {
    Column::new(name, Dtype::F32, Shape::Scalar)
}

impl Column {
    /// Describes a column of this dtype and shape; a missing value is an error.
    pub fn new(name: impl Into<Arc<str>>, dtype: Dtype, shape: Shape) -> Self {
        let demands = Demands::default();
        let (missing, raw, stored, sequence) = (Missing::Error, false, None, false);
        Self { name: name.into(), dtype, shape, missing, raw, stored, sequence, demands }
    }

    /// Declares that every sample holds exactly these extents, in row-major order.
    #[must_use]
    pub fn fixed(mut self, extents: impl Into<Vec<usize>>) -> Self {
        self.shape = Shape::Fixed(extents.into());
        self
    }

    /// Declares that samples hold any number of elements.
    #[must_use]
    pub fn ragged(mut self) -> Self {
        self.shape = Shape::Ragged(Vec::new());
        self
    }

    /// Declares that the stored byte string is an array of this dtype and shape: row-major, little-endian, uncompressed.
    #[must_use]
    pub fn raw(mut self, dtype: Dtype, extents: impl Into<Vec<usize>>) -> Self {
        self.dtype = dtype;
        self.shape = Shape::Fixed(extents.into());
        self.raw = true;
        self
    }

    /// Carries the column as the bytes of its elements. These are of dtype `stored`, and are widened when the batch is laid out.
    #[cfg(feature = "parquet")]
    pub(crate) fn carried_raw(mut self, stored: Dtype) -> Self {
        self.raw = true;
        self.stored = (stored != self.dtype).then_some(stored);
        self
    }

    /// The dtype of the elements that raw values hold.
    pub(crate) fn stored_dtype(&self) -> Dtype {
        self.stored.unwrap_or(self.dtype)
    }

    /// Declares that the column is a feature list of a `tf.SequenceExample`: one row of elements per time step.
    ///
    /// A scalar column becomes `Ragged([])`, a fixed one `Ragged(extents)`.
    #[must_use]
    pub fn in_sequence(mut self) -> Self {
        self.sequence = true;
        self.shape = match self.shape {
            Shape::Scalar => Shape::Ragged(Vec::new()),
            Shape::Fixed(extents) => Shape::Ragged(extents),
            ragged => ragged,
        };
        self
    }

    /// Replaces a missing feature by zeros, or by an empty string or list, instead of failing.
    #[must_use]
    pub fn optional(self) -> Self {
        match self.dtype {
            Dtype::Bytes => self.or(Missing::Bytes(Vec::new())),
            Dtype::F16 | Dtype::F32 | Dtype::F64 => self.or(Missing::Float(0.0)),
            _ => self.or(Missing::Int(0)),
        }
    }

    /// Sets what a missing feature becomes.
    #[must_use]
    pub fn or(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    /// Requires every shard to have the same unit in this column, if it is a column of integers.
    pub(crate) fn in_unit(mut self, unit: Option<Unit>) -> Self {
        self.demands.unit = unit;
        self
    }

    /// The unit that shards must have.
    pub(crate) fn unit(&self) -> Option<&Unit> {
        self.demands.unit.as_ref()
    }

    /// Makes nulls within lists errors, whatever replaces a missing value.
    #[cfg(feature = "cli")]
    pub(crate) fn with_whole_lists(mut self) -> Self {
        self.demands.whole_lists = true;
        self
    }

    /// Whether a null within a list makes its row bad.
    pub(crate) fn refuses_null_elements(&self) -> bool {
        self.missing == Missing::Error || self.demands.whole_lists
    }

    /// The same column under another name.
    #[cfg(feature = "cli")]
    pub(crate) fn renamed(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the name, as stored.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the shape of one sample.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns what replaces a missing value.
    pub fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Returns whether values are stored as byte strings that hold the array's memory.
    pub fn is_raw(&self) -> bool {
        self.raw
    }

    /// Returns whether the column is a feature list of a `tf.SequenceExample`.
    pub fn is_sequence(&self) -> bool {
        self.sequence
    }

    /// Returns the number of bytes of one sample in a batch; `None` if it varies.
    pub fn sample_bytes(&self) -> Option<usize> {
        Some(self.shape.elements()? * self.dtype.size()?)
    }

    /// The Arrow type that carries this column between stages.
    ///
    /// Scalars are primitive arrays or `BinaryView`. Fixed shapes are `FixedSizeList` of all elements (row-major), and ragged ones `List` (of `FixedSizeList`
    /// with inner extents). A raw column stays a `BinaryView`, as it was stored.
    pub(crate) fn arrow_type(&self) -> DataType {
        if self.raw {
            return DataType::BinaryView;
        }
        let item = |data_type| Arc::new(Field::new_list_field(data_type, false));
        let fixed = |extents: &[usize]| {
            let elements = extents.iter().product::<usize>().try_into().expect("validated: fewer than 2^31 elements");
            DataType::FixedSizeList(item(self.dtype.arrow()), elements)
        };
        match &self.shape {
            Shape::Scalar => self.dtype.arrow(),
            Shape::Fixed(extents) => fixed(extents),
            Shape::Ragged(inner) if inner.is_empty() => DataType::List(item(self.dtype.arrow())),
            Shape::Ragged(inner) => DataType::List(item(fixed(inner))),
        }
    }

    /// The column that can carry the values of an Arrow field.
    pub(crate) fn from_arrow(field: &Field) -> Result<Self> {
        let dtype = |data_type: &DataType| {
            Dtype::from_arrow(data_type).ok_or_else(|| {
                Error::new(crate::ErrorKind::Schema, format!("Arrow type {} has no tensor dtype", field.data_type()))
                    .column(field.name().as_str())
                    .advice("cast the column, or leave it out")
            })
        };
        let (dtype, shape) = match field.data_type() {
            DataType::List(item) => match item.data_type() {
                DataType::FixedSizeList(inner, n) => (dtype(inner.data_type())?, Shape::Ragged(vec![*n as usize])),
                element => (dtype(element)?, Shape::Ragged(Vec::new())),
            },
            DataType::FixedSizeList(item, n) => (dtype(item.data_type())?, Shape::Fixed(vec![*n as usize])),
            element => (dtype(element)?, Shape::Scalar),
        };
        Ok(Self::new(field.name().as_str(), dtype, shape))
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.dtype)?;
        if self.shape == Shape::Scalar { Ok(()) } else { write!(f, "{}", self.shape) }
    }
}

/// The Arrow schema that carries `columns`.
pub(crate) fn arrow_schema(columns: &[Column]) -> arrow::datatypes::SchemaRef {
    let fields: Fields = columns.iter().map(|c| Field::new(c.name.as_ref(), c.arrow_type(), false)).collect();
    Arc::new(arrow::datatypes::Schema::new(fields))
}

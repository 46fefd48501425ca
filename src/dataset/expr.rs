//! Conditions on columns that are data rather than code, so that a file can tell whether it holds any matching row.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
};

use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape, Value};

/// A condition on the columns of a row, for [`Dataset::filter_where`](crate::Dataset::filter_where).
///
/// Numbers are compared exactly, even an integer with a float; byte strings are compared byte by byte. A NaN is unequal to everything.
///
/// # Example
/// ```
/// use forebay::col;
///
/// let condition = col("lang").eq("en").and(col("tokens").gt(100).or(col("quality").is_in([4, 5])));
/// assert_eq!(condition.to_string(), "lang = \"en\" and (tokens > 100 or quality in [4, 5])");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Expr(pub(crate) Node);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Compare { column: Arc<str>, operator: Operator, value: Value },
    In { column: Arc<str>, values: Vec<Value> },
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Names a column for a comparison.
pub fn col(name: impl Into<Arc<str>>) -> Col {
    Col(name.into())
}

/// A column in a condition.
///
/// # Example
/// ```
/// use forebay::col;
///
/// assert_eq!(col("label").ne(3).to_string(), "label != 3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Col(Arc<str>);

impl Col {
    pub(super) fn compare(self, operator: Operator, value: impl Into<Value>) -> Expr {
        Expr(Node::Compare { column: self.0, operator, value: value.into() })
    }

    /// Holds if the column is equal to a value.
    pub fn eq(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Eq, value)
    }

    /// Holds if the column is unequal to a value.
    pub fn ne(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Ne, value)
    }

    /// Holds if the column is less than a value.
    pub fn lt(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Lt, value)
    }

    /// Holds if the column is at most a value.
    pub fn le(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Le, value)
    }

    /// Holds if the column is greater than a value.
    pub fn gt(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Gt, value)
    }

    /// Holds if the column is at least a value.
    pub fn ge(self, value: impl Into<Value>) -> Expr {
        self.compare(Operator::Ge, value)
    }

    /// Holds if the column is equal to one of these values.
    pub fn is_in(self, values: impl IntoIterator<Item = impl Into<Value>>) -> Expr {
        Expr(Node::In { column: self.0, values: values.into_iter().map(Into::into).collect() })
    }
}

impl Expr {
    /// Holds if both conditions hold.
    #[must_use]
    pub fn and(self, other: Expr) -> Self {
        Self(Node::And(Box::new(self.0), Box::new(other.0)))
    }

    /// Holds if at least one of the conditions holds.
    #[must_use]
    pub fn or(self, other: Expr) -> Self {
        Self(Node::Or(Box::new(self.0), Box::new(other.0)))
    }

    /// Calls `f` with each comparison's column and values.
    pub(crate) fn visit(&self, f: &mut dyn FnMut(&Arc<str>, &[Value])) {
        fn walk(node: &Node, f: &mut dyn FnMut(&Arc<str>, &[Value])) {
            match node {
                Node::Compare { column, value, .. } => f(column, std::slice::from_ref(value)),
                Node::In { column, values } => f(column, values),
                Node::And(a, b) | Node::Or(a, b) => {
                    walk(a, f);
                    walk(b, f);
                }
                Node::Not(inner) => walk(inner, f),
            }
        }
        walk(&self.0, f);
    }

    /// Returns the mistakes of the condition for rows of these columns.
    pub(crate) fn mistakes(&self, columns: &[&Column]) -> Vec<Error> {
        let mut mistakes = Vec::new();
        self.visit(&mut |name, values| {
            let Some(column) = columns.iter().find(|column| column.name() == name) else {
                let names: Vec<_> = columns.iter().map(|column| column.name().as_ref()).collect();
                mistakes.push(
                    Error::new(
                        ErrorKind::Schema,
                        format!("a condition on a column {name:?}; these exist: {}", names.join(", ")),
                    )
                    .advice("look at the spelling; a .columns() before it must name the column, or stand behind it"),
                );
                return;
            };
            let fits = |value: &Value| match (column.dtype(), value) {
                _ if *column.shape() != Shape::Scalar || column.is_raw() => false,
                (Dtype::Bytes, Value::Bytes(_)) | (Dtype::Bool, Value::Bool(_)) => true,
                (Dtype::Bytes | Dtype::Bool, _) | (_, Value::Bytes(_) | Value::Bool(_)) => false,
                _ => true,
            };
            if let Some(value) = values.iter().find(|value| !fits(value)) {
                mistakes.push(
                    Error::new(ErrorKind::Schema, format!("`{column}` compared with {value}"))
                        .advice("compare scalars with numbers, and bytes with text; .filter() takes any function"),
                );
            }
        });
        mistakes
    }

    /// Tells for each row whether the condition holds.
    pub(crate) fn of_rows(&self, rows: &RecordBatch) -> Result<Vec<bool>> {
        self.0.of_rows(rows)
    }
}

impl std::ops::Not for Expr {
    type Output = Self;

    fn not(self) -> Self {
        Self(Node::Not(Box::new(self.0)))
    }
}

impl Operator {
    /// Whether the operator holds for two values that compare like this; `None` means that one is not a number.
    pub(super) fn holds(self, ordering: Option<Ordering>) -> bool {
        match (self, ordering) {
            (Operator::Ne, None) => true,
            (_, None) => false,
            (Operator::Eq, Some(ordering)) => ordering.is_eq(),
            (Operator::Ne, Some(ordering)) => ordering.is_ne(),
            (Operator::Lt, Some(ordering)) => ordering.is_lt(),
            (Operator::Le, Some(ordering)) => ordering.is_le(),
            (Operator::Gt, Some(ordering)) => ordering.is_gt(),
            (Operator::Ge, Some(ordering)) => ordering.is_ge(),
        }
    }
}

/// Compares an integer with a float, without rounding either.
pub(super) fn int_with_float(int: i64, float: f64) -> Option<Ordering> {
    // 2^63: the first float above all integers; its negative is one.
    const ABOVE: f64 = 9_223_372_036_854_775_808.0;
    match float {
        float if float.is_nan() => None,
        ABOVE.. => Some(Ordering::Less),
        float if float < -ABOVE => Some(Ordering::Greater),
        float => {
            let whole = float.trunc();
            Some(int.cmp(&(whole as i64)).then(whole.partial_cmp(&float)?))
        }
    }
}

/// Calls `f` with the result of comparing each value of a column with `value`.
fn compare_all(array: &ArrayRef, value: &Value, f: &mut dyn FnMut(Option<Ordering>)) {
    macro_rules! ints {
        ($type:ty) => {
            match value {
                Value::Int(value) => {
                    array.as_primitive::<$type>().values().iter().for_each(|&v| f(Some(i64::from(v).cmp(value))))
                }
                Value::Float(value) => {
                    array.as_primitive::<$type>().values().iter().for_each(|&v| f(int_with_float(v.into(), *value)))
                }
                _ => (0..array.len()).for_each(|_| f(None)),
            }
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            match value {
                Value::Float(value) => {
                    array.as_primitive::<$type>().values().iter().for_each(|&v| f(f64::from(v).partial_cmp(value)))
                }
                Value::Int(value) => array
                    .as_primitive::<$type>()
                    .values()
                    .iter()
                    .for_each(|&v| f(int_with_float(*value, v.into()).map(Ordering::reverse))),
                _ => (0..array.len()).for_each(|_| f(None)),
            }
        };
    }
    match (array.data_type(), value) {
        (DataType::UInt8, _) => ints!(UInt8Type),
        (DataType::Int8, _) => ints!(Int8Type),
        (DataType::Int16, _) => ints!(Int16Type),
        (DataType::Int32, _) => ints!(Int32Type),
        (DataType::Int64, _) => ints!(Int64Type),
        (DataType::Float16, _) => floats!(Float16Type),
        (DataType::Float32, _) => floats!(Float32Type),
        (DataType::Float64, _) => floats!(Float64Type),
        (DataType::Boolean, Value::Bool(value)) => {
            array.as_boolean().values().iter().for_each(|v| f(Some(v.cmp(value))));
        }
        (DataType::BinaryView, Value::Bytes(value)) => {
            let array = array.as_binary_view();
            (0..array.len()).for_each(|row| f(Some(array.value(row).cmp(value))));
        }
        // Refused when the graph was lowered.
        _ => (0..array.len()).for_each(|_| f(None)),
    }
}

impl Node {
    fn of_rows(&self, rows: &RecordBatch) -> Result<Vec<bool>> {
        let column = |name: &str| {
            let gone = || Error::new(ErrorKind::Schema, "the column of a condition is gone").column(name);
            rows.column_by_name(name).ok_or_else(gone)
        };
        let both = |a: &Node, b: &Node, join: fn(bool, bool) -> bool| -> Result<Vec<bool>> {
            let mut held = a.of_rows(rows)?;
            held.iter_mut().zip(b.of_rows(rows)?).for_each(|(a, b)| *a = join(*a, b));
            Ok(held)
        };
        match self {
            Node::Compare { column: name, operator, value } => {
                let mut held = Vec::with_capacity(rows.num_rows());
                compare_all(column(name)?, value, &mut |ordering| held.push(operator.holds(ordering)));
                Ok(held)
            }
            Node::In { column: name, values } => {
                let mut held = vec![false; rows.num_rows()];
                for value in values {
                    let mut at = held.iter_mut();
                    compare_all(column(name)?, value, &mut |ordering| {
                        if let Some(held) = at.next() {
                            *held |= ordering.is_some_and(Ordering::is_eq);
                        }
                    });
                }
                Ok(held)
            }
            Node::And(a, b) => both(a, b, |a, b| a && b),
            Node::Or(a, b) => both(a, b, |a, b| a || b),
            Node::Not(inner) => Ok(inner.of_rows(rows)?.into_iter().map(|held| !held).collect()),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parts of a joined condition, in parentheses where they are joined otherwise.
        let part = |f: &mut fmt::Formatter<'_>, part: &Node, is_same: fn(&Node) -> bool| match part {
            Node::And(..) | Node::Or(..) if !is_same(part) => write!(f, "({part})"),
            part => write!(f, "{part}"),
        };
        match self {
            Node::Compare { column, operator, value } => {
                let operator = match operator {
                    Operator::Eq => "=",
                    Operator::Ne => "!=",
                    Operator::Lt => "<",
                    Operator::Le => "<=",
                    Operator::Gt => ">",
                    Operator::Ge => ">=",
                };
                write!(f, "{column} {operator} {value}")
            }
            Node::In { column, values } => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(f, "{column} in [{}]", values.join(", "))
            }
            Node::And(a, b) => {
                part(f, a, |node| matches!(node, Node::And(..)))?;
                f.write_str(" and ")?;
                part(f, b, |node| matches!(node, Node::And(..)))
            }
            Node::Or(a, b) => {
                part(f, a, |node| matches!(node, Node::Or(..)))?;
                f.write_str(" or ")?;
                part(f, b, |node| matches!(node, Node::Or(..)))
            }
            Node::Not(inner) => write!(f, "not ({inner})"),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryViewArray, BooleanArray, Float32Array, Int64Array};

    use super::*;
    use crate::{bytes, float32, int64};

    fn rows() -> RecordBatch {
        RecordBatch::try_from_iter([
            ("i", Arc::new(Int64Array::from(vec![-3, 0, 2, i64::MAX])) as ArrayRef),
            ("f", Arc::new(Float32Array::from(vec![-0.5, 0.0, f32::NAN, 2.5]))),
            ("t", Arc::new(BinaryViewArray::from_iter_values([&b""[..], b"a", b"en", b"en"]))),
            ("b", Arc::new(BooleanArray::from(vec![true, false, true, false]))),
        ])
        .unwrap()
    }

    #[test]
    fn conditions_hold_for_the_rows_they_describe() {
        for (condition, held) in [
            (col("i").eq(2), [false, false, true, false]),
            (col("i").lt(0.5), [true, true, false, false]),
            (col("i").lt(9_223_372_036_854_775_808.0), [true; 4]),
            (col("f").ge(0), [false, true, false, true]),
            (col("f").ne(0.0), [true, false, true, true]),
            (!col("f").lt(0.0), [false, true, true, true]),
            (col("t").eq("en"), [false, false, true, true]),
            (col("t").gt("a").and(col("b").eq(true)), [false, false, true, false]),
            (col("i").is_in([0, -3]).or(col("t").eq("en")), [true; 4]),
            (col("b").ne(true).and(col("i").le(1)), [false, true, false, false]),
        ] {
            assert_eq!(condition.of_rows(&rows()).unwrap(), held, "{condition}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_named() {
        let columns = [int64("i"), bytes("t"), float32("v").fixed([2])];
        let columns: Vec<&Column> = columns.iter().collect();
        let said = |condition: Expr| {
            condition.mistakes(&columns).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(said(col("i").gt(1.5).and(col("t").eq("x"))), "");
        assert!(said(col("x").eq(1)).contains("these exist: i, t, v"));
        assert!(said(col("i").eq("x")).contains("`i: i64` compared with \"x\""));
        assert!(said(col("v").eq(1.0)).contains("v: f32[2]"));
    }
}

//! What a condition's outcome can be if only bounds of the values are known, before any row is read.

use std::cmp::Ordering;
use std::sync::Arc;

use super::expr::{Expr, Node, Operator, int_with_float};
use crate::schema::Value;

/// What is known of a column's values in some rows. None of the values is null.
pub(crate) struct Bounds {
    /// A lower and an upper bound: no value is smaller than the first, or larger than the second.
    pub(crate) range: Option<(Value, Value)>,
    /// Returns true if a value does not occur; on false the value may occur.
    pub(crate) excludes: Option<Excludes>,
}

pub(crate) type Excludes = Arc<dyn Fn(&Value) -> bool>;

/// Whether a condition can hold, and whether it can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Possible {
    pub(crate) holds: bool,
    pub(crate) fails: bool,
}

impl Possible {
    const BOTH: Self = Self { holds: true, fails: true };
}

impl Expr {
    /// Whether the condition can hold for a row of which only bounds are known, and whether it can fail.
    pub(crate) fn possible(&self, known: &dyn Fn(&str) -> Option<Bounds>) -> Possible {
        self.0.possible(known)
    }
}

impl Value {
    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Float(b)) => int_with_float(*a, *b),
            (Value::Float(a), Value::Int(b)) => int_with_float(*b, *a).map(Ordering::reverse),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

impl Node {
    fn possible(&self, known: &dyn Fn(&str) -> Option<Bounds>) -> Possible {
        match self {
            Node::Compare { column, operator, value } => {
                known(column).map_or(Possible::BOTH, |bounds| bounds.possible(*operator, value))
            }
            Node::In { column, values } => {
                let Some(bounds) = known(column) else { return Possible::BOTH };
                let each = values.iter().map(|value| bounds.possible(Operator::Eq, value));
                each.fold(Possible { holds: false, fails: true }, |all, one| Possible {
                    holds: all.holds || one.holds,
                    fails: all.fails && one.fails,
                })
            }
            Node::And(a, b) => {
                let (a, b) = (a.possible(known), b.possible(known));
                Possible { holds: a.holds && b.holds, fails: a.fails || b.fails }
            }
            Node::Or(a, b) => {
                let (a, b) = (a.possible(known), b.possible(known));
                Possible { holds: a.holds || b.holds, fails: a.fails && b.fails }
            }
            Node::Not(inner) => {
                let Possible { holds, fails } = inner.possible(known);
                Possible { holds: fails, fails: holds }
            }
        }
    }
}

impl Bounds {
    fn possible(&self, operator: Operator, value: &Value) -> Possible {
        let excluded = || self.excludes.as_ref().is_some_and(|excludes| excludes(value));
        let range = self.range.as_ref().and_then(|(least, most)| Some((least.compare(value)?, most.compare(value)?)));
        let Some((least, most)) = range else {
            return match operator {
                Operator::Eq if excluded() => Possible { holds: false, fails: true },
                Operator::Ne if excluded() => Possible { holds: true, fails: false },
                _ => Possible::BOTH,
            };
        };
        if matches!(self.range, Some((Value::Float(_), _))) {
            // Bounds do not speak of NaNs, of which every comparison fails but `!=`.
            return match operator {
                Operator::Eq => Possible { holds: least.is_le() && most.is_ge(), fails: true },
                Operator::Ne => Possible::BOTH,
                Operator::Lt | Operator::Le => Possible { holds: operator.holds(Some(least)), fails: true },
                Operator::Gt | Operator::Ge => Possible { holds: operator.holds(Some(most)), fails: true },
            };
        }
        match operator {
            Operator::Eq | Operator::Ne => {
                let within = least.is_le() && most.is_ge();
                let equal = within && !excluded();
                let unequal = least.is_ne() || most.is_ne();
                if operator == Operator::Eq {
                    Possible { holds: equal, fails: unequal }
                } else {
                    Possible { holds: unequal, fails: equal }
                }
            }
            Operator::Lt | Operator::Le => {
                Possible { holds: operator.holds(Some(least)), fails: !operator.holds(Some(most)) }
            }
            Operator::Gt | Operator::Ge => {
                Possible { holds: operator.holds(Some(most)), fails: !operator.holds(Some(least)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
    use proptest::prelude::*;

    use super::*;
    use crate::col;

    fn leaf() -> impl Strategy<Value = Expr> {
        let value = prop_oneof![(-4i64..5).prop_map(Value::Int), (-8i64..9).prop_map(|v| Value::Float(v as f64 / 2.0))];
        let values = prop::collection::vec(value.clone(), 0..3);
        let name = prop_oneof![Just("a"), Just("b")];
        let operator = prop_oneof![
            Just(Operator::Eq),
            Just(Operator::Ne),
            Just(Operator::Lt),
            Just(Operator::Le),
            Just(Operator::Gt),
            Just(Operator::Ge)
        ];
        prop_oneof![
            (name.clone(), operator, value).prop_map(|(name, operator, value)| col(name).compare(operator, value)),
            (name, values).prop_map(|(name, values)| col(name).is_in(values)),
        ]
    }

    fn any_expr() -> impl Strategy<Value = Expr> {
        leaf().prop_recursive(3, 12, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
                inner.prop_map(|a| !a),
            ]
        })
    }

    proptest! {
        /// The bounds never rule out a row for which a condition holds.
        #[test]
        fn bounds_rule_out_no_row_that_holds(
            condition in any_expr(),
            a in prop::collection::vec(-3i64..4, 1..6),
            nan in any::<bool>(),
            bounded in any::<bool>(),
        ) {
            let b: Vec<f32> = a.iter().enumerate().map(|(i, &v)| if nan && i == 0 { f32::NAN } else { v as f32 / 2.0 }).collect();
            let rows = RecordBatch::try_from_iter([
                ("a", Arc::new(Int64Array::from(a.clone())) as ArrayRef),
                ("b", Arc::new(Float32Array::from(b.clone()))),
            ]).unwrap();
            let held = condition.of_rows(&rows).unwrap();
            let there = a.clone();
            let excludes: Excludes = Arc::new(move |value: &Value| match value {
                Value::Int(value) => !there.contains(value),
                _ => false,
            });
            let known = |name: &str| match name {
                "a" => Some(Bounds {
                    range: bounded.then_some((Value::Int(*a.iter().min()?), Value::Int(*a.iter().max()?))),
                    excludes: Some(excludes.clone()),
                }),
                _ => {
                    let numbers = || b.iter().copied().filter(|v| !v.is_nan()).map(f64::from);
                    let (least, most) = (numbers().reduce(f64::min)?, numbers().reduce(f64::max)?);
                    Some(Bounds { range: Some((Value::Float(least), Value::Float(most))), excludes: None })
                }
            };
            let possible = condition.possible(&known);
            prop_assert!(possible.holds || !held.contains(&true), "{condition} of {a:?} {b:?}");
            prop_assert!(possible.fails || !held.contains(&false), "{condition} of {a:?} {b:?}");
        }
    }
}

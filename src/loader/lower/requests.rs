//! What a graph needs from its sources, collected before they are opened.

use std::sync::Arc;

use crate::dataset::Dataset;
use crate::dataset::expr::Expr;
use crate::dataset::graph::{Files, Function, Node};
use crate::dataset::validate::all_of;
use crate::error::{Error, Result};
use crate::plan::{Remainder, Shuffle};
use crate::schema::Column;

/// What the graph needs from a source that has to be opened.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// Columns to parse; `None` means those that the first records show.
    pub(crate) columns: Option<Vec<Column>>,
    /// The finest shuffle above it.
    pub(crate) shuffle: Option<Shuffle>,
    /// Why row counts must be known before reading, if they must.
    pub(crate) needs_index: Option<&'static str>,
    /// Conditions that hold for each row that is wanted. Rows for which they do not hold may be left out.
    pub(crate) conditions: Vec<Arc<Expr>>,
    /// Columns of conditions, which are wanted as they are stored, in addition to `columns`.
    pub(crate) also: Vec<Arc<str>>,
    /// Whether anything other than conditions, images and the batch looks at the rows, or joins them with those of other sources.
    pub(crate) is_seen: bool,
}

/// The file nodes of a graph and what is needed from each, in a fixed order.
pub(crate) fn requests(dataset: &Dataset) -> Result<Vec<(&Arc<Node>, &Files, Request)>> {
    struct Walk<'a> {
        found: Vec<(&'a Arc<Node>, &'a Files, Request)>,
        conflicts: Vec<Error>,
    }
    /// What the stages above say about rows.
    #[derive(Clone, Default)]
    struct Above {
        columns: Option<Vec<Column>>,
        conditions: Vec<Arc<Expr>>,
        also: Vec<Arc<str>>,
        is_seen: bool,
    }
    impl Above {
        /// The same without conditions: rows that are counted or paired must all be there.
        fn with_all_rows(&self) -> Self {
            Self { conditions: Vec::new(), ..self.clone() }
        }

        /// What is said about rows that a function may have computed: nothing is known of them.
        fn unknown() -> Self {
            Self { is_seen: true, ..Self::default() }
        }
    }
    impl<'a> Walk<'a> {
        fn go(
            &mut self,
            node: &'a Arc<Node>,
            above: Above,
            shuffle: Option<Shuffle>,
            needs_index: Option<&'static str>,
        ) {
            match &**node {
                Node::Files(files) => self.request(node, files, above, shuffle, needs_index),
                Node::Columns { input, columns } => {
                    let above = Above { columns: Some(columns.clone()), also: Vec::new(), ..above };
                    self.go(input, above, shuffle, needs_index);
                }
                Node::Shuffle { input, shuffle: mode } => {
                    let again = shuffle.is_some().then_some("two shuffles");
                    self.go(input, above, shuffle.or(Some(*mode)), needs_index.or(again));
                }
                Node::Apply { input, function: Function::Where { condition }, .. } => {
                    let mut above = above;
                    condition.visit(&mut |column, _| above.also.push(column.clone()));
                    above.conditions.push(condition.clone());
                    self.go(input, above, shuffle, needs_index);
                }
                Node::Apply { input, function: Function::Image { .. }, .. }
                | Node::Pad { input, .. }
                | Node::Batch { input, .. }
                | Node::Prefetch { input, .. } => {
                    self.go(input, above, shuffle, needs_index);
                }
                Node::Enumerate { input, column } => {
                    let mut above = above.with_all_rows();
                    above.columns =
                        above.columns.map(|w| w.into_iter().filter(|c| c.name() != column.name()).collect());
                    above.also.retain(|name| name != column.name());
                    self.go(input, above, shuffle, needs_index.or(Some("enumerate")));
                }
                Node::Take { input, .. } => {
                    let below = shuffle.is_some_and(|shuffle| !shuffle.is_none()).then_some("a take below a shuffle");
                    self.go(input, above.with_all_rows(), shuffle, needs_index.or(below));
                }
                Node::Remainder { input, remainder } => {
                    let reason = match remainder {
                        // What has arrived is gone when the last batch is to be filled up from the front.
                        Remainder::Repeat => Some("a remainder made up by repetition"),
                        Remainder::Refuse => Some("Remainder::Refuse, which goes by the number of rows,"),
                        Remainder::Keep | Remainder::Drop => None,
                    };
                    self.go(input, above, shuffle, needs_index.or(reason));
                }
                Node::Apply { input, .. } => self.go(input, Above::unknown(), shuffle, needs_index),
                other => {
                    let reason = match other {
                        Node::Zip { .. } => "zip",
                        Node::Concat { .. } => "concat",
                        Node::Mix { .. } => "mix",
                        Node::Interleave { .. } => "interleave",
                        Node::Skip { .. } => "skip",
                        _ => "repeat",
                    };
                    for input in other.inputs() {
                        let mut above = above.with_all_rows();
                        match other {
                            Node::Zip { .. } => above = Above::unknown(),
                            Node::Concat { .. } | Node::Mix { .. } => above.is_seen = true,
                            _ => {}
                        }
                        self.go(input, above, shuffle, needs_index.or(Some(reason)));
                    }
                }
            }
        }

        fn request(
            &mut self,
            node: &'a Arc<Node>,
            files: &'a Files,
            above: Above,
            shuffle: Option<Shuffle>,
            needs_index: Option<&'static str>,
        ) {
            let Above { columns: wanted, conditions, also, is_seen } = above;
            let Some((.., known)) = self.found.iter_mut().find(|(n, ..)| Arc::ptr_eq(n, node)) else {
                self.found.push((
                    node,
                    files,
                    Request { columns: wanted, shuffle, needs_index, conditions, also, is_seen },
                ));
                return;
            };
            // What one branch does not want, the other may.
            known.conditions.clear();
            known.is_seen = true;
            known.also.extend(also);
            known.needs_index = known.needs_index.or(needs_index);
            known.shuffle =
                [known.shuffle, shuffle].into_iter().flatten().max_by_key(|s| s.samples().unwrap_or(u64::MAX));
            // One branch that wants what there is makes all of it be parsed.
            known.columns = match (known.columns.take(), wanted) {
                (Some(mut columns), Some(wanted)) => {
                    for column in wanted {
                        match columns.iter().find(|c| c.name() == column.name()) {
                            None => columns.push(column),
                            Some(same) if *same == column => {}
                            Some(other) => self.conflicts.push(
                                Error::config(format!("two branches declare one column as `{other}` and `{column}`"))
                                    .advice("declare it alike in both calls of .columns()"),
                            ),
                        }
                    }
                    Some(columns)
                }
                _ => None,
            };
        }
    }
    let mut walk = Walk { found: Vec::new(), conflicts: Vec::new() };
    walk.go(&dataset.node, Above::default(), None, None);
    all_of(walk.conflicts)?;
    Ok(walk.found)
}

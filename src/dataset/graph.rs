//! The nodes of the graph.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::expr::Expr;
use super::files::Format;
use super::function::{FilterFn, FlatMapFn, MapBatchFn, MapFn};
use crate::batch::Pad;
use crate::plan::{Exhausted, Remainder, Shuffle, mix};
use crate::schema::Column;
use crate::source::Source;
use crate::transform::image::Image;
use crate::transform::tokens::{Buckets, Chunk, Pack, Part};

/// One node: what it does, and its inputs.
pub(crate) enum Node {
    Files(Files),
    Source(Arc<dyn Source>),
    Columns { input: Arc<Node>, columns: Vec<Column> },
    Apply { input: Arc<Node>, name: String, function: Function },
    Shuffle { input: Arc<Node>, shuffle: Shuffle },
    Interleave { input: Arc<Node>, cycle: usize, run: u64 },
    Concat { inputs: Vec<Arc<Node>> },
    Mix { inputs: Vec<Arc<Node>>, weights: Vec<f64>, exhausted: Exhausted },
    Zip { inputs: Vec<Arc<Node>> },
    Repeat { input: Arc<Node>, times: Option<u64> },
    Take { input: Arc<Node>, rows: u64 },
    Skip { input: Arc<Node>, rows: u64 },
    Enumerate { input: Arc<Node>, column: Column },
    Pad { input: Arc<Node>, column: String, pad: Pad },
    Batch { input: Arc<Node>, size: u64 },
    Remainder { input: Arc<Node>, remainder: Remainder },
    Prefetch { input: Arc<Node>, batches: usize },
}

/// Shards. The format is the one stated or indicated by their patterns; otherwise the names found decide.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) patterns: Vec<String>,
    pub(crate) format: Option<Format>,
}

/// What is done to rows.
#[derive(Clone)]
pub(crate) enum Function {
    Map {
        outputs: Vec<Column>,
        f: Arc<MapFn>,
    },
    MapBatch {
        outputs: Vec<Column>,
        f: Arc<MapBatchFn>,
    },
    Filter {
        f: Arc<FilterFn>,
    },
    Where {
        condition: Arc<Expr>,
    },
    FlatMap {
        outputs: Vec<Column>,
        f: Arc<FlatMapFn>,
    },
    Image {
        column: String,
        image: Arc<Image>,
    },
    /// Turns text into tokens.
    #[cfg(feature = "tokenizers")]
    Tokenize {
        column: String,
        tokenizer: Arc<crate::transform::tokens::Tokenizer>,
    },
    /// Cuts token lists into pieces.
    Chunk {
        column: String,
        chunk: Chunk,
    },
    /// Packs the documents of a window into rows of one length.
    Pack {
        pack: Arc<Pack>,
        /// The columns of its rows. Lowering fills them in.
        outputs: Vec<Column>,
    },
    /// Sorts the samples of a window by length.
    Bucket {
        column: String,
        buckets: Arc<Buckets>,
        /// What a stream contributes to a batch. Lowering fills it in.
        part: Part,
    },
    /// Selects the columns of these names, in this order. Lowering makes this node.
    Select {
        columns: Vec<String>,
    },
}

impl Function {
    /// Whether rows after it no longer correspond to positions: one row may become none or several, or change its place.
    pub(crate) fn changes_rows(&self) -> bool {
        matches!(self, Self::Filter { .. } | Self::Where { .. } | Self::FlatMap { .. } | Self::Chunk { .. })
            || self.window().is_some()
    }

    /// Its operation's name, with an article.
    pub(crate) fn a_verb(&self) -> &'static str {
        match self {
            Self::Map { .. } => "a map",
            Self::MapBatch { .. } => "a map_batch",
            Self::Filter { .. } | Self::Where { .. } => "a filter",
            Self::FlatMap { .. } => "a flat_map",
            Self::Image { .. } => "an image",
            #[cfg(feature = "tokenizers")]
            Self::Tokenize { .. } => "a tokenize",
            Self::Chunk { .. } => "a chunk",
            Self::Pack { .. } => "a pack",
            Self::Bucket { .. } => "a bucket_by_length",
            Self::Select { .. } => "columns",
        }
    }

    /// How many positions of a stream it works on at a time, if it needs all rows made of them.
    pub(crate) fn window(&self) -> Option<u64> {
        match self {
            Self::Pack { pack, .. } => Some(pack.window),
            Self::Bucket { buckets, .. } => Some(buckets.window),
            _ => None,
        }
    }

    /// Whether the report has a line for it.
    pub(crate) fn is_reported(&self) -> bool {
        !matches!(self, Self::Image { .. } | Self::Select { .. })
    }

    /// Whether it may draw random numbers keyed by its name, so that no other function may have this name.
    pub(crate) fn draws(&self) -> bool {
        #[cfg(feature = "tokenizers")]
        if matches!(self, Self::Tokenize { .. }) {
            return false;
        }
        !matches!(self, Self::Where { .. } | Self::Chunk { .. } | Self::Pack { .. } | Self::Select { .. })
    }
}

impl Node {
    /// Whether batches after it have as many samples as a token budget has room for.
    pub(crate) fn holds_tokens(&self) -> bool {
        matches!(self, Node::Apply { function: Function::Bucket { buckets, .. }, .. } if buckets.tokens().is_some())
    }

    pub(crate) fn inputs(&self) -> &[Arc<Node>] {
        match self {
            Node::Files(_) | Node::Source(_) => &[],
            Node::Concat { inputs } | Node::Mix { inputs, .. } | Node::Zip { inputs } => inputs,
            Node::Columns { input, .. }
            | Node::Apply { input, .. }
            | Node::Shuffle { input, .. }
            | Node::Interleave { input, .. }
            | Node::Repeat { input, .. }
            | Node::Take { input, .. }
            | Node::Skip { input, .. }
            | Node::Enumerate { input, .. }
            | Node::Pad { input, .. }
            | Node::Batch { input, .. }
            | Node::Remainder { input, .. }
            | Node::Prefetch { input, .. } => std::slice::from_ref(input),
        }
    }
}

/// Calls `f` for each node once, inputs first.
pub(crate) fn visit<'a>(node: &'a Arc<Node>, f: &mut impl FnMut(&'a Node)) {
    fn walk<'a>(node: &'a Arc<Node>, seen: &mut HashSet<*const Node>, f: &mut impl FnMut(&'a Node)) {
        if seen.insert(Arc::as_ptr(node)) {
            node.inputs().iter().for_each(|input| walk(input, seen, f));
            f(node);
        }
    }
    walk(node, &mut HashSet::new(), f);
}

fn list(columns: &[Column]) -> String {
    columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Files(files) => {
                f.write_str("read ")?;
                let urls = files.patterns.join(", ");
                match &files.format {
                    Some(format) => write!(f, "{} {urls}{}", format.name(), format.options()),
                    None => f.write_str(&urls),
                }
            }
            Node::Source(source) => write!(f, "read {} -> {}", source.name(), list(source.columns())),
            Node::Columns { columns, .. } => write!(f, "columns {}", list(columns)),
            Node::Apply { name, function, .. } => match function {
                Function::Map { outputs, .. } => write!(f, "map {name:?} -> {}", list(outputs)),
                Function::MapBatch { outputs, .. } => write!(f, "map_batch {name:?} -> {}", list(outputs)),
                Function::Filter { .. } => write!(f, "filter {name:?}"),
                Function::Where { condition } => write!(f, "filter where {condition}"),
                Function::FlatMap { outputs, .. } => write!(f, "flat_map {name:?} -> {}", list(outputs)),
                Function::Image { column, image } => write!(f, "image {column}: {image}"),
                #[cfg(feature = "tokenizers")]
                Function::Tokenize { column, tokenizer } => write!(f, "tokenize {column} {tokenizer}"),
                Function::Chunk { column, chunk } => write!(f, "chunk {column} {chunk}"),
                Function::Pack { pack, .. } => write!(f, "pack {pack}"),
                Function::Bucket { column, buckets, .. } => write!(f, "bucket_by_length {column} {buckets}"),
                Function::Select { columns } => write!(f, "columns {}", columns.join(", ")),
            },
            Node::Shuffle { shuffle, .. } => write!(f, "shuffle {shuffle}"),
            Node::Interleave { cycle, run, .. } => write!(f, "interleave {cycle} shards, {run} rows in turn"),
            Node::Concat { .. } => f.write_str("concat"),
            Node::Mix { weights, exhausted, .. } => {
                // As they are rounded; faulty ones are refused before anything comes of them.
                let weights = match mix::quotas(weights) {
                    Ok(quotas) => quotas.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    Err(_) => weights.iter().map(ToString::to_string).collect(),
                };
                write!(f, "mix {}, {exhausted}", weights.join(" : "))
            }
            Node::Zip { .. } => f.write_str("zip"),
            Node::Repeat { times: Some(times), .. } => write!(f, "repeat {times} times"),
            Node::Repeat { times: None, .. } => f.write_str("repeat forever"),
            Node::Take { rows, .. } => write!(f, "take {rows}"),
            Node::Skip { rows, .. } => write!(f, "skip {rows}"),
            Node::Enumerate { column, .. } => write!(f, "enumerate {}", column.name()),
            Node::Pad { column, pad, .. } => write!(f, "pad {column} {pad}"),
            Node::Batch { size, .. } => write!(f, "batch {size} samples over all ranks"),
            Node::Remainder { remainder, .. } => write!(f, "remainder {remainder:?}"),
            Node::Prefetch { batches, .. } => write!(f, "prefetch {batches} batches"),
        }
    }
}

//! [`Dataset`]: the lazy graph that describes which data is read and what happens to it.

#[cfg(feature = "parquet")]
pub(crate) mod bounds;
mod explain;
pub(crate) mod expr;
pub(crate) mod files;
pub(crate) mod function;
pub(crate) mod graph;
pub(crate) mod validate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};

use crate::error::{Error, Result};
use crate::loader::LoaderBuilder;
use crate::plan::{Exhausted, Remainder, Shuffle};
use crate::schema::Column;
use crate::source::{Memory, Source};
use crate::transform::image::Image;
use crate::transform::tokens::{Buckets, Chunk, Pack};
pub use expr::{Col, Expr, col};
pub use files::{ArrowIpc, Csv, Format, ImageFolder, JsonLines, Parquet, Tar, TfRecord};
pub use function::{Context, Row, RowWriter, RowsWriter};
use graph::{Files, Function, Node};

/// A lazy data set: a description of what is read and what happens to it. Nothing is read before `build()`.
///
/// A data set is a value: it is cheap to clone, and each method returns a new one. If two branches of one data set are joined again by [`zip`](Self::zip),
/// their rows are read once.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use arrow::array::Int64Array;
/// use forebay::{Dataset, Shuffle};
///
/// let numbers = Int64Array::from_iter_values(0..1000);
/// let dataset = Dataset::from_columns([("x", Arc::new(numbers) as _)])?
///     .filter("even", |_, row| Ok(row.get::<i64>("x")? % 2 == 0))
///     .shuffle(Shuffle::buffer(100))
///     .batch(50);
/// let batches: Vec<_> = dataset.loader().seed(1).build()?.into_iter().collect::<Result<_, _>>()?;
/// assert_eq!(batches.len(), 10);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone)]
pub struct Dataset {
    pub(crate) node: Arc<Node>,
}

/// One URL or pattern, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Urls(pub(crate) Vec<String>);

impl From<&str> for Urls {
    fn from(url: &str) -> Self {
        Self(vec![url.to_owned()])
    }
}

impl From<String> for Urls {
    fn from(url: String) -> Self {
        Self(vec![url])
    }
}

impl From<&Path> for Urls {
    fn from(path: &Path) -> Self {
        Self(vec![path.display().to_string()])
    }
}

impl From<PathBuf> for Urls {
    fn from(path: PathBuf) -> Self {
        path.as_path().into()
    }
}

impl<T: Into<String>> From<Vec<T>> for Urls {
    fn from(urls: Vec<T>) -> Self {
        Self(urls.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<String>, const N: usize> From<[T; N]> for Urls {
    fn from(urls: [T; N]) -> Self {
        Self(urls.into_iter().map(Into::into).collect())
    }
}

impl<T: AsRef<str>> From<&[T]> for Urls {
    fn from(urls: &[T]) -> Self {
        Self(urls.iter().map(|url| url.as_ref().to_owned()).collect())
    }
}

impl Dataset {
    fn new(node: Node) -> Self {
        Self { node: Arc::new(node) }
    }

    fn then(&self, node: impl FnOnce(Arc<Node>) -> Node) -> Self {
        Self::new(node(self.node.clone()))
    }

    /// Opens shards by URL: `gs://`, `s3://`, `az://`, `http(s)://`, `file://`, or paths.
    ///
    /// URLs may contain globs (`*`, `?`, `[ab]`, `**`), braces (`{a,b}`) and numeric ranges (`{00000..01023}`), or name folders. The names of the shards
    /// determine their [`Format`] (`.parquet`, …): an [`ImageFolder`] if all have names of image files, TFRecord if no name indicates a format.
    ///
    /// # Order
    /// Shards come in byte order of their URLs.
    ///
    /// # Errors
    /// An empty list. `build()` checks what the URLs lead to.
    pub fn open(urls: impl Into<Urls>) -> Result<Self> {
        let Urls(patterns) = urls.into();
        Self::files(Format::of_patterns(&patterns), patterns)
    }

    /// Opens shards like [`open`](Self::open), in a stated format and with options for reading it: [`TfRecord`], ….
    ///
    /// # Errors
    /// An empty list.
    pub fn open_with(urls: impl Into<Urls>, format: impl Into<Format>) -> Result<Self> {
        let Urls(patterns) = urls.into();
        Self::files(Some(format.into()), patterns)
    }

    fn files(format: Option<Format>, patterns: Vec<String>) -> Result<Self> {
        if patterns.is_empty() {
            return Err(Error::config("an empty list of URLs").advice("give Dataset::open at least one"));
        }
        Ok(Self::new(Node::Files(Files { patterns, format })))
    }

    /// Makes a data set from columns in memory. Text and byte strings become columns of bytes.
    ///
    /// # Errors
    /// Columns of unequal length, with nulls, or of a type that no tensor can hold.
    pub fn from_columns<N: Into<String>>(columns: impl IntoIterator<Item = (N, ArrayRef)>) -> Result<Self> {
        let columns = columns.into_iter().map(|(name, array)| (name.into(), array)).collect();
        Ok(Self::from_source(Memory::new(columns)?))
    }

    /// Makes a data set from the rows of your own [`Source`].
    pub fn from_source(source: impl Source) -> Self {
        Self::new(Node::Source(Arc::new(source)))
    }

    /// Selects these columns, in this order.
    ///
    /// Directly on shards, the columns say how features are parsed, and all other features are skipped. Elsewhere they select existing columns by name. Without
    /// this call, the columns are inferred from the first records.
    ///
    /// A declared column `NAME.is_present` of dtype bool that shards of a columnar format do not have is the mask of `NAME`: it says whether a value is
    /// present, for columns where `.or(..)` says what replaces a null.
    #[must_use]
    pub fn columns(&self, columns: impl IntoIterator<Item = Column>) -> Self {
        self.then(|input| Node::Columns { input, columns: columns.into_iter().collect() })
    }

    fn apply(&self, name: impl Into<String>, function: Function) -> Self {
        self.then(|input| Node::Apply { input, name: name.into(), function })
    }

    /// Computes columns of each row: `f` reads the row and sets every column of `outputs`. These columns are added to the row, or replace its columns of the
    /// same name.
    ///
    /// `name` identifies the function in states and reports: when you change the function, change its name (`"crop@2"`).
    ///
    /// # Randomness
    /// [`Context::rng`] depends on (seed, sample, how often the sample was drawn, `name`) only. Each call restarts the generator: to get numbers that differ,
    /// call it once, `let mut rng = context.rng();`, and draw them all from it.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// use forebay::{Dataset, float32};
    ///
    /// # let dataset = Dataset::from_columns([("x", Arc::new(Int64Array::from(vec![1, 2])) as _)])?;
    /// let halves = dataset.map("half@1", [float32("half")], |_, row, out| out.set("half", row.get::<i64>("x")? as f32 / 2.0));
    /// for batch in halves.batch(2).loader().build()? {
    ///     assert_eq!(*batch?.values::<f32>("half")?, [0.5, 1.0]);
    /// }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn map(
        &self,
        name: impl Into<String>,
        outputs: impl IntoIterator<Item = Column>,
        f: impl Fn(&Context, Row<'_>, &mut RowWriter<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.apply(name, Function::Map { outputs: outputs.into_iter().collect(), f: Arc::new(f) })
    }

    /// Computes columns of many rows at once, as Arrow arrays.
    ///
    /// Before [`batch`](Self::batch), `f` gets an unspecified number of rows; after it, exactly one batch. `f` returns as many rows as it got, with the columns
    /// of `outputs`.
    #[must_use]
    pub fn map_batch(
        &self,
        name: impl Into<String>,
        outputs: impl IntoIterator<Item = Column>,
        f: impl Fn(&[Context], &RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static,
    ) -> Self {
        self.apply(name, Function::MapBatch { outputs: outputs.into_iter().collect(), f: Arc::new(f) })
    }

    /// Keeps the rows for which `f` is true.
    #[must_use]
    pub fn filter(
        &self,
        name: impl Into<String>,
        f: impl Fn(&Context, Row<'_>) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.apply(name, Function::Filter { f: Arc::new(f) })
    }

    /// Keeps the rows for which a condition on columns holds: `filter_where(col("lang").eq("en"))`.
    ///
    /// Data that a source can rule out in advance is never read. This works for a condition directly on Parquet files, with nothing but shuffles, other
    /// conditions and images of other columns in between. There, row groups and pages are skipped if their statistics, bloom filters or page indexes rule out
    /// that the condition holds for any of their rows. The skipped rows are then not part of the data set: they have no sample ids, and shuffles do not count
    /// them. All other rows are tested one by one, so the rows delivered are the same either way. The condition's columns are read for the test even if a later
    /// [`columns`](Self::columns) does not name them.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// use forebay::{Dataset, col};
    ///
    /// # let dataset = Dataset::from_columns([("label", Arc::new(Int64Array::from(vec![1, 2, 3, 2])) as _)])?;
    /// for batch in dataset.filter_where(col("label").is_in([2, 4])).batch(8).loader().build()? {
    ///     assert_eq!(*batch?.values::<i64>("label")?, [2, 2]);
    /// }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn filter_where(&self, condition: Expr) -> Self {
        self.apply(condition.to_string(), Function::Where { condition: Arc::new(condition) })
    }

    /// Turns each row into any number of rows: `f` calls [`RowsWriter::push`] once for each new row.
    ///
    /// A new row has the columns of `outputs`; its other columns keep the values of the original row.
    #[must_use]
    pub fn flat_map(
        &self,
        name: impl Into<String>,
        outputs: impl IntoIterator<Item = Column>,
        f: impl Fn(&Context, Row<'_>, &mut RowsWriter<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.apply(name, Function::FlatMap { outputs: outputs.into_iter().collect(), f: Arc::new(f) })
    }

    /// Tokenizes the text of a column into a further column, `tokens` (or the one that [`output`](crate::Tokenizer::output) names).
    ///
    /// # Shape
    /// `column`: text, or bytes that are UTF-8 -> `i64` (or `i32`, on request) ragged `[n]`; n may be 0.
    ///
    /// # Order
    /// Rows keep their order. States identify the tokenizer file by its bytes, and a loader refuses a state of another file.
    ///
    /// # Errors
    /// Bytes that are not UTF-8, and errors of the tokenizer, are errors of their record. `build()` refuses a column that does not hold text.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # let folder = tempfile::tempdir().expect("a folder");
    /// # let path = folder.path().join("tokenizer.json");
    /// # let model = r#"{"type": "WordLevel", "vocab": {"[UNK]": 0, "one": 1, "two": 2}, "unk_token": "[UNK]"}"#;
    /// # let file = format!(r#"{{"version": "1.0", "pre_tokenizer": {{"type": "Whitespace"}}, "model": {model}}}"#);
    /// # std::fs::write(&path, file).expect("a disk");
    /// # let texts = arrow::array::StringArray::from(vec!["one two one", "two"]);
    /// # let dataset = forebay::Dataset::from_columns([("text", Arc::new(texts) as _)])?;
    /// use forebay::{Pack, Tokenizer};
    ///
    /// let tokens = dataset.tokenize("text", Tokenizer::from_file(path)?);
    /// let packed = tokens.pack(Pack::best_fit(6).eos(9)).batch(1);
    /// let batch = packed.loader().build()?.epoch(0).next().expect("a row")?;
    /// assert_eq!(*batch.values::<i64>("input_ids")?, [1, 2, 1, 9, 2, 9]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[cfg(feature = "tokenizers")]
    #[must_use]
    pub fn tokenize(&self, column: impl Into<String>, tokenizer: crate::transform::tokens::Tokenizer) -> Self {
        let column = column.into();
        self.apply(format!("tokenize {column}"), Function::Tokenize { column, tokenizer: Arc::new(tokenizer) })
    }

    /// Cuts the token lists of a column into pieces. Each piece becomes a row.
    ///
    /// The other columns of a row are repeated unchanged for each piece, except those that [`Chunk::beside`] names, which are cut in the same places. A row
    /// without tokens yields no rows.
    ///
    /// # Shape
    /// `column`, and the columns cut with it: ragged `[n, …]`, of any dtype -> ragged `[1..=len, …]`, or exactly `len` with [`Chunk::drop_last`].
    ///
    /// # Order
    /// The pieces of a row stay in order and take its place, like the rows that a [`flat_map`](Self::flat_map) makes. With several ranks, state
    /// `steps_per_epoch(n)`.
    ///
    /// # Memory
    /// Pieces are views into the data that was read; with `drop_last` they are copied.
    ///
    /// # Errors
    /// `build()` refuses a length of 0, and a column that is not ragged. A document is a bad record if a column cut with the tokens has another number of
    /// elements than there are tokens.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::ListArray;
    /// # use arrow::datatypes::Int32Type;
    /// # let documents = [5, 2].map(|n| Some((0..n).map(Some).collect::<Vec<_>>()));
    /// # let documents = ListArray::from_iter_primitive::<Int32Type, _, _>(documents);
    /// # let dataset = forebay::Dataset::from_columns([("tokens", Arc::new(documents) as _)])?;
    /// // Documents of 5 and of 2 tokens.
    /// let pieces = dataset.chunk("tokens", 3).batch(3);
    /// let batch = pieces.loader().streams(1).build()?.epoch(0).next().expect("three pieces")?;
    /// assert_eq!(batch.lengths("tokens")?, [3, 2, 2]);
    /// assert_eq!(*batch.values::<i32>("tokens")?, [0, 1, 2, 3, 4, 0, 0, 1, 0]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn chunk(&self, column: impl Into<String>, chunk: impl Into<Chunk>) -> Self {
        let column = column.into();
        self.apply(format!("chunk {column}"), Function::Chunk { column, chunk: chunk.into() })
    }

    /// Packs documents into rows of one length, several to a row: first fit, best fit, or end to end, as [`Pack`] says.
    ///
    /// The rows have these columns and no others:
    ///
    /// | column | shape | holds |
    /// |---|---|---|
    /// | `input_ids` | `i64 [len]` | the tokens, followed by [`pad_value`](Pack::pad_value) |
    /// | `position_ids` | `i64 [len]` | the token's position in its document, from 0; in a document that was split, its position in the piece. 0 for padding |
    /// | `segment_ids` | `i64 [len]` | the number of the token's document within the row, from 1; 0 for padding |
    /// | `cu_seqlens` | `i32` ragged | where the row's documents begin, from 0, where the padding begins, and `len` |
    /// | those named by [`beside`](Pack::beside) | their dtype, `[len]` | their elements at the positions of the tokens, and a stated value in the padding |
    ///
    /// On request, `cu_seqlens` replaces `segment_ids`, and `i64` columns become `i32`. FlashAttention's `varlen` functions take `cu_seqlens`: segment i is the
    /// tokens `cu[i]..cu[i + 1]`. Padding is a segment of its own, the last one. In a batch, rows with fewer segments are filled up with `len`, that is, with
    /// empty segments. To use the rows of a batch end to end, add `r · len` to the entries of row r. `Batch::lengths("cu_seqlens")` says how many entries
    /// belong to each row.
    ///
    /// # Order
    /// Documents are packed in windows: a window is `window` consecutive positions of a stream, whatever earlier stages made of them. A row never holds
    /// documents of two windows, so a run can resume from the middle of a window, in any world. Within a window, rows come in the order of their first
    /// documents. Within a row, documents stand in the order of the data set. Pieces of a split document may stand in an earlier row than its beginning. With
    /// several ranks, state `steps_per_epoch(n)`.
    ///
    /// States and ledgers identify a row by its first document, its number in the window, and a checksum of which tokens of which records it holds. Equal
    /// ledgers mean the same documents in the same rows.
    ///
    /// # Memory
    /// A window for each of a rank's streams, both as read and as packed.
    ///
    /// # Errors
    /// `build()` refuses options that contradict each other, and a column that is not a ragged one of integers. Three things are errors of their record: a
    /// document that is too long (with [`Long::Error`](crate::Long::Error)), a token that does not fit, and a column beside the tokens with more or fewer
    /// elements. An error ends the epoch before the first row of its window.
    ///
    /// # Source
    /// Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021; Ding et al., "Fewer Truncations Improve Language Modeling",
    /// ICML 2024.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::ListArray;
    /// # use arrow::datatypes::Int32Type;
    /// # let documents = [4, 3, 2].map(|n| Some((0..n).map(|t| Some(10 * n + t)).collect::<Vec<_>>()));
    /// # let documents = ListArray::from_iter_primitive::<Int32Type, _, _>(documents);
    /// # let dataset = forebay::Dataset::from_columns([("tokens", Arc::new(documents) as _)])?;
    /// use forebay::Pack;
    ///
    /// // Documents of 4, 3 and 2 tokens.
    /// let packed = dataset.pack(Pack::best_fit(6)).batch(2);
    /// let mut loader = packed.loader().streams(1).build()?;
    /// let batch = loader.epoch(0).next().expect("two rows")?;
    /// assert_eq!(*batch.values::<i64>("input_ids")?, [40, 41, 42, 43, 20, 21, 30, 31, 32, 0, 0, 0]);
    /// assert_eq!(*batch.values::<i64>("segment_ids")?, [1, 1, 1, 1, 2, 2, 1, 1, 1, 0, 0, 0]);
    /// let padding = loader.report().stage("pack").expect("it packed").padding;
    /// assert!(padding > 0 && padding.is_multiple_of(3), "3 for this epoch and for each that was packed ahead");
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn pack(&self, pack: Pack) -> Self {
        self.apply("pack", Function::Pack { pack: Arc::new(pack), outputs: Vec::new() })
    }

    /// Brings samples of similar length into the same batches, as [`Buckets`] says.
    ///
    /// The length of a sample is the number of rows of a ragged column, or the number of bytes of a column of byte strings.
    ///
    /// With [`Buckets::boundaries`], batches have the size that [`batch`](Self::batch) says. With [`Buckets::token_budget`], they have as many samples as the
    /// budget has room for: the number of samples times the longest is at most the budget. Each stream stays within its share `budget / streams`. Unless
    /// `.streams(n)` says otherwise, there is then one stream per rank, so each rank's batch stays within its share too. With more streams than ranks (for
    /// other world sizes later), a rank pads the parts of several streams to one length, and may exceed its share many times over; a note in the report says
    /// so.
    ///
    /// # Order
    /// Samples are sorted by bucket (or length) within windows of `window` consecutive positions of a stream. The sorted samples are cut into shares of a
    /// batch. The shares are dealt in an order that depends on (seed, epoch, window) and on their number, so in the same step all streams deal about the same
    /// quantile of their lengths. After a `filter` or a [`chunk`](Self::chunk), windows have different numbers of rows. Streams then drift apart, and so do the
    /// lengths in a batch. Samples of a bucket keep their order. With several ranks, state `steps_per_epoch(n)`.
    ///
    /// # Memory
    /// A window for each of a rank's streams.
    ///
    /// # Errors
    /// `build()` refuses boundaries that do not ascend, a budget that gives a stream less than one token, and later stages that change the number of rows. A
    /// sample longer than a stream's share of the budget is an error of its record. An error ends the epoch before the first row of its window.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::ListArray;
    /// # use arrow::datatypes::Int32Type;
    /// # let documents = (0..64).map(|i| Some(vec![Some(1); 1 + i * 37 % 64]));
    /// # let documents = ListArray::from_iter_primitive::<Int32Type, _, _>(documents);
    /// # let dataset = forebay::Dataset::from_columns([("tokens", Arc::new(documents) as _)])?;
    /// use forebay::Buckets;
    ///
    /// // Documents of 1 to 64 tokens, in no order.
    /// let bucketed = dataset.bucket_by_length("tokens", Buckets::token_budget(256)).batch(32);
    /// for batch in bucketed.loader().build()? {
    ///     let batch = batch?;
    ///     let longest = batch.lengths("tokens")?.iter().max().copied().unwrap_or(0);
    ///     assert!(batch.len() as i64 * longest <= 256 && batch.len() <= 32);
    /// }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn bucket_by_length(&self, column: impl Into<String>, buckets: Buckets) -> Self {
        let column = column.into();
        let function = Function::Bucket { column, buckets: Arc::new(buckets), part: Default::default() };
        self.apply("bucket_by_length", function)
    }

    /// Decodes the encoded images of a column of bytes and prepares them as `image` says. The column keeps its name.
    #[must_use]
    pub fn image(&self, column: impl Into<String>, image: Image) -> Self {
        let column = column.into();
        self.apply(format!("image {column}"), Function::Image { column, image: Arc::new(image) })
    }

    /// Shuffles the samples; see [`Shuffle`]. Every epoch has its own order.
    ///
    /// Rows are drawn before functions are applied, wherever the functions stand in the graph: a shuffle after a [`filter`](Self::filter) counts the rows that
    /// went into the filter.
    #[must_use]
    pub fn shuffle(&self, shuffle: Shuffle) -> Self {
        self.then(|input| Node::Shuffle { input, shuffle })
    }

    /// Reads `cycle` shards in turn, `run` rows from each. Lane j reads the shards j, j + cycle, j + 2·cycle, … one after another.
    #[must_use]
    pub fn interleave(&self, cycle: usize, run: usize) -> Self {
        self.then(|input| Node::Interleave { input, cycle, run: run as u64 })
    }

    /// Appends the rows of `next` to the rows of this data set. Both need the same columns.
    #[must_use]
    pub fn concat(&self, next: &Dataset) -> Self {
        self.then(|input| Node::Concat { inputs: vec![input, next.node.clone()] })
    }

    /// Mixes the rows of several data sets in the proportions of their weights, for instance 7 of the one and 3 of the other in every run of 10 samples. All
    /// need the same columns.
    ///
    /// Weights are proportions: 7 and 3 mean the same as 0.7 and 0.3. Whole numbers are kept exactly if their sum, after division by their common divisor, is
    /// at most 65,536. Other weights are rounded to thousandths of their sum. [`explain`](Self::explain) shows the weights used. `exhausted` says what happens
    /// when a part has delivered its last row.
    ///
    /// # Order
    /// The positions of an epoch form windows whose length is the sum of the weights, here 10. Each window has its own order, a function of (seed, epoch,
    /// window). The rows of a part come in the part's own order: shuffle each part, with its own buffer, rather than the mix. A shuffle of the mix keeps the
    /// proportions only over the whole epoch. Place functions that the parts have in common, above all images, after the mix: pixels are then decoded into the
    /// batch, and not copied from their part.
    ///
    /// # Errors
    /// `build()` refuses weights that are not above 0, parts whose columns differ, and parts whose rows cannot be counted in advance: shards without an index,
    /// and rows after a `filter` or `flat_map`. Filter the mix instead.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// use forebay::{Dataset, Exhausted, Shuffle};
    ///
    /// # let numbers = |range: std::ops::Range<i64>| Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(range)) as _)]);
    /// let web = numbers(0..1000)?.shuffle(Shuffle::buffer(256));
    /// let code = numbers(1000..1100)?.shuffle(Shuffle::buffer(64));
    /// let mix = Dataset::mix([(web, 0.7), (code, 0.3)], Exhausted::Stop);
    /// for batch in mix.batch(30).loader().seed(42).build()? {
    ///     assert_eq!(batch?.values::<i64>("x")?.iter().filter(|&&x| x < 1000).count(), 21);
    /// }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn mix(parts: impl IntoIterator<Item = (Dataset, impl Into<f64>)>, exhausted: Exhausted) -> Self {
        let parts = parts.into_iter().map(|(part, weight)| (part.node, weight.into()));
        let (inputs, weights) = parts.unzip();
        Self::new(Node::Mix { inputs, weights, exhausted })
    }

    /// Joins the columns of this data set and of `other` row by row, until the shorter one ends. Names must differ, except for columns that both take from the
    /// same data set.
    #[must_use]
    pub fn zip(&self, other: &Dataset) -> Self {
        self.then(|input| Node::Zip { inputs: vec![input, other.node.clone()] })
    }

    /// Repeats the data set `times` times in an epoch; a shuffle before it draws a new order each time.
    #[must_use]
    pub fn repeat(&self, times: u64) -> Self {
        self.then(|input| Node::Repeat { input, times: Some(times) })
    }

    /// Repeats the data set without end, in one endless epoch.
    #[must_use]
    pub fn repeat_forever(&self) -> Self {
        self.then(|input| Node::Repeat { input, times: None })
    }

    /// Keeps the first `rows` rows; after [`batch`](Self::batch), the first `rows` batches.
    ///
    /// After a shuffle, these are other rows in each epoch. Therefore hold out validation data before the shuffle: `all.take(n)`, and `all.skip(n).shuffle(..)`
    /// to train on.
    #[must_use]
    pub fn take(&self, rows: u64) -> Self {
        self.then(|input| Node::Take { input, rows })
    }

    /// Skips the first `rows` rows; after [`batch`](Self::batch), the first `rows` batches.
    #[must_use]
    pub fn skip(&self, rows: u64) -> Self {
        self.then(|input| Node::Skip { input, rows })
    }

    /// Adds a column `name` (`i64`) with each row's position in the order at this point of the graph.
    #[must_use]
    pub fn enumerate(&self, name: impl Into<String>) -> Self {
        let column = crate::schema::int64(name.into());
        self.then(|input| Node::Enumerate { input, column })
    }

    /// Sets how a ragged column is padded. The default is zeros, up to the longest sample of each batch.
    ///
    /// The setting also applies to lists that a later function puts into a column of this name. Parts of a [`concat`](Self::concat) or [`mix`](Self::mix) must
    /// be padded alike; the simplest way is one call after them.
    ///
    /// For the `cu_seqlens` that [`pack`](Self::pack) makes, it sets only the length: the entries that fill up are always the row's length.
    #[must_use]
    pub fn pad(&self, column: impl Into<String>, pad: crate::batch::Pad) -> Self {
        let column = column.into();
        self.then(|input| Node::Pad { input, column, pad })
    }

    /// Groups samples into batches of `size`: the global batch of a training step, over all ranks.
    #[must_use]
    pub fn batch(&self, size: usize) -> Self {
        self.then(|input| Node::Batch { input, size: size as u64 })
    }

    /// Sets what happens to the rows at the end of an epoch that do not fill a batch.
    #[must_use]
    pub fn remainder(&self, remainder: Remainder) -> Self {
        self.then(|input| Node::Remainder { input, remainder })
    }

    /// Leaves out the last batch of an epoch when it is not full: `remainder(Remainder::Drop)`.
    #[must_use]
    pub fn drop_remainder(&self) -> Self {
        self.remainder(Remainder::Drop)
    }

    /// Sets how many finished batches may wait for the training loop. The default is 2, or up to 64 small batches while they take less than 1 MiB. More batches
    /// even out jitter, and take memory.
    #[must_use]
    pub fn prefetch(&self, batches: usize) -> Self {
        self.then(|input| Node::Prefetch { input, batches })
    }

    /// Starts a loader of this data set: the next step towards batches.
    pub fn loader(&self) -> LoaderBuilder {
        LoaderBuilder::new(self.clone())
    }

    /// Returns the graph as text: one line per stage, from the source down, with what it will do.
    pub fn explain(&self) -> String {
        explain::text(&self.node)
    }

    /// Returns the graph in Graphviz's DOT language.
    pub fn to_dot(&self) -> String {
        explain::dot(&self.node)
    }

    /// Returns the graph as a Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        explain::mermaid(&self.node)
    }

    /// Returns names that two functions on the path of the same rows share: such functions would draw the same random numbers. Parts of a mix or a
    /// concatenation have different rows.
    pub(crate) fn names_drawn_twice(&self) -> BTreeSet<String> {
        /// Each name with its stage: a stage that is reached on two paths counts once.
        type Names = BTreeMap<String, *const Node>;
        fn walk(node: &Arc<Node>, known: &mut HashMap<*const Node, Names>, twice: &mut BTreeSet<String>) -> Names {
            let this = Arc::as_ptr(node);
            if let Some(names) = known.get(&this) {
                return names.clone();
            }
            let parted = matches!(&**node, Node::Mix { .. } | Node::Concat { .. });
            let mut names = Names::new();
            for input in node.inputs() {
                for (name, stage) in walk(input, known, twice) {
                    if names.insert(name.clone(), stage).is_some_and(|other| other != stage && !parted) {
                        twice.insert(name);
                    }
                }
            }
            if let Node::Apply { name, function, .. } = &**node
                && function.draws()
                && names.insert(name.clone(), this).is_some()
            {
                twice.insert(name.clone());
            }
            known.insert(this, names.clone());
            names
        }
        let mut twice = BTreeSet::new();
        walk(&self.node, &mut HashMap::new(), &mut twice);
        twice
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.explain())
    }
}

impl std::fmt::Display for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.explain())
    }
}

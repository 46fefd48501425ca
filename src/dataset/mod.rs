//! [`Dataset`]: the lazy graph of what is read and what happens to it.

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
/// It is a value: cheap to clone, and each verb gives a new one. Two branches made from one data set and joined again by
/// [`zip`](Self::zip) read it once.
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

/// URLs or patterns: one, or a list.
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

    /// Shards by URL: `gs://`, `s3://`, `az://`, `http(s)://`, `file://`, paths; with globs (`*`, `?`, `[ab]`, `**`),
    /// braces (`{a,b}`), numeric ranges (`{00000..01023}`) and folders.
    ///
    /// Their names say which [`Format`] they have (`.parquet`, …): an [`ImageFolder`] where all are called like images, TFRecord where none says
    /// anything.
    ///
    /// # Order
    /// Shards in byte order of their URLs.
    ///
    /// # Errors
    /// An empty list. What the URLs lead to is looked at by `build()`.
    pub fn open(urls: impl Into<Urls>) -> Result<Self> {
        let Urls(patterns) = urls.into();
        Self::files(Format::of_patterns(&patterns), patterns)
    }

    /// Like [`open`](Self::open), in a stated format, with a say in how it is read: [`TfRecord`], ….
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

    /// Columns in memory. Text and byte strings become columns of bytes.
    ///
    /// # Errors
    /// Columns of unequal length, with nulls, or of a type that no tensor can hold.
    pub fn from_columns<N: Into<String>>(columns: impl IntoIterator<Item = (N, ArrayRef)>) -> Result<Self> {
        let columns = columns.into_iter().map(|(name, array)| (name.into(), array)).collect();
        Ok(Self::from_source(Memory::new(columns)?))
    }

    /// Rows of the user's own [`Source`].
    pub fn from_source(source: impl Source) -> Self {
        Self::new(Node::Source(Arc::new(source)))
    }

    /// The columns wanted, in this order.
    ///
    /// Above shards they say how features are parsed, and all others are skipped; elsewhere they choose among the columns
    /// there are by name. Without it, the columns are inferred from the first records.
    ///
    /// A declared column `NAME.is_present` of dtype bool that shards of a columnar format do not have is the mask of `NAME`: whether its value is there, where
    /// `.or(..)` says what stands for a null.
    #[must_use]
    pub fn columns(&self, columns: impl IntoIterator<Item = Column>) -> Self {
        self.then(|input| Node::Columns { input, columns: columns.into_iter().collect() })
    }

    fn apply(&self, name: impl Into<String>, function: Function) -> Self {
        self.then(|input| Node::Apply { input, name: name.into(), function })
    }

    /// Computes columns of each row: `f` reads the row and sets every column of `outputs`, which are added to the row or
    /// replace its columns of that name.
    ///
    /// `name` stands for the function in states and reports: give a changed function a changed name (`"crop@2"`).
    ///
    /// # Randomness
    /// [`Context::rng`] depends on (seed, sample, how often it was drawn, `name`) only. Each call begins it anew: take it once, `let mut rng = context.rng();`, for
    /// numbers that differ.
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

    /// Computes columns of many rows at once, as Arrow arrays: before [`batch`](Self::batch) of some rows (how many is not
    /// said), behind it of exactly a batch. `f` returns as many rows as it got, with the columns of `outputs`.
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
    /// What a source can tell beforehand is never read: right above Parquet files (with nothing but shuffles, other conditions and images of other
    /// columns between), row groups and pages are left out whose statistics, bloom filters or page indexes rule out that any row of them holds. Their rows are
    /// then no part of the data set: they have no sample ids, and shuffles do not count them. All others are looked at row by row, so
    /// the rows delivered are the same either way. The condition's columns are read for it, also where [`columns`](Self::columns)
    /// above it do not name them.
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

    /// Turns each row into any number of rows: `f` calls [`RowsWriter::push`] for each. They have the columns of `outputs`, and
    /// of the others what the row had.
    #[must_use]
    pub fn flat_map(
        &self,
        name: impl Into<String>,
        outputs: impl IntoIterator<Item = Column>,
        f: impl Fn(&Context, Row<'_>, &mut RowsWriter<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.apply(name, Function::FlatMap { outputs: outputs.into_iter().collect(), f: Arc::new(f) })
    }

    /// Makes tokens of the text of a column, in a further column `tokens` (or as [`output`](crate::Tokenizer::output) says).
    ///
    /// # Shape
    /// `column`: text, or bytes that are UTF-8 -> `i64` (or `i32`, if told) ragged `[n]`; n may be 0.
    ///
    /// # Order
    /// That of the rows. States know the tokenizer file by its bytes: one of another is refused.
    ///
    /// # Errors
    /// Bytes that are no UTF-8, and what the tokenizer says, are errors of their record. `build()` refuses a column that holds no text.
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

    /// Cuts the token lists of a column into pieces: each row becomes one row for each piece, with the other columns as they were, but for those that
    /// [`Chunk::beside`] names, which are cut likewise. A row without tokens becomes none.
    ///
    /// # Shape
    /// `column`, and those beside it: ragged `[n, …]`, of any dtype -> ragged `[1..=len, …]`, or exactly `len` with [`Chunk::drop_last`].
    ///
    /// # Order
    /// The pieces of a row stand in their order, in its place, like those of a [`flat_map`](Self::flat_map). With several ranks state
    /// `steps_per_epoch(n)`.
    ///
    /// # Memory
    /// Pieces are views into what was read; with `drop_last` they are copied.
    ///
    /// # Errors
    /// `build()` refuses a length of 0, and a column that is not ragged. A document for which a column beside the tokens has another number of elements is a
    /// bad record.
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

    /// Packs documents into rows of one length, several in a row: first fit, best fit, or end to end, as [`Pack`] says. The rows have these
    /// columns and no others:
    ///
    /// | column | shape | holds |
    /// |---|---|---|
    /// | `input_ids` | `i64 [len]` | the tokens, and [`pad_value`](Pack::pad_value) behind the last |
    /// | `position_ids` | `i64 [len]` | the token's place in its document, from 0; of a document in pieces, in the piece. 0 for padding |
    /// | `segment_ids` | `i64 [len]` | which document of the row it is of, from 1; 0 for padding |
    /// | `cu_seqlens` | `i32` ragged | where the row's documents begin, from 0, where the padding begins, and `len` |
    /// | those named by [`beside`](Pack::beside) | their dtype, `[len]` | their elements where the tokens stand, and a stated value in the padding |
    ///
    /// `cu_seqlens` is there if asked for, instead of `segment_ids`; `i64` may be `i32`, if told. It is what FlashAttention's `varlen` functions
    /// take: segment i is the tokens `cu[i]..cu[i + 1]`. Padding is a segment of its own, the last; in a batch, rows with fewer
    /// segments are filled up with `len`: segments without tokens. So for the rows of a batch end to end, add `r · len` to
    /// those of row r. `Batch::lengths("cu_seqlens")` says how many entries are a row's own.
    ///
    /// # Order
    /// Documents are packed in windows: `window` consecutive positions of a stream, whatever became of them on their way. A row never holds documents of
    /// two windows, so that a run goes on from the middle of one, in any world. Within a window rows come in the order of their first documents.
    /// In a row, documents stand in the order of the data set. Pieces of a document that was split may stand in an earlier row than its beginning.
    /// With several ranks state `steps_per_epoch(n)`.
    ///
    /// A row is known to states and ledgers by its first document, its number in the window, and a checksum of which tokens of which records it
    /// holds: equal ledgers mean the same documents in the same rows.
    ///
    /// # Memory
    /// A window of each of a rank's streams, as read and as packed.
    ///
    /// # Errors
    /// `build()` refuses options that contradict each other, and a column that is no ragged one of whole numbers. A document that is too
    /// long, if told so, a token that does not fit, and a column beside the tokens with more or fewer elements are errors of their record. An error
    /// ends the epoch before the first row of its window.
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

    /// Brings samples of similar length into the same batches, by the number of rows of a ragged column (or the bytes of a column of byte
    /// strings), as [`Buckets`] says.
    ///
    /// With [`Buckets::boundaries`] batches have the size that [`batch`](Self::batch) says. With [`Buckets::token_budget`] they have as many samples as
    /// there is room for: samples times the longest is at most the budget. Each stream holds its share `budget / streams` of it. Unless
    /// `.streams(n)` says otherwise there is one stream a rank then, so that each rank's batch holds it too. With more streams than ranks (for other world
    /// sizes later) a rank pads the parts of several streams to one length, and may exceed its share many times over; a note in the report says so.
    ///
    /// # Order
    /// Samples are sorted by bucket (or length) within windows: `window` consecutive positions of a stream. They are cut into shares of a batch,
    /// and the shares are dealt in an order that depends on (seed, epoch, window) and their number: all streams deal about the
    /// same quantile of their lengths in the same step. Behind a `filter` or a [`chunk`](Self::chunk), which leave windows of
    /// different numbers of rows, streams drift apart, and lengths in a batch with them. Samples of a bucket keep their order.
    /// With several ranks state `steps_per_epoch(n)`.
    ///
    /// # Memory
    /// A window of each of a rank's streams.
    ///
    /// # Errors
    /// `build()` refuses boundaries that do not ascend, a budget that gives a stream less than a token, and rows that are changed in number behind it. A
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
    /// Rows are drawn before functions are applied, wherever they stand in the graph: a shuffle behind a [`filter`](Self::filter)
    /// counts rows that went into the filter.
    #[must_use]
    pub fn shuffle(&self, shuffle: Shuffle) -> Self {
        self.then(|input| Node::Shuffle { input, shuffle })
    }

    /// Reads `cycle` shards in turns, `run` rows of each: lane j is the shards j, j + cycle, j + 2·cycle, … end to end.
    #[must_use]
    pub fn interleave(&self, cycle: usize, run: usize) -> Self {
        self.then(|input| Node::Interleave { input, cycle, run: run as u64 })
    }

    /// The rows of this data set, then those of `next`. Both need the same columns.
    #[must_use]
    pub fn concat(&self, next: &Dataset) -> Self {
        self.then(|input| Node::Concat { inputs: vec![input, next.node.clone()] })
    }

    /// The rows of several data sets in the proportions of their weights: of 10 samples 7 of the one and 3 of the other, in every run of 10. All
    /// need the same columns.
    ///
    /// Weights are proportions: 7 and 3 are the same as 0.7 and 0.3. Whole numbers are kept exactly while they come to at most 65,536 (after
    /// division by what they have in common); others are rounded to thousandths of their sum. [`explain`](Self::explain) shows
    /// what they became. `exhausted` says what happens when a part has given its last row.
    ///
    /// # Order
    /// The positions of an epoch lie in windows of as many as the weights come to, here 10, each in an order of its own, a function of
    /// (seed, epoch, window). Rows of a part come in its own order: shuffle the parts, each with a buffer of its own, rather than the mix.
    /// A shuffle of the mix keeps the proportions of the whole epoch only. Functions that the parts have in common, images above all, stand best
    /// behind the mix: then pixels are decoded into the batch, and not copied from their part.
    ///
    /// # Errors
    /// `build()` refuses weights that are not above 0, parts whose columns differ, and parts whose rows cannot be counted beforehand: shards without an
    /// index, and rows behind a `filter` or `flat_map`. Filter the mix instead.
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

    /// Columns of this data set and `other` side by side, row by row, until the shorter one ends. Names must differ, but for
    /// columns that both have from the same data set.
    #[must_use]
    pub fn zip(&self, other: &Dataset) -> Self {
        self.then(|input| Node::Zip { inputs: vec![input, other.node.clone()] })
    }

    /// The data set `times` times in an epoch; a shuffle below draws a new order each time.
    #[must_use]
    pub fn repeat(&self, times: u64) -> Self {
        self.then(|input| Node::Repeat { input, times: Some(times) })
    }

    /// The data set over and over, in one endless epoch.
    #[must_use]
    pub fn repeat_forever(&self) -> Self {
        self.then(|input| Node::Repeat { input, times: None })
    }

    /// The first `rows` rows; behind [`batch`](Self::batch): batches.
    ///
    /// Behind a shuffle these are other rows in each epoch. What is held out for validation is taken in front of it: `all.take(n)`, and
    /// `all.skip(n).shuffle(..)` to train on.
    #[must_use]
    pub fn take(&self, rows: u64) -> Self {
        self.then(|input| Node::Take { input, rows })
    }

    /// All but the first `rows` rows; behind [`batch`](Self::batch): batches.
    #[must_use]
    pub fn skip(&self, rows: u64) -> Self {
        self.then(|input| Node::Skip { input, rows })
    }

    /// Adds a column `name` (`i64`) with each row's position in the order at this place of the graph.
    #[must_use]
    pub fn enumerate(&self, name: impl Into<String>) -> Self {
        let column = crate::schema::int64(name.into());
        self.then(|input| Node::Enumerate { input, column })
    }

    /// How a ragged column is padded; without it, with zeros to the longest of each batch.
    ///
    /// It holds for lists that a later function puts into a column of this name. Parts of a [`concat`](Self::concat) or [`mix`](Self::mix) must be padded alike: it is
    /// simplest to say it once, behind them.
    ///
    /// Of the `cu_seqlens` that [`pack`](Self::pack) makes it settles the length alone: they end in the row's length, whatever they are padded to.
    #[must_use]
    pub fn pad(&self, column: impl Into<String>, pad: crate::batch::Pad) -> Self {
        let column = column.into();
        self.then(|input| Node::Pad { input, column, pad })
    }

    /// Batches of `size` samples: the global batch of a training step, over all ranks.
    #[must_use]
    pub fn batch(&self, size: usize) -> Self {
        self.then(|input| Node::Batch { input, size: size as u64 })
    }

    /// What becomes of the rows at the end of an epoch that do not fill a batch.
    #[must_use]
    pub fn remainder(&self, remainder: Remainder) -> Self {
        self.then(|input| Node::Remainder { input, remainder })
    }

    /// Leaves out the last batch of an epoch when it is not full: `remainder(Remainder::Drop)`.
    #[must_use]
    pub fn drop_remainder(&self) -> Self {
        self.remainder(Remainder::Drop)
    }

    /// How many finished batches may wait for the loop. Without it 2, and of small ones up to 64 while they take less than 1 MiB. More even
    /// out jitter, and take memory.
    #[must_use]
    pub fn prefetch(&self, batches: usize) -> Self {
        self.then(|input| Node::Prefetch { input, batches })
    }

    /// A loader of this data set: the next step towards batches.
    pub fn loader(&self) -> LoaderBuilder {
        LoaderBuilder::new(self.clone())
    }

    /// The graph as text: one line a stage, from the source down, with what it will do.
    pub fn explain(&self) -> String {
        explain::text(&self.node)
    }

    /// The graph in Graphviz's DOT language.
    pub fn to_dot(&self) -> String {
        explain::dot(&self.node)
    }

    /// The graph as a Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        explain::mermaid(&self.node)
    }

    /// Names that two functions on the way of the same rows have: these would draw the same random numbers. Parts of a mix or a concatenation are of different rows.
    pub(crate) fn names_drawn_twice(&self) -> BTreeSet<String> {
        /// Each with the stage that has it: one that is reached on two ways is no other.
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

//! Turns text into tokens, with a Hugging Face tokenizer file.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, PrimitiveArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use tokenizers::TruncationParams;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Element, Shape};

/// A tokenizer and its options; see [`Dataset::tokenize`](crate::Dataset::tokenize).
///
/// # Example
/// ```
/// use forebay::Tokenizer;
///
/// # let folder = tempfile::tempdir().expect("a folder");
/// # let path = folder.path().join("tokenizer.json");
/// # let model = r#"{"type": "WordLevel", "vocab": {"[UNK]": 0, "the": 1, "loader": 2}, "unk_token": "[UNK]"}"#;
/// # let file = format!(r#"{{"version": "1.0", "pre_tokenizer": {{"type": "Whitespace"}}, "model": {model}}}"#);
/// # std::fs::write(&path, file).expect("a disk");
/// let tokenizer = Tokenizer::from_file(&path)?.truncate(512);
/// assert_eq!(tokenizer.encode("the loader waits")?, [1, 2, 0]);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    file: String,
    digest: u64,
    pub(crate) output: String,
    add_special_tokens: bool,
    truncate: Option<usize>,
    dtype: Dtype,
}

impl Tokenizer {
    /// Reads a tokenizer file: the `tokenizer.json` of a model. The file's settings for truncation and padding are ignored: use [`truncate`](Self::truncate)
    /// and [`Dataset::pad`](crate::Dataset::pad) instead.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a tokenizer file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = |error: Error| error.url(path.display().to_string());
        let bytes = std::fs::read(path).map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Access,
            };
            place(Error::new(kind, "the tokenizer file cannot be read").because(e))
        })?;
        Self::from_bytes(name, &bytes).map_err(place)
    }

    /// Reads a tokenizer file from memory; `name` stands for it in what is printed.
    ///
    /// # Errors
    /// Bytes that are not a tokenizer file.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            Error::new(ErrorKind::Config, "this is no tokenizer file")
                .because(Failed(e.to_string()))
                .advice("give the tokenizer.json that comes with the model")
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(failed)?;
        Ok(Self {
            inner: Arc::new(inner),
            file: name.into(),
            digest: xxh3_64(bytes),
            output: "tokens".into(),
            add_special_tokens: false,
            truncate: None,
            dtype: Dtype::I64,
        })
    }

    /// Names the column of tokens that is made; the default is `tokens`.
    #[must_use]
    pub fn output(mut self, column: impl Into<String>) -> Self {
        self.output = column.into();
        self
    }

    /// Adds the special tokens that the file has for a single text, such as its beginning and end. By default there are none, because packing adds its own.
    #[must_use]
    pub fn add_special_tokens(mut self) -> Self {
        self.add_special_tokens = true;
        self
    }

    /// Keeps the first `tokens` tokens of a text, including special ones.
    #[must_use]
    pub fn truncate(mut self, tokens: usize) -> Self {
        self.truncate = Some(tokens);
        self
    }

    /// Sets the dtype of tokens: `I64` by default, or `I32`.
    #[must_use]
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Returns the tokens of one text.
    ///
    /// # Errors
    /// Errors of the tokenizer, for instance if the vocabulary has no token for unknown text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        if let Some(most) = self.truncate {
            let special = if self.add_special_tokens { self.num_special() } else { 0 };
            encoding.truncate(most.saturating_sub(special), 0, TruncationParams::default().direction);
        }
        if self.add_special_tokens {
            encoding = self.inner.post_process(encoding, None, true).map_err(failed)?;
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// The number of special tokens added to a single text.
    fn num_special(&self) -> usize {
        use tokenizers::PostProcessor as _;
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false))
    }

    pub(crate) fn column(&self) -> Column {
        Column::new(self.output.as_str(), self.dtype, Shape::Ragged(Vec::new()))
    }

    /// Returns what is wrong with the options, with advice.
    pub(crate) fn mistakes(&self) -> Vec<(String, &'static str)> {
        let mut mistakes = Vec::new();
        if !matches!(self.dtype, Dtype::I32 | Dtype::I64) {
            mistakes.push((format!("tokens as {}", self.dtype), "take Dtype::I64 or Dtype::I32"));
        }
        let special = if self.add_special_tokens { self.num_special() } else { 0 };
        if let Some(most) = self.truncate.filter(|&most| most <= special) {
            mistakes.push((
                format!("texts truncated to {most} tokens, of which {special} are special ones"),
                "give .truncate(n) room for at least one more",
            ));
        }
        mistakes
    }
}

/// The tokenizer's message, as an error that can be a source.
#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

fn failed(error: tokenizers::Error) -> Error {
    Error::new(ErrorKind::Transform, "the text cannot be made tokens").because(Failed(error.to_string()))
}

impl fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with {} ({:016x})", self.file, self.digest)?;
        if self.add_special_tokens {
            f.write_str(", special tokens")?;
        }
        if let Some(tokens) = self.truncate {
            write!(f, ", truncated to {tokens}")?;
        }
        write!(f, " -> {}", self.column())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({self})")
    }
}

/// Tokens of texts, list by list.
pub(crate) struct Tokenized<'t> {
    tokenizer: &'t Tokenizer,
    tokens: Vec<u32>,
    offsets: Vec<i32>,
}

impl<'t> Tokenized<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), offsets: vec![0] }
    }

    /// Adds the tokens of one text.
    ///
    /// # Errors
    /// Bytes that are not UTF-8, and errors of the tokenizer; nothing is added then.
    pub(crate) fn push(&mut self, text: &[u8]) -> Result<()> {
        let text =
            std::str::from_utf8(text).map_err(|e| Error::new(ErrorKind::Schema, "the text is not UTF-8").because(e))?;
        let tokens = self.tokenizer.encode(text)?;
        let end = i32::try_from(self.tokens.len() + tokens.len())
            .map_err(|_| Error::new(ErrorKind::Transform, "2^31 or more tokens in one chunk of rows"))?;
        if let Some(token) = tokens.iter().find(|&&token| self.tokenizer.dtype == Dtype::I32 && token > i32::MAX as u32)
        {
            return Err(Error::new(ErrorKind::Transform, format!("the token {token} does not fit i32")));
        }
        self.tokens.extend(tokens);
        self.offsets.push(end);
        Ok(())
    }

    pub(crate) fn finish(self) -> (Column, ArrayRef) {
        fn items<T: Element>(tokens: Vec<u32>, of: impl Fn(u32) -> T) -> ArrayRef {
            let items: Vec<T> = tokens.into_iter().map(of).collect();
            Arc::new(PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(items), None))
        }
        let (items, element) = match self.tokenizer.dtype {
            Dtype::I32 => (items(self.tokens, |token| token as i32), DataType::Int32),
            _ => (items(self.tokens, i64::from), DataType::Int64),
        };
        let field = Arc::new(Field::new_list_field(element, false));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        (self.tokenizer.column(), Arc::new(ListArray::new(field, offsets, items, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of the vocabulary, with `<s>` before and `</s>` after a text; truncation and padding that must be ignored.
    const FILE: &str = r#"{
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5}, "unk_token": "<unk>"}
    }"#;

    /// Pairs of bytes are merged: `ab` is one token.
    const BPE: &str = r#"{
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, "merges": [["a", "b"], ["ab", "c"]]}
    }"#;

    fn words() -> Tokenizer {
        Tokenizer::from_bytes("words.json", FILE.as_bytes()).unwrap()
    }

    #[test]
    fn texts_become_tokens_as_told() {
        assert_eq!(words().encode("a b  x c").unwrap(), [3, 4, 0, 5]);
        assert_eq!(words().encode("").unwrap(), [0; 0]);
        assert_eq!(words().add_special_tokens().encode("a b").unwrap(), [1, 3, 4, 2]);
        assert_eq!(words().truncate(2).encode("a b c").unwrap(), [3, 4]);
        assert_eq!(words().add_special_tokens().truncate(3).encode("a b c").unwrap(), [1, 3, 2]);
        let bpe = Tokenizer::from_bytes("bpe.json", BPE.as_bytes()).unwrap();
        assert_eq!(bpe.encode("abcabac").unwrap(), [4, 3, 0, 2]);
    }

    #[test]
    fn another_file_is_another_tokenizer() {
        let other = Tokenizer::from_bytes("words.json", FILE.replace("\"a\": 3", "\"d\": 3").as_bytes()).unwrap();
        assert_ne!(words().to_string(), other.to_string());
        assert!(words().truncate(9).to_string().ends_with("), truncated to 9 -> tokens: i64[*]"));
        let error = Tokenizer::from_bytes("words.json", b"{}").unwrap_err().to_string();
        assert!(error.contains("no tokenizer file") && error.contains("tokenizer.json"), "{error}");
        let error = Tokenizer::from_file("/nowhere/words.json").unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("/nowhere/words.json"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(words().truncate(2).mistakes().len(), 0);
        assert_eq!(words().add_special_tokens().truncate(2).dtype(Dtype::F32).mistakes().len(), 2);
    }

    #[test]
    fn bytes_that_are_no_text_leave_nothing_behind() {
        let tokenizer = words().dtype(Dtype::I32);
        let mut tokenized = Tokenized::new(&tokenizer);
        tokenized.push(b"a b").unwrap();
        assert!(tokenized.push(&[0xff]).unwrap_err().to_string().contains("not UTF-8"));
        tokenized.push(b"c").unwrap();
        let (column, array) = tokenized.finish();
        assert_eq!((column.dtype(), array.len()), (Dtype::I32, 2));
    }
}

//! The messages of `tf.Example` and `tf.SequenceExample`, for building, writing and looking at any record.

use std::collections::BTreeMap;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::error::{Error, ErrorKind, Result};

/// Byte strings.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BytesList {
    /// The values.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub value: Vec<Vec<u8>>,
}

/// Single-precision floats.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FloatList {
    /// The values.
    #[prost(float, repeated, tag = "1")]
    pub value: Vec<f32>,
}

/// 64-bit integers.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Int64List {
    /// The values.
    #[prost(int64, repeated, tag = "1")]
    pub value: Vec<i64>,
}

/// A list of values of one kind, or nothing: a feature without a kind counts as missing.
///
/// # Example
/// ```
/// use forebay::format::example::Feature;
///
/// assert_eq!(Feature::int64([3, 4]).as_int64(), Some(&[3, 4][..]));
/// assert_eq!(Feature::float32([0.5]).as_int64(), None);
/// assert_eq!(Feature::bytes(["a", "b"]).as_bytes().map(<[_]>::len), Some(2));
/// ```
#[derive(Clone, PartialEq, prost::Message)]
pub struct Feature {
    /// The values.
    #[prost(oneof = "Values", tags = "1, 2, 3")]
    pub kind: Option<Values>,
}

/// The values of a [`Feature`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Values {
    /// Byte strings.
    #[prost(message, tag = "1")]
    Bytes(BytesList),
    /// Single-precision floats.
    #[prost(message, tag = "2")]
    Float(FloatList),
    /// 64-bit integers.
    #[prost(message, tag = "3")]
    Int64(Int64List),
}

/// Features by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Features {
    /// The features.
    #[prost(btree_map = "string, message", tag = "1")]
    pub feature: BTreeMap<String, Feature>,
}

/// A `tf.Example`: one record of named features.
///
/// # Source
/// TensorFlow, `tensorflow/core/example/example.proto` and `feature.proto`.
///
/// # Example
/// ```
/// use forebay::format::example::Example;
///
/// let example = Example::new()
///     .with_int64("label", [3])
///     .with_float32("box", [0.1, 0.2, 0.8, 0.9])
///     .with_bytes("image", [b"\x89PNG"]);
/// assert_eq!(Example::from_bytes(&example.encode())?, example);
/// assert_eq!(example.get("label").and_then(|f| f.as_int64()), Some(&[3][..]));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, PartialEq, prost::Message)]
pub struct Example {
    /// The features.
    #[prost(message, optional, tag = "1")]
    pub features: Option<Features>,
}

/// A list with one feature per time step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureList {
    /// The steps.
    #[prost(message, repeated, tag = "1")]
    pub feature: Vec<Feature>,
}

/// Feature lists by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureLists {
    /// The feature lists.
    #[prost(btree_map = "string, message", tag = "1")]
    pub feature_list: BTreeMap<String, FeatureList>,
}

/// A `tf.SequenceExample`: features of the whole sequence (the context), and features per time step.
///
/// # Source
/// TensorFlow, `tensorflow/core/example/example.proto` and `feature.proto`.
///
/// # Example
/// ```
/// use forebay::format::example::{Feature, SequenceExample};
///
/// let sequence = SequenceExample::new()
///     .with_context("id", Feature::int64([7]))
///     .with_steps("speed", [Feature::float32([0.0]), Feature::float32([0.5])]);
/// assert_eq!(SequenceExample::from_bytes(&sequence.encode())?, sequence);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, PartialEq, prost::Message)]
pub struct SequenceExample {
    /// Features of the whole sequence.
    #[prost(message, optional, tag = "1")]
    pub context: Option<Features>,
    /// Features per time step.
    #[prost(message, optional, tag = "2")]
    pub feature_lists: Option<FeatureLists>,
}

impl Feature {
    /// Creates a feature of 64-bit integers.
    pub fn int64(values: impl IntoIterator<Item = i64>) -> Self {
        Self { kind: Some(Values::Int64(Int64List { value: values.into_iter().collect() })) }
    }

    /// Creates a feature of single-precision floats.
    pub fn float32(values: impl IntoIterator<Item = f32>) -> Self {
        Self { kind: Some(Values::Float(FloatList { value: values.into_iter().collect() })) }
    }

    /// Creates a feature of byte strings.
    pub fn bytes<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Self {
        let value = values.into_iter().map(|value| value.as_ref().to_vec()).collect();
        Self { kind: Some(Values::Bytes(BytesList { value })) }
    }

    /// Returns the integers, if the feature holds integers.
    pub fn as_int64(&self) -> Option<&[i64]> {
        if let Some(Values::Int64(list)) = &self.kind { Some(&list.value) } else { None }
    }

    /// Returns the floats, if the feature holds floats.
    pub fn as_float32(&self) -> Option<&[f32]> {
        if let Some(Values::Float(list)) = &self.kind { Some(&list.value) } else { None }
    }

    /// Returns the byte strings, if the feature holds byte strings.
    pub fn as_bytes(&self) -> Option<&[Vec<u8>]> {
        if let Some(Values::Bytes(list)) = &self.kind { Some(&list.value) } else { None }
    }

    /// Returns the name of what the feature holds: `int64`, `float`, `bytes` or `nothing`.
    pub fn kind_name(&self) -> &'static str {
        match &self.kind {
            Some(Values::Int64(_)) => "int64",
            Some(Values::Float(_)) => "float",
            Some(Values::Bytes(_)) => "bytes",
            None => "nothing",
        }
    }

    /// Returns the number of values.
    pub fn num_values(&self) -> usize {
        match &self.kind {
            Some(Values::Int64(list)) => list.value.len(),
            Some(Values::Float(list)) => list.value.len(),
            Some(Values::Bytes(list)) => list.value.len(),
            None => 0,
        }
    }
}

impl Example {
    /// Creates an example without features.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a feature.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, feature: Feature) -> Self {
        self.features.get_or_insert_default().feature.insert(name.into(), feature);
        self
    }

    /// Sets a feature of 64-bit integers.
    #[must_use]
    pub fn with_int64(self, name: impl Into<String>, values: impl IntoIterator<Item = i64>) -> Self {
        self.with(name, Feature::int64(values))
    }

    /// Sets a feature of single-precision floats.
    #[must_use]
    pub fn with_float32(self, name: impl Into<String>, values: impl IntoIterator<Item = f32>) -> Self {
        self.with(name, Feature::float32(values))
    }

    /// Sets a feature of byte strings.
    #[must_use]
    pub fn with_bytes<V: AsRef<[u8]>>(self, name: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        self.with(name, Feature::bytes(values))
    }

    /// Returns the feature of this name.
    pub fn get(&self, name: &str) -> Option<&Feature> {
        self.features.as_ref()?.feature.get(name)
    }

    /// Encodes the record's payload. Equal examples give equal bytes: features are written in the order of their names.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        if let Some(features) = &self.features {
            encode_map(1, &features.feature, &mut payload);
        }
        payload
    }

    /// Decodes a record's payload.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if the payload cannot be a `tf.Example`. Another message may happen to look like one.
    pub fn from_bytes(payload: &[u8]) -> Result<Self> {
        Self::decode(payload).map_err(|error| no_message("tf.Example", error))
    }
}

impl SequenceExample {
    /// Creates a sequence without features.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a feature of the whole sequence.
    #[must_use]
    pub fn with_context(mut self, name: impl Into<String>, feature: Feature) -> Self {
        self.context.get_or_insert_default().feature.insert(name.into(), feature);
        self
    }

    /// Sets a feature list: one feature per time step.
    #[must_use]
    pub fn with_steps(mut self, name: impl Into<String>, steps: impl IntoIterator<Item = Feature>) -> Self {
        let list = FeatureList { feature: steps.into_iter().collect() };
        self.feature_lists.get_or_insert_default().feature_list.insert(name.into(), list);
        self
    }

    /// Encodes the record's payload. Equal sequences give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        if let Some(context) = &self.context {
            encode_map(1, &context.feature, &mut payload);
        }
        if let Some(lists) = &self.feature_lists {
            encode_map(2, &lists.feature_list, &mut payload);
        }
        payload
    }

    /// Decodes a record's payload.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if the payload cannot be a `tf.SequenceExample`. Another message may happen to look like one.
    pub fn from_bytes(payload: &[u8]) -> Result<Self> {
        Self::decode(payload).map_err(|error| no_message("tf.SequenceExample", error))
    }
}

/// Appends a field that is a message with nothing but a map. Each entry is written with its name and its value even when they are empty. `prost`
/// leaves empty ones out: protobuf allows that, but TensorFlow's parsers of Examples refuse it.
fn encode_map<V: Message>(number: u32, map: &BTreeMap<String, V>, payload: &mut Vec<u8>) {
    let head = |number: u32, bytes: usize, payload: &mut Vec<u8>| {
        encode_key(number, WireType::LengthDelimited, payload);
        encode_varint(bytes as u64, payload);
    };
    let field_bytes = |bytes: usize| 1 + encoded_len_varint(bytes as u64) + bytes;
    let sizes: Vec<_> = map.iter().map(|(name, value)| (name, value, value.encoded_len())).collect();
    let entry_bytes = |name: &str, value_bytes: usize| field_bytes(name.len()) + field_bytes(value_bytes);
    let map_bytes = sizes.iter().map(|(name, _, bytes)| field_bytes(entry_bytes(name, *bytes))).sum();
    payload.reserve(field_bytes(map_bytes));
    head(number, map_bytes, payload);
    for (name, value, value_bytes) in sizes {
        head(1, entry_bytes(name, value_bytes), payload);
        head(1, name.len(), payload);
        payload.extend_from_slice(name.as_bytes());
        head(2, value_bytes, payload);
        value.encode_raw(payload);
    }
}

fn no_message(name: &str, error: prost::DecodeError) -> Error {
    Error::new(ErrorKind::Schema, format!("the record is no {name}"))
        .because(error)
        .advice("look at it with `forebay inspect`, or read it as bytes and decode it in a map")
}

//! Arrow IPC files and streams as a source: record batches are blocks.

use std::ops::Range;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::MetadataVersion;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::{Carrier, in_units_of, inferred, inferred_of_all, leaves};
use super::cut::{Block, Blocks, Cut, Parsed, Reading, Window, row_bytes, with_also};
use super::open::{Opened, Opening, Wanted};
use super::tfrecord::INDEXING;
use crate::dataset::ArrowIpc;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ipc::{self, Decoder, Extent, Form, Message, PREFIX_BYTES, Prefix, TRAILER_BYTES};
use crate::schema::Column;
use crate::store::{Object, Store};

/// The end of a file, in the first read: most footers fit.
const TAIL_BYTES: u64 = 64 << 10;

/// Metadata of messages that is read at once.
const WINDOW_BYTES: u64 = 64 << 10;

/// How much larger compressed buffers are in memory, for the budget: what they take is known when they are read.
const EXPANSION: u64 = 4;

/// What is known of a shard before its batches are read.
struct Layout {
    schema: SchemaRef,
    version: MetadataVersion,
    dictionaries: Vec<(i64, Extent)>,
    batches: Vec<Batch>,
    /// What is wrong behind the batches, and where.
    damage: Option<(Error, u64)>,
}

struct Batch {
    extent: Extent,
    rows: u64,
    compressed: bool,
    /// How many of the shard's dictionaries count for it: in a stream those before it.
    dictionaries: usize,
}

/// Finds the batches of listed shards, and settles the columns.
pub(crate) async fn open(store: Store, objects: Vec<Object>, _options: ArrowIpc, wanted: Wanted) -> Result<Opening> {
    let limit = wanted.max_bytes;
    let layouts: Vec<(Object, Result<Option<Layout>>)> = stream::iter(objects.iter().cloned())
        .map(|object| {
            let store = store.clone();
            async move {
                let found = layout(&store, &object, limit).await;
                let found = found.map_err(|e| e.url(object.url.clone()).stage("index"));
                (object, found)
            }
        })
        .buffered(INDEXING)
        .collect()
        .await;
    let schemas = layouts.iter().filter_map(|(object, found)| Some((object, found.as_ref().ok()?.as_ref()?)));
    let mut notes = Vec::new();
    let first = schemas.clone().next().map(|(object, layout)| (object, leaves(&layout.schema)));
    let columns = match (&wanted.columns, first) {
        (Some(declared), None) => Some(declared.clone()),
        (Some(declared), Some((_, stored))) => {
            let also = |name: &str| stored.iter().find(|leaf| leaf.name == name)?.column().ok();
            Some(in_units_of(with_also(declared, &wanted, also), schemas.map(|(_, layout)| leaves(&layout.schema))))
        }
        (None, Some((object, stored))) => {
            let columns = match wanted.all_columns {
                true => {
                    let all: Vec<_> = schemas.map(|(_, layout)| leaves(&layout.schema)).collect();
                    inferred_of_all(&all, &mut notes)
                }
                false => inferred(&stored, &mut notes),
            };
            Some(columns.map_err(|e| e.url(object.url.clone()).stage("infer"))?)
        }
        (None, None) => None,
    };
    let first_error = || layouts.iter().find_map(|(_, found)| found.as_ref().err().cloned());
    let columns = columns.ok_or_else(|| {
        first_error().unwrap_or_else(|| {
            Error::new(ErrorKind::Schema, "the shards hold no schema to infer columns from")
                .advice("name the columns with .columns()")
        })
    })?;
    let (mut blocks, mut parts) = (Blocks::new(), Parts::new(columns, limit));
    for (object, found) in &layouts {
        blocks.push_shard(object);
        match found {
            Ok(Some(Layout { damage: Some((error, at)), .. })) if wanted.whole_shards => {
                return Err(error.clone().url(object.url.clone()).byte_offset(*at).stage("index"));
            }
            Ok(Some(layout)) => parts.push(object, layout, &mut blocks)?,
            Ok(None) => parts.readers.push(None),
            Err(error) if wanted.leave_out && error.kind() == ErrorKind::Corrupt => {
                parts.readers.push(None);
                parts.push_damage(error, 0, &mut blocks);
            }
            Err(error) => return Err(error.clone()),
        }
    }
    blocks.indivisible();
    let source = Cut::new("Arrow IPC", store, objects, blocks, parts);
    Ok(Opening { opened: Opened::Indexed(Arc::new(source)), notes })
}

/// The messages of a shard; nothing is in an empty one.
async fn layout(store: &Store, object: &Object, limit: usize) -> Result<Option<Layout>> {
    if object.size == 0 {
        return Ok(None);
    }
    let head = store.read(object, 0..object.size.min(PREFIX_BYTES as u64)).await?;
    match ipc::form_of(&head)? {
        Form::File => of_file(store, object, limit).await.map(Some),
        Form::Stream => of_stream(store, object, limit).await.map(Some),
    }
}

/// A length that a shard declares for its metadata, which is held in memory.
fn affordable(bytes: u64, limit: usize) -> Result<()> {
    if bytes <= limit as u64 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Memory, format!("metadata of {bytes} bytes does not fit the budget"))
        .advice("write the shard with fewer batches or columns, or give a larger .budget(..)"))
}

async fn of_file(store: &Store, object: &Object, limit: usize) -> Result<Layout> {
    let size = object.size;
    let tail_start = size.saturating_sub(TAIL_BYTES);
    let tail = store.read(object, tail_start..size).await?;
    let trailer = &tail[tail.len().saturating_sub(TRAILER_BYTES as usize)..];
    let range = ipc::footer_range(trailer, size)?;
    affordable(range.end - range.start, limit)?;
    let footer = match range.start >= tail_start {
        true => tail.slice((range.start - tail_start) as usize..(range.end - tail_start) as usize),
        false => store.read(object, range.clone()).await?,
    };
    let footer = ipc::footer(&footer, range.start)?;
    let read = |extent: Extent| async move {
        let at = |error: Error| error.byte_offset(extent.offset);
        affordable(extent.metadata, limit).map_err(at)?;
        let metadata = store.read(object, extent.metadata_range()).await?;
        Ok::<_, Error>((extent, ipc::message(&metadata).map_err(at)?))
    };
    let messages = footer.dictionaries.iter().chain(&footer.batches).copied().map(read).collect::<Vec<_>>();
    let messages: Vec<_> = stream::iter(messages).buffered(INDEXING).try_collect().await?;
    let (mut dictionaries, mut batches) = (Vec::new(), Vec::new());
    for (number, (extent, message)) in messages.into_iter().enumerate() {
        let at = |error: Error| error.byte_offset(extent.offset);
        match message {
            Message::Dictionary { delta: true, .. } => return Err(at(ipc::delta())),
            Message::Dictionary { id, .. } if number < footer.dictionaries.len() => dictionaries.push((id, extent)),
            Message::Batch { rows, compressed, .. } if number >= footer.dictionaries.len() => {
                batches.push(Batch { extent, rows, compressed, dictionaries: footer.dictionaries.len() });
            }
            _ => {
                return Err(at(
                    Error::corrupt("the footer names a message of another kind").advice("write the file again")
                ));
            }
        }
    }
    Ok(Layout { schema: footer.schema, version: footer.version, dictionaries, batches, damage: None })
}

async fn of_stream(store: &Store, object: &Object, limit: usize) -> Result<Layout> {
    let mut window = Window::new(store, object, WINDOW_BYTES);
    let mut at = 0;
    let mut layout: Option<Layout> = None;
    while at < object.size {
        match next_message(&mut window, at, limit).await {
            Ok(None) => break,
            Ok(Some((extent, message))) => {
                at = extent.range().end;
                match (message, &mut layout) {
                    (Message::Schema(schema, version), None) => {
                        let (dictionaries, batches) = Default::default();
                        layout = Some(Layout { schema, version, dictionaries, batches, damage: None });
                    }
                    (Message::Batch { rows, compressed, .. }, Some(layout)) => {
                        let dictionaries = layout.dictionaries.len();
                        layout.batches.push(Batch { extent, rows, compressed, dictionaries });
                    }
                    (Message::Dictionary { delta: true, .. }, _) => return Err(ipc::delta().byte_offset(extent.offset)),
                    (Message::Dictionary { id, .. }, Some(layout)) => layout.dictionaries.push((id, extent)),
                    (Message::Schema(..), Some(_)) => return Err(out_of_place("a second schema", &extent)),
                    (_, None) => return Err(out_of_place("a message before the schema", &extent)),
                }
            }
            // What is before the damage is read.
            Err(error) if error.kind() == ErrorKind::Corrupt => match &mut layout {
                Some(layout) if !layout.batches.is_empty() => {
                    layout.damage = Some((error, at));
                    break;
                }
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    layout.ok_or_else(|| Error::corrupt("ends before its schema").advice("write the shard again"))
}

fn out_of_place(what: &str, extent: &Extent) -> Error {
    Error::corrupt(format!("{what} in a stream")).byte_offset(extent.offset).advice("write the shard again")
}

/// The message at an offset; none at the end of the stream.
async fn next_message(window: &mut Window<'_>, at: u64, limit: usize) -> Result<Option<(Extent, Message)>> {
    let size = window.size();
    let located = |error: Error| error.byte_offset(at);
    let cut =
        |what: &str| located(Error::corrupt(format!("ends inside a message's {what}")).advice("write the shard again"));
    let head = window.get(at..at + PREFIX_BYTES as u64).await?;
    let metadata = match ipc::prefix(&head) {
        None => return Err(cut("prefix")),
        Some(Prefix::End) => return Ok(None),
        Some(Prefix::Message { prefix, bytes }) => prefix as u64 + bytes,
    };
    if metadata > size - at {
        return Err(cut("metadata"));
    }
    affordable(metadata, limit).map_err(located)?;
    let message = ipc::message(&window.get(at..at + metadata).await?).map_err(located)?;
    let body = match message {
        Message::Schema(..) => 0,
        Message::Batch { body, .. } | Message::Dictionary { body, .. } => body,
    };
    if body > size - at - metadata {
        return Err(cut("body"));
    }
    Ok(Some((Extent { offset: at, metadata, body }, message)))
}

/// Record batches of all shards.
struct Parts {
    columns: Vec<Column>,
    /// How to read each shard.
    readers: Vec<Option<Reader>>,
    /// Of each block its message, and the dictionaries it needs with their places.
    batches: Vec<(Extent, Vec<Extent>, Vec<Range<u64>>)>,
    limit: usize,
}

struct Reader {
    schema: SchemaRef,
    version: MetadataVersion,
    carrier: Carrier,
}

impl Reader {
    fn decoder(&self) -> Decoder {
        Decoder::new(self.schema.clone(), self.version, self.carrier.projection())
    }
}

impl Parts {
    fn new(columns: Vec<Column>, limit: usize) -> Self {
        Self { columns, readers: Vec::new(), batches: Vec::new(), limit }
    }

    fn push(&mut self, object: &Object, layout: &Layout, blocks: &mut Blocks) -> Result<()> {
        let carrier = Carrier::new(&layout.schema, Some(&self.columns));
        let carrier = carrier.map_err(|e| e.url(object.url.clone()).stage("index"))?;
        let reader = Reader { schema: layout.schema.clone(), version: layout.version, carrier };
        let decoder = reader.decoder();
        let needed: Vec<bool> = layout.dictionaries.iter().map(|(id, _)| decoder.needs(*id)).collect();
        for batch in layout.batches.iter().filter(|batch| batch.rows > 0) {
            // The last of each number counts.
            let before = &layout.dictionaries[..batch.dictionaries];
            let replaced = |at: usize| before[at + 1..].iter().any(|(id, _)| *id == before[at].0);
            let dictionaries = (0..before.len()).filter(|&at| needed[at] && !replaced(at)).map(|at| before[at].1);
            let dictionaries: Vec<Extent> = dictionaries.collect();
            let also: Vec<_> = dictionaries.iter().map(Extent::range).collect();
            let stored: u64 = std::iter::once(&batch.extent).chain(&dictionaries).map(|e| e.metadata + e.body).sum();
            let expanded = if batch.compressed { EXPANSION * stored } else { 0 };
            let memory = stored + expanded + batch.rows * row_bytes(&self.columns);
            blocks.push(batch.rows, memory, batch.extent.range(), batch.extent.offset);
            self.batches.push((batch.extent, dictionaries, also));
        }
        if let Some((error, at)) = &layout.damage {
            self.push_damage(error, *at, blocks);
        }
        self.readers.push(Some(reader));
        Ok(())
    }
}

impl Parts {
    fn push_damage(&mut self, error: &Error, at: u64, blocks: &mut Blocks) {
        blocks.push_damage(error.clone(), at, &self.columns);
        self.batches.push((Extent { offset: at, metadata: 0, body: 0 }, Vec::new(), Vec::new()));
    }
}

impl Reading for Parts {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn also(&self, block: usize) -> &[Range<u64>] {
        &self.batches[block].2
    }

    fn read(&self, block: &Block, fetched: Vec<Bytes>) -> Result<Parsed> {
        let reader = self.readers[block.shard].as_ref().ok_or_else(|| Error::corrupt("a block of an empty shard"))?;
        let (extent, dictionaries, _) = &self.batches[block.block];
        let mut fetched = fetched.into_iter().map(Buffer::from);
        let batch = fetched.next().unwrap_or_default();
        let mut decoder = reader.decoder();
        for (extent, bytes) in dictionaries.iter().zip(fetched) {
            decoder.dictionary(extent, &bytes, self.limit).map_err(|e| e.byte_offset(extent.offset))?;
        }
        let batch = decoder.batch(extent, &batch, self.limit)?;
        let (rows, bad) = reader.carrier.projected_rows(&batch)?;
        // Rows have no place of their own within a batch.
        Ok(Parsed { starts: vec![0; rows.num_rows()], rows, bad })
    }
}

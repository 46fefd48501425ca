//! `forebay head`: shows some records as they are.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::count::IndexArgs;
use super::format::FormatArgs;
use super::save::Saver;
use super::shards::{ShardArgs, Shards};
use super::terminal::{Mark, Terminal};
use super::value::Shown;
use super::walk::{Step, Walk};
use super::{Failure, Verdict};
use crate::dataset::{Format, TfRecord};
use crate::error::{Error, Result};
use crate::format::example::{Feature, FeatureList, Values, either};
use crate::format::tfrecord::{Check, Compression, HEADER_BYTES};
use crate::source::Arrived;
use crate::source::open::Index;
use crate::source::tfrecord::{RECORD, index_of};

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay head data/train-00000.tfrecord
  forebay head gs://bucket/train/ -n 100 --column image/encoded --save pictures
  forebay head 'data/*.parquet' --column text --column label
  forebay head data.tfrecord --skip 2041 -n 1 --json

As JSON: one object a line, with a key for each column and \"_place\" for where the record is. One value stands alone, several
are a list, a feature list is a list of lists. Byte strings that are no text of at most 64 bytes are objects with \"bytes\",
\"sha256\" and, where they are images, \"holds\", \"width\" and \"height\". Floats that are no numbers are \"NaN\", \"Infinity\" and
\"-Infinity\". What is remarkable, such as columns left out, is an object with \"note\" on standard error.";

/// Arguments of `forebay head`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct HeadArgs {
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// How many records to show.
    #[arg(long, short, value_name = "N", default_value_t = 5)]
    num: u64,
    /// How many records to skip before them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u64,
    /// Show only this column; may be given several times.
    #[arg(long, value_name = "COLUMN", conflicts_with = "records")]
    column: Vec<String>,
    /// Show at most this many values of a list [default: 16 as text, all as JSON].
    #[arg(long, value_name = "N")]
    max_values: Option<usize>,
    /// TFRecord: the records are not tf.Examples; show their bytes.
    #[arg(long)]
    records: bool,
    /// Write images and long byte strings into this folder, one file each.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Allow --save to replace files.
    #[arg(long, requires = "save")]
    force: bool,
    #[command(flatten)]
    index: IndexArgs,
}

/// The size of pieces that are read: enough for some records, not many more than are wanted.
const PIECE_BYTES: u64 = 1 << 20;

pub(super) fn run(args: &HeadArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let shards = args.shards.find()?;
    let saver = args.save.as_deref().map(|dir| Saver::new(dir, args.force)).transpose()?;
    let mut head = Head { args, terminal, saver, left: args.num, seen: BTreeSet::new(), verdict: Verdict::Good };
    let mut skip = args.skip;
    let format = args.format.of(&shards.objects)?;
    let is_tfrecord = matches!(format, Format::TfRecord(_));
    if args.records && !is_tfrecord {
        return Err(Error::config(format!("--records is for TFRecord, and the shards are {}", format.name()))
            .advice("leave it out")
            .into());
    }
    if !is_tfrecord {
        head.rows(&shards, format, skip)?;
    }
    for shard in 0..shards.objects.len() {
        if head.left == 0 || !is_tfrecord {
            break;
        }
        if let Some(start) = start(&shards, shard, &mut skip, args)? {
            head.shard(&shards, shard, start, &mut skip)?;
        }
    }
    let shown = head.left < args.num;
    let absent: Vec<_> = args.column.iter().filter(|column| !head.seen.contains(*column)).collect();
    if let Some(column) = absent.first()
        && shown
    {
        let names = head.seen.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("no record shown has it; these exist: {names}");
        return Err(Error::config(message).column(column.as_str()).into());
    }
    if !shown && args.num > 0 && head.verdict == Verdict::Good {
        terminal.note(if args.skip > 0 { "there are no records behind those skipped" } else { "there are no records" });
    }
    Ok(head.verdict)
}

/// Returns the record of a shard at which to start, and its offset; `None` if the whole shard is skipped. Without an index it is the first record:
/// the rest of `skip` is skipped while reading.
fn start(shards: &Shards, shard: usize, skip: &mut u64, args: &HeadArgs) -> Result<Option<(u64, u64)>> {
    if *skip == 0 {
        return Ok(Some((0, 0)));
    }
    let (store, object) = (shards.store.clone(), shards.objects[shard].clone());
    let found = index_of(store, args.index.keeper(), object, TfRecord::new(), Index::Auto);
    let Some(index) = shards.io.wait(found)? else { return Ok(Some((0, 0))) };
    if index.len() as u64 <= *skip {
        *skip -= index.len() as u64;
        return Ok(None);
    }
    if index.compression() != Compression::None {
        return Ok(Some((0, 0)));
    }
    let record = std::mem::take(skip);
    Ok(Some((record, index.offset(record as usize))))
}

struct Head<'a> {
    args: &'a HeadArgs,
    terminal: &'a Terminal,
    saver: Option<Saver>,
    /// Records that remain to be shown.
    left: u64,
    /// Names of columns in the records that were shown.
    seen: BTreeSet<String>,
    verdict: Verdict,
}

/// A record's place.
struct Place<'a> {
    url: &'a str,
    record: u64,
    /// `None` if records are not stored one after another.
    offset: Option<u64>,
}

impl Head<'_> {
    /// Shows records of a shard.
    fn shard(&mut self, shards: &Shards, shard: usize, start: (u64, u64), skip: &mut u64) -> Result<(), Failure> {
        let url = &shards.objects[shard].url;
        let mut walk = Walk::new(shards, shard, Check::Full, PIECE_BYTES);
        if start.0 > 0 {
            walk = walk.starting_at(start.0, start.1);
        }
        while let Some(step) = walk.next(|_| {})? {
            let Arrived { buffer, framed, first_record, offset, .. } = match step {
                Step::Block(block) => block,
                Step::Damage(damage) => {
                    self.bad(&damage.error);
                    return Ok(());
                }
            };
            let mut bad = framed.bad.into_iter().peekable();
            for (row, range) in framed.payloads.into_iter().enumerate() {
                let error = bad.next_if(|(at, _)| *at == row).map(|(_, error)| error.url(url.clone()));
                if *skip > 0 {
                    *skip -= 1;
                    continue;
                }
                if self.left == 0 {
                    return Ok(());
                }
                let header = offset + range.start.saturating_sub(HEADER_BYTES) as u64;
                let place = Place { url, record: first_record + row as u64, offset: Some(header) };
                match error {
                    Some(error) => self.bad(&error),
                    None => self.record(&place, &buffer[range])?,
                }
            }
        }
        Ok(())
    }

    /// Reports an error and continues.
    fn bad(&mut self, error: &Error) {
        self.verdict = Verdict::Bad;
        self.terminal.error(error);
    }

    fn record(&mut self, place: &Place<'_>, payload: &[u8]) -> Result<(), Failure> {
        let columns = if self.args.records {
            BTreeMap::from([(RECORD.to_owned(), self.feature(place, RECORD, &Feature::bytes([payload]))?)])
        } else {
            match self.columns(place, payload)? {
                Ok(columns) => columns,
                Err(error) => {
                    let error = error.url(place.url).record(place.record).byte_offset(place.offset.unwrap_or(0));
                    let error = error.advice("show its bytes with --records");
                    if self.left == self.args.num {
                        // None of them are messages, by the look of it.
                        return Err(error.into());
                    }
                    self.bad(&error);
                    return Ok(());
                }
            }
        };
        self.show(place, &columns.into_iter().collect::<Vec<_>>())
    }

    fn show(&mut self, place: &Place<'_>, columns: &[(String, Shown)]) -> Result<(), Failure> {
        self.left -= 1;
        if self.terminal.is_json() {
            let cut = |shown: &Shown| self.args.max_values.map_or(shown.clone(), |most| shown.clone().cut(most));
            let mut object: Map<String, Value> =
                columns.iter().map(|(name, shown)| (name.clone(), cut(shown).to_json())).collect();
            let Place { url, record, offset } = place;
            object.insert("_place".into(), json!({ "url": url, "record": record, "offset": offset }));
            return self.terminal.print_json(&object);
        }
        let mut out = self.terminal.out();
        let Place { url, record, offset } = place;
        let offset = offset.map(|offset| format!(", byte {offset}")).unwrap_or_default();
        writeln!(out, "{}", self.terminal.mark(Mark::Dim, format_args!("{url}, record {record}{offset}")))?;
        let width = columns.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, shown) in columns {
            let name = self.terminal.mark(Mark::Bold, format_args!("{name:width$}"));
            writeln!(out, "  {name}  {}", shown.to_text(self.args.max_values))?;
        }
        out.flush()?;
        Ok(())
    }

    /// Returns the columns of a message; the inner error says that the payload is not one.
    fn columns(&mut self, place: &Place<'_>, payload: &[u8]) -> Result<Result<BTreeMap<String, Shown>>, Failure> {
        let message = match either(payload) {
            Ok(message) => message,
            Err(error) => return Ok(Err(error)),
        };
        let wanted: Vec<&str> = self.args.column.iter().map(String::as_str).collect();
        let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
        let mut columns: BTreeMap<_, _> = wanted.iter().map(|&name| (name.to_owned(), Shown::Nothing)).collect();
        for (name, feature) in message.context.into_iter().flat_map(|features| features.feature) {
            if is_wanted(&name) {
                columns.insert(name.clone(), self.feature(place, &name, &feature)?);
            }
            self.seen.insert(name);
        }
        for (name, list) in message.feature_lists.into_iter().flat_map(|lists| lists.feature_list) {
            if is_wanted(&name) {
                columns.insert(name.clone(), self.steps(place, &name, &list)?);
            }
            self.seen.insert(name);
        }
        Ok(Ok(columns))
    }

    fn feature(&mut self, place: &Place<'_>, name: &str, feature: &Feature) -> Result<Shown, Failure> {
        let mut shown = Shown::feature(feature);
        if let Some(Values::Bytes(list)) = &feature.kind {
            let several = list.value.len() > 1;
            for (number, value) in list.value.iter().enumerate() {
                self.save(place, name, several.then_some(number), shown.nth_mut(number), value)?;
            }
        }
        Ok(shown)
    }

    fn steps(&mut self, place: &Place<'_>, name: &str, list: &FeatureList) -> Result<Shown, Failure> {
        let (mut shown, mut number) = (Shown::steps(list), 0);
        for (step, feature) in list.feature.iter().enumerate() {
            let Some(Values::Bytes(list)) = &feature.kind else { continue };
            for (nth, value) in list.value.iter().enumerate() {
                let value_shown = shown.nth_mut(step).and_then(|step| step.nth_mut(nth));
                self.save(place, name, Some(number), value_shown, value)?;
                number += 1;
            }
        }
        Ok(shown)
    }

    /// Saves values that are not shown as text.
    fn save(
        &mut self,
        place: &Place<'_>,
        name: &str,
        number: Option<usize>,
        shown: Option<&mut Shown>,
        value: &[u8],
    ) -> Result<(), Failure> {
        if let (Some(saver), Some(Shown::Blob(blob))) = (&mut self.saver, shown) {
            blob.file = Some(saver.save(place.url, place.record, name, number, blob.extension(), value)?);
        }
        Ok(())
    }
}

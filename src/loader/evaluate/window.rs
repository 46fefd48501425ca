//! Functions that work on all rows of a stream's window at once: packing, and bucketing by length.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Schema;
use xxhash_rust::xxh3::xxh3_64;

use super::chunk::documents_of;
use super::{Env, Evaluated, Failing, column_of, internal, merge_skipped};
use crate::batch::collate::{Rows, Sample};
use crate::dataset::graph::Function;
use crate::error::Result;
use crate::loader::pipeline::Stage;
use crate::schema::Column;
use crate::transform::image::Scratch;
use crate::transform::tokens::{self, Buckets, Dealt, Pack, Packed, Part, Span};

impl Env<'_> {
    /// Joins the parts of a window, each with the number of its positions, and applies functions to the whole window.
    ///
    /// # Errors
    /// Faults that no row is to blame for.
    pub(crate) fn evaluate_window(
        &self,
        parts: Vec<(Evaluated, u64)>,
        stages: &[usize],
        scratch: &mut Scratch,
    ) -> Result<Evaluated> {
        let positions = parts.iter().map(|(_, positions)| positions).sum();
        let mut evaluated = join(parts)?;
        for &stage in stages {
            let stage = &self.stages[stage];
            evaluated = if stage.function.window().is_some() {
                let start = Instant::now();
                let applied = self.apply_to_window(stage, evaluated, positions)?;
                stage.counter.busy(start.elapsed());
                stage.counter.add(applied.rows.len() as u64, 0);
                applied
            } else {
                self.apply(stage, evaluated, scratch)?
            };
        }
        Ok(evaluated)
    }

    /// Applies a function to all rows of a window at once.
    ///
    /// The results stand at the window's last position, so that a cursor counts how many of them were delivered. An error ends the epoch before the
    /// window's first row: a window without the rows after the error is not the same window as once the error is fixed.
    fn apply_to_window(&self, stage: &Stage, mut input: Evaluated, positions: u64) -> Result<Evaluated> {
        let last = positions.saturating_sub(1) as u32;
        let mut failing = Failing::default();
        let unfit = match &stage.function {
            _ if input.error.is_some() || input.rows.len() == 0 => Vec::new(),
            Function::Pack { pack, .. } => {
                let (documents, beside) = documents_of(&input.rows.rows, &pack.column, pack.beside_names())?;
                tokens::unfit_to_pack(documents, &beside, pack)
            }
            Function::Bucket { column, part, .. } => {
                tokens::unfit_to_deal(&tokens::lengths(column_of(&input.rows.rows, column)?, column)?, *part, column)
            }
            _ => unreachable!("no other works on windows"),
        };
        for (row, error) in unfit {
            let error = self.blame(stage, input.rows.samples[row], error);
            if self.ends_at(&mut failing, row, error) {
                break;
            }
        }
        let left_out = failing.left_out.iter().map(|(row, error)| (input.position(*row), error.clone()));
        let skipped = merge_skipped(input.skipped.iter().cloned().chain(left_out), |skipped| skipped.0);
        if let Some(error) = input.error.take().or(failing.end.map(|end| end.1)) {
            let none = self.apply_to_nothing(stage, input.cut(0, error));
            return Ok(Evaluated { skipped, ..none });
        }
        if input.rows.len() == 0 {
            return Ok(self.apply_to_nothing(stage, input));
        }
        let left_out: Vec<usize> = failing.left_out.iter().map(|left| left.0).collect();
        let (rows, shares) = match &stage.function {
            Function::Pack { pack, .. } => (self.packed(stage, &input.rows, &left_out, pack)?, None),
            Function::Bucket { column, buckets, part } => {
                let lengths = tokens::lengths(column_of(&input.rows.rows, column)?, column)?;
                self.bucketed(stage, &input.rows, &lengths, &left_out, buckets, *part)?
            }
            _ => unreachable!("no other works on windows"),
        };
        Ok(Evaluated { origin: Some(vec![last; rows.len()]), shares, rows, skipped, error: None })
    }

    /// Packed rows, each with the identity of its first document, its number in the window, and a checksum of which tokens of which records it holds.
    fn packed(&self, stage: &Stage, input: &Rows, left_out: &[usize], pack: &Pack) -> Result<Rows> {
        let (documents, beside) = documents_of(&input.rows, &pack.column, pack.beside_names())?;
        let Packed { layout, columns, tokens, padding } = tokens::pack(documents, &beside, left_out, pack);
        stage.counter.pad(tokens, padding);
        let sample = |(number, spans): (usize, &[Span])| {
            let held: Vec<u64> = spans
                .iter()
                .flat_map(|span| {
                    let Sample { id, checksum, part, .. } = input.samples[span.document as usize];
                    let (record, tokens) = (
                        (u64::from(part) << 32) | u64::from(checksum),
                        (u64::from(span.start) << 32) | u64::from(span.len),
                    );
                    [id, record, tokens].map(u64::to_le)
                })
                .collect();
            let first = input.samples[spans[0].document as usize];
            Sample { part: number as u32, checksum: xxh3_64(bytemuck::cast_slice(&held)) as u32, ..first }
        };
        let samples: Vec<Sample> = layout.rows().enumerate().map(sample).collect();
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        let rows = if samples.is_empty() { self.empty_of(stage, &nothing) } else { of_columns(columns)? };
        Ok(Rows { rows, samples })
    }

    /// The rows of a window in the order in which they are dealt, and their shares if shares have no fixed size.
    fn bucketed(
        &self,
        stage: &Stage,
        input: &Rows,
        lengths: &[u32],
        left_out: &[usize],
        buckets: &Buckets,
        part: Part,
    ) -> Result<(Rows, Option<Vec<u32>>)> {
        let key = stage.key.with_number(self.epoch).with_number(self.window);
        let Dealt { order, shares } = tokens::deal(lengths, left_out, buckets, part, key);
        let samples = order.iter().map(|&row| input.samples[row as usize]).collect();
        let rows = take_record_batch(&input.rows, &UInt32Array::from(order)).map_err(internal)?;
        Ok((Rows { rows, samples }, part.tokens.map(|_| shares)))
    }
}

/// Rows of these columns alone.
fn of_columns(columns: Vec<(Column, ArrayRef)>) -> Result<RecordBatch> {
    let (columns, arrays): (Vec<Column>, Vec<ArrayRef>) = columns.into_iter().unzip();
    RecordBatch::try_new(crate::schema::arrow_schema(&columns), arrays).map_err(internal)
}

/// Joins the rows of consecutive parts end to end, up to the first that failed. Each part's positions follow those of the part before.
fn join(mut parts: Vec<(Evaluated, u64)>) -> Result<Evaluated> {
    if parts.len() == 1
        && let Some((only, _)) = parts.pop()
    {
        return Ok(only);
    }
    let rows: Vec<Rows> = parts.iter().map(|(part, _)| &part.rows).filter(|rows| rows.len() > 0).cloned().collect();
    let rows = match (rows.is_empty(), parts.iter().find(|(part, _)| part.rows.rows.num_columns() > 0)) {
        (false, _) => Rows::concat(&rows)?,
        (true, Some((part, _))) => part.rows.clone(),
        (true, None) => parts[0].0.rows.clone(),
    };
    let (mut origin, mut skipped, mut error, mut first) = (Vec::with_capacity(rows.len()), Vec::new(), None, 0);
    for (part, positions) in parts {
        origin.extend((0..part.rows.len()).map(|row| first + part.position(row)));
        skipped.extend(part.skipped.into_iter().map(|(position, error)| (first + position, error)));
        error = error.or(part.error);
        first += positions as u32;
    }
    Ok(Evaluated { rows, origin: Some(origin), shares: None, skipped, error })
}

//! Rows of formats that a source reads in blocks.

use super::{Head, Place};
use crate::cli::Failure;
use crate::cli::blocks;
use crate::cli::opened::{Cells, Opener, is_damage};
use crate::cli::shards::Shards;
use crate::cli::value::Shown;
use crate::dataset::Format;
use crate::error::{Error, Result};
use crate::schema::{Column, Dtype};
use crate::source::{Decoded, Source};

impl Head<'_> {
    /// Shows rows of any format but TFRecord.
    pub(super) fn rows(&mut self, shards: &Shards, format: Format, mut skip: u64) -> Result<(), Failure> {
        let opener = Opener::new(format, &self.args.shards, self.args.index.dir(), true);
        let parts = opener.parts(&shards.objects);
        let mut columns = opener.settle(shards, &parts)?;
        if let Some(columns) = &mut columns {
            columns.notes.iter().for_each(|note| self.terminal.remark(note));
            self.seen.extend(columns.stored.iter().map(|column| column.name().to_string()));
            if let Some(absent) = self.args.column.iter().find(|name| !self.seen.contains(*name)) {
                let names = self.seen.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let message = format!("the shards have no such column; these exist: {names}");
                return Err(Error::config(message).column(absent.as_str()).into());
            }
            // Others need not be read.
            let wanted = &self.args.column;
            let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
            columns.stored.retain(|column| is_wanted(column.name()));
            columns.asked.retain(|column| {
                is_wanted(column.name()) || column.name().strip_suffix(".is_present").is_some_and(is_wanted)
            });
        }
        for part in parts {
            if self.left == 0 {
                break;
            }
            for opened in opener.open_all(shards, vec![part], columns.as_ref(), self.terminal)? {
                match opened {
                    Ok(source) => {
                        let names = columns.as_ref().map_or(source.columns(), |columns| &columns.stored).to_vec();
                        self.blocks(shards, &*source, &names, &mut skip)?;
                    }
                    Err(error) if is_damage(&error) => self.bad(&error),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn blocks(
        &mut self,
        shards: &Shards,
        source: &dyn Source,
        columns: &[Column],
        skip: &mut u64,
    ) -> Result<(), Failure> {
        let catalog = source.catalog();
        for block in 0..catalog.blocks() {
            if self.left == 0 {
                break;
            }
            let rows = catalog.block_rows(block);
            if *skip >= rows {
                *skip -= rows;
                continue;
            }
            match blocks::read(source, &shards.io, block) {
                Ok(decoded) => {
                    let shard = catalog.shard_name(catalog.shard_of(block));
                    self.block(decoded, columns, (shard, catalog.record_of(block)), skip)?;
                }
                Err(error) if is_damage(&error) => {
                    *skip = 0;
                    self.bad(&if error.place().record.is_none() {
                        error.record(catalog.record_of(block))
                    } else {
                        error
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        decoded: Decoded,
        columns: &[Column],
        (shard, first): (&str, u64),
        skip: &mut u64,
    ) -> Result<(), Failure> {
        let Decoded { rows, bad, places, .. } = decoded;
        let cells: Vec<_> = columns.iter().filter_map(|column| Some((column, Cells::of(&rows, column)?))).collect();
        let mut bad = bad.into_iter().peekable();
        for row in 0..rows.num_rows() {
            let error = bad.next_if(|(at, _)| *at == row).map(|(_, error)| error);
            if *skip > 0 {
                *skip -= 1;
                continue;
            }
            if self.left == 0 {
                break;
            }
            let located = places.as_ref().map(|places| places.of(row));
            if let Some(error) = error {
                self.bad(&places.as_ref().map_or(error.clone(), |places| places.locate(row, error)));
                continue;
            }
            let (url, record, offset) = located.unwrap_or((shard.into(), first + row as u64, None));
            let place = Place { url: &url, record, offset };
            let mut shown = Vec::with_capacity(cells.len());
            for (column, cells) in &cells {
                let mut value = Shown::cell(cells, row, column.shape());
                if column.dtype() == Dtype::Bytes {
                    self.save_cell(&place, column.name(), &mut value, &cells.strings(row))?;
                }
                shown.push((column.name().to_string(), value));
            }
            self.show(&place, &shown)?;
        }
        Ok(())
    }

    /// Saves the parts of a value that are not shown as text.
    fn save_cell(&mut self, place: &Place<'_>, name: &str, shown: &mut Shown, values: &[&[u8]]) -> Result<(), Failure> {
        let several = values.len() > 1;
        for (number, (shown, value)) in shown.leaves_mut().into_iter().zip(values).enumerate() {
            self.save(place, name, several.then_some(number), Some(shown), value)?;
        }
        Ok(())
    }
}

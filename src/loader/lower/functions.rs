//! Lowers the functions of a graph: the stage of each, and what it does to the columns.

use std::sync::Arc;

use super::{Carried, Lowered, Lowering, is_padded};
use crate::batch::Pad;
use crate::dataset::graph::Function;
use crate::schema::{Column, Dtype, Shape};
use crate::transform::image::Image;
use crate::transform::tokens::{CU_SEQLENS, Pack, Part};

impl Lowering<'_> {
    /// Adds a user's function and what it does to the columns.
    pub(super) fn stage(&mut self, name: &str, function: &Function, columns: &mut Vec<Carried>) -> usize {
        if let Function::Map { outputs, .. } | Function::MapBatch { outputs, .. } | Function::FlatMap { outputs, .. } =
            function
        {
            outputs.iter().for_each(|output| make(columns, output.clone()));
        }
        if let Function::Where { condition } = function {
            let columns: Vec<&Column> = columns.iter().map(|carried| &carried.column).collect();
            self.mistakes.extend(condition.mistakes(&columns));
        }
        let verb = match function {
            #[cfg(feature = "tokenizers")]
            Function::Tokenize { .. } => return self.token_stage(name, function, columns),
            Function::Chunk { .. } | Function::Pack { .. } | Function::Bucket { .. } => {
                return self.token_stage(name, function, columns);
            }
            Function::Map { .. } => "map",
            Function::MapBatch { .. } => "map_batch",
            Function::Filter { .. } => "filter",
            Function::FlatMap { .. } => "flat_map",
            Function::Where { .. } => "",
            Function::Image { .. } | Function::Select { .. } => unreachable!("handled by their callers"),
        };
        let stage = self.add_stage(name, function.clone());
        self.stages[stage].name = match function {
            Function::Where { .. } => format!("filter where {name}"),
            _ => format!("{verb} {name:?}"),
        };
        stage
    }

    /// Adds a function of tokens and what it does to the columns.
    fn token_stage(&mut self, name: &str, function: &Function, columns: &mut Vec<Carried>) -> usize {
        let mut function = function.clone();
        match &mut function {
            #[cfg(feature = "tokenizers")]
            Function::Tokenize { column, tokenizer } => {
                match columns.iter().find(|carried| carried.column.name().as_ref() == column.as_str()) {
                    None => self.no_column(columns, column, ".tokenize()"),
                    Some(carried)
                        if carried.column.dtype() == Dtype::Bytes && *carried.column.shape() == Shape::Scalar => {}
                    Some(carried) => {
                        let found = carried.column.clone();
                        self.mistake(
                            format!("`{found}` holds no text"),
                            "name a column of text, or of bytes that are UTF-8",
                        );
                    }
                }
                make(columns, tokenizer.column());
            }
            Function::Chunk { column, chunk } => {
                let is_ragged = |column: &Column| matches!(column.shape(), Shape::Ragged(_));
                self.check_tokens(columns, column, ".chunk()", is_ragged);
                for name in &chunk.beside {
                    self.check_beside(columns, name, is_ragged);
                }
                let cut = |name: &str| name == column.as_str() || chunk.beside.iter().any(|beside| beside == name);
                let whole = columns.iter().map(|carried| &carried.column);
                let whole = whole.filter(|column| !cut(column.name()) && is_beside(column));
                let whole: Vec<&str> = whole.map(|column| column.name().as_ref()).collect();
                if let [first, ..] = whole[..] {
                    self.notes.push(format!(
                        ".chunk({column:?}) gives each piece the whole list of {}: Chunk::of({}).beside({first:?}) cuts what has an element a token",
                        whole.join(", "),
                        chunk.len
                    ));
                }
                columns.iter_mut().for_each(|carried| carried.leaf = None);
            }
            Function::Pack { pack, outputs } => {
                let pack: &Pack = pack;
                self.check_tokens(columns, &pack.column, ".pack()", |column| {
                    let whole = matches!(column.dtype(), Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
                    whole && *column.shape() == Shape::Ragged(Vec::new())
                });
                let carried = |column: Column| {
                    // Rows with fewer documents end in segments without tokens.
                    let is_index = column.name().as_ref() == CU_SEQLENS;
                    let pad = is_index.then(|| Pad::longest().value(pack.len as f64));
                    Carried { pad, is_index, ..Carried::new(column, None) }
                };
                let dtypes: Vec<Dtype> =
                    pack.beside_names().map(|name| self.dtype_beside(columns, name, pack)).collect();
                let goes_on = |name: &str| name == pack.column || pack.beside_names().any(|beside| beside == name);
                let ended: Vec<&Column> =
                    columns.iter().map(|c| &c.column).filter(|column| !goes_on(column.name())).collect();
                if !ended.is_empty() {
                    let names: Vec<&str> = ended.iter().map(|column| column.name().as_ref()).collect();
                    let mut note = format!(
                        ".pack({:?}) makes rows of many: columns that end there: {}",
                        pack.column,
                        names.join(", ")
                    );
                    if let Some(column) = ended.iter().find(|column| is_beside(column)) {
                        note += &format!(
                            "; .beside({:?}, pad_value) packs along what has an element a token",
                            column.name()
                        );
                    }
                    self.notes.push(note);
                }
                *outputs = pack.outputs(dtypes);
                *columns = outputs.iter().cloned().map(carried).collect();
            }
            Function::Bucket { column, buckets, part } => {
                self.check_tokens(columns, column, ".bucket_by_length()", |column| {
                    matches!(column.shape(), Shape::Ragged(_))
                        || column.dtype() == Dtype::Bytes && *column.shape() == Shape::Scalar
                });
                let share = buckets.tokens().map(|tokens| tokens / self.steps.streams);
                if share == Some(0) {
                    self.mistake(
                        format!("a token budget that gives each of {} streams less than one", self.steps.streams),
                        "take a larger one, or fewer .streams(n)",
                    );
                }
                *part = Part { rows: self.steps.stream_share() as usize, tokens: share };
                columns.iter_mut().for_each(|carried| carried.leaf = None);
            }
            _ => unreachable!("a function of tokens"),
        }
        self.add_stage(name, function)
    }

    fn check_tokens(&mut self, columns: &[Carried], name: &str, verb: &str, fits: impl Fn(&Column) -> bool) {
        match columns.iter().find(|carried| carried.column.name().as_ref() == name) {
            None => self.no_column(columns, name, verb),
            Some(carried) if fits(&carried.column) => {}
            Some(carried) => {
                let found = carried.column.clone();
                self.mistake(
                    format!("{verb} of `{found}`, which holds no lists of tokens"),
                    "name a ragged column of whole numbers: .tokenize() or .map() makes one",
                );
            }
        }
    }

    /// Looks for a column that is to go where the tokens go.
    fn check_beside<'c>(
        &mut self,
        columns: &'c [Carried],
        name: &str,
        fits: impl Fn(&Column) -> bool,
    ) -> Option<&'c Column> {
        let Some(carried) = columns.iter().find(|carried| carried.column.name().as_ref() == name) else {
            self.no_column(columns, name, ".beside()");
            return None;
        };
        let found = &carried.column;
        if !fits(found) {
            self.mistake(
                format!("`{found}` beside the tokens, which has no element for each"),
                "name a ragged column of numbers or truth values: .map() makes one",
            );
            return None;
        }
        Some(found)
    }

    /// The dtype of a column that is to be packed along with the tokens; any dtype if it cannot be packed.
    fn dtype_beside(&mut self, columns: &[Carried], name: &str, pack: &Pack) -> Dtype {
        let Some(found) = self.check_beside(columns, name, is_beside) else { return Dtype::I64 };
        let dtype = found.dtype();
        for value in pack.misfits(name, dtype) {
            self.mistake(
                format!("{value} beside the tokens in `{found}`, which holds no such element"),
                "take a value that its dtype holds, or make the column of another one in a .map()",
            );
        }
        dtype
    }

    /// Notes an image operation. It is carried out when the batch is laid out, unless a function needs the pixels before.
    pub(super) fn image(&mut self, mut lowered: Lowered, name: &str, column: &str, image: &Arc<Image>) -> Lowered {
        let Some(carried) = lowered.columns.iter_mut().find(|c| c.column.name().as_ref() == column) else {
            self.no_column(&lowered.columns, column, ".image()");
            return lowered;
        };
        if carried.column.dtype() != Dtype::Bytes || *carried.column.shape() != Shape::Scalar || carried.image.is_some()
        {
            let found = carried.column.clone();
            self.mistake(format!("`{found}` holds no encoded images"), "name a column of bytes, and decode it once");
            return lowered;
        }
        // A graph with a faulty image never got here: `validate` looked at it.
        if let Ok((dtype, shape)) = image.output() {
            carried.column = Column::new(column, dtype, Shape::Fixed(shape));
            carried.leaf = None;
            carried.image = Some((image.clone(), self.seed.with("operation").with(name), name.to_owned()));
        }
        lowered
    }

    /// Decodes the images that were put off, because the next function may look at the pixels.
    pub(super) fn decode_images(&mut self, mut lowered: Lowered) -> Lowered {
        for i in 0..lowered.columns.len() {
            let Some((image, key, name)) = lowered.columns[i].image.take() else { continue };
            let column = lowered.columns[i].column.name().to_string();
            let stage = self.add_stage(&name, Function::Image { column, image });
            self.stages[stage].key = key;
            lowered = self.applied(stage, lowered);
        }
        lowered
    }
}

/// Puts a column that a function makes in the place of the one with its name, or after the others.
fn make(columns: &mut Vec<Carried>, column: Column) {
    let made = Carried::new(column, None);
    match columns.iter_mut().find(|carried| carried.column.name() == made.column.name()) {
        // What was said of the lists by this name holds for those that take their place.
        Some(carried) if is_padded(&made.column) => {
            *carried = Carried { pad: carried.pad, is_index: carried.is_index, ..made };
        }
        Some(carried) => *carried = made,
        None => columns.push(made),
    }
}

/// Whether rows of a column are lists of single elements, which can go with tokens.
fn is_beside(column: &Column) -> bool {
    column.dtype() != Dtype::Bytes && *column.shape() == Shape::Ragged(Vec::new())
}

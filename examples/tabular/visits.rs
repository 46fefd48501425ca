//! Made-up visits to a shop, as one wide Parquet file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use forebay::random::{Key, Rng};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rand::Rng as _;

use crate::Result;

pub(crate) const DAYS: i32 = 30;
const VISITS_A_DAY: usize = 1500;

/// Columns of ids, each with how many there are; 0 is none of them, and stands for a null. The first two are what it is about.
pub(crate) const IDS: [(&str, i64); 8] = [
    ("user", 201),
    ("item", 101),
    ("category", 21),
    ("country", 31),
    ("device", 5),
    ("channel", 9),
    ("hour", 25),
    ("campaign", 41),
];

/// Columns of measurements.
pub(crate) const MEASUREMENTS: [&str; 10] =
    ["price", "discount", "age", "dwell", "scroll", "rating", "reviews", "stock", "basket", "distance"];

/// The measurement that is missing where it is telling: who never rated anything buys less.
pub(crate) const OFTEN_NULL: &str = "rating";

/// Columns that the file has and the network does not want: numbers and texts of other teams.
const NUMBERS: usize = 32;
const TEXTS: [&str; 8] = ["session", "agent", "referrer", "query", "note", "variant", "path", "hash"];

/// What decides about buying, unknown to the network.
struct Taste {
    users: Vec<[f32; 3]>,
    items: Vec<[f32; 3]>,
    countries: Vec<f32>,
    weights: [f32; MEASUREMENTS.len()],
}

impl Taste {
    fn new(rng: &mut Rng) -> Self {
        let mut vectors = |ids: i64| (0..ids).map(|_| [normal(rng), normal(rng), normal(rng)]).collect();
        let (users, items) = (vectors(IDS[0].1), vectors(IDS[1].1));
        let countries = (0..IDS[3].1).map(|_| 0.5 * normal(rng)).collect();
        Self { users, items, countries, weights: [-0.8, 0.5, 0.1, 0.6, 0.2, 0.5, 0.1, 0.0, 0.4, -0.3] }
    }

    /// The logarithm of the odds that a visit ends with buying.
    fn odds(&self, ids: &[Option<i32>; 8], measurements: &[Option<f32>; 10]) -> f32 {
        let id = |at: usize| ids[at].unwrap_or(0) as usize;
        let match_: f32 = self.users[id(0)].iter().zip(&self.items[id(1)]).map(|(a, b)| a * b).sum();
        let weighted: f32 = self.weights.iter().zip(measurements).map(|(w, m)| w * m.unwrap_or(-0.5)).sum();
        0.9 * match_ + self.countries[id(3)] + weighted - 0.4
    }
}

fn normal(rng: &mut Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// Writes the file, a row group a day.
pub(crate) fn write(path: &Path) -> Result<()> {
    let mut rng = Key::new(7).with("visits").rng();
    let taste = Taste::new(&mut rng);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_max_row_group_row_count(Some(VISITS_A_DAY));
    let mut writer: Option<ArrowWriter<File>> = None;
    for day in 0..DAYS {
        let rows = visits_of(day, &taste, &mut rng)?;
        if writer.is_none() {
            let properties = properties.clone().build();
            writer = Some(ArrowWriter::try_new(File::create(path)?, rows.schema(), Some(properties))?);
        }
        writer.as_mut().expect("made above").write(&rows)?;
    }
    let metadata = writer.expect("there are days").close()?;
    let schema = metadata.file_metadata().schema_descr();
    let (rows, columns) = (metadata.file_metadata().num_rows(), schema.num_columns());
    println!("{rows} visits in {columns} columns and {} row groups", metadata.num_row_groups());
    Ok(())
}

fn visits_of(day: i32, taste: &Taste, rng: &mut Rng) -> Result<RecordBatch> {
    let mut ids: [Vec<Option<i32>>; 8] = Default::default();
    let mut measurements: [Vec<Option<f32>>; 10] = Default::default();
    let mut bought = Vec::new();
    for _ in 0..VISITS_A_DAY {
        // Users and items are always known; of the others one in fifty is not.
        let id = |at: usize, rng: &mut Rng| {
            let id = rng.random_range(1..IDS[at].1 as i32);
            (at < 2 || !rng.random_bool(0.02)).then_some(id)
        };
        let of_visit: [Option<i32>; 8] = std::array::from_fn(|at| id(at, rng));
        let measured: [Option<f32>; 10] = MEASUREMENTS.map(|name| {
            let is_null = rng.random_bool(if name == OFTEN_NULL { 0.3 } else { 0.02 });
            let value = normal(rng);
            (!is_null).then_some(value)
        });
        let chance = 1.0 / (1.0 + (-taste.odds(&of_visit, &measured)).exp());
        bought.push(if rng.random::<f32>() < chance { 1.0 } else { 0.0 });
        ids.iter_mut().zip(of_visit).for_each(|(column, id)| column.push(id));
        measurements.iter_mut().zip(measured).for_each(|(column, value)| column.push(value));
    }

    let mut columns: Vec<(String, ArrayRef)> =
        vec![("day".into(), Arc::new(Int32Array::from(vec![day; VISITS_A_DAY])))];
    columns.push(("bought".into(), Arc::new(Float32Array::from(bought))));
    for ((name, _), column) in IDS.iter().zip(ids) {
        columns.push((name.to_string(), Arc::new(Int32Array::from(column))));
    }
    for (name, column) in MEASUREMENTS.iter().zip(measurements) {
        columns.push((name.to_string(), Arc::new(Float32Array::from(column))));
    }
    for number in 0..NUMBERS {
        let values = Float32Array::from_iter_values((0..VISITS_A_DAY).map(|_| normal(rng)));
        columns.push((format!("other_{number:02}"), Arc::new(values)));
    }
    for name in TEXTS {
        let texts = StringArray::from_iter_values(
            (0..VISITS_A_DAY).map(|_| format!("{name}-{:012x}", rng.random::<u64>() >> 16)),
        );
        columns.push((name.into(), Arc::new(texts)));
    }
    Ok(RecordBatch::try_from_iter(columns)?)
}

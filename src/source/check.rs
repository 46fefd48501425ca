//! A stored shard, opened as the loader opens it: for tests and fuzzing.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::Source;
use super::open::{Index, Opened, Opening, Wanted, open_listed};
use crate::dataset::Format;
use crate::dataset::expr::Expr;
use crate::error::{Error, Result};
use crate::schema::Column;
use crate::store::Store;

/// What is wanted of a shard.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The columns; those that can be inferred without.
    pub columns: Option<Vec<Column>>,
    /// What holds for each row that is wanted.
    pub conditions: Vec<Expr>,
    /// Blocks that it should be cut into, at least.
    pub blocks: u64,
    /// Bytes that may be held of it: half of a budget.
    pub max_bytes: usize,
}

/// Opens a shard; no index of it is kept. Wants a tokio runtime around it.
pub async fn open(url: &str, format: Format, asked: Asked) -> Result<Arc<dyn Source>> {
    let store = Store::new();
    let object = store.head(url).await?;
    let Asked { columns, conditions, blocks, max_bytes } = asked;
    let wanted = Wanted {
        patterns: vec![url.to_owned()],
        columns,
        also: Vec::new(),
        is_seen: true,
        conditions: conditions.into_iter().map(Arc::new).collect(),
        index: Index::Build,
        index_dir: None,
        min_blocks: blocks,
        whole_rows: 0,
        by_rows: false,
        shuffled: false,
        needs_index: None,
        arrives: false,
        leave_out: false,
        whole_shards: false,
        all_columns: false,
        max_bytes,
    };
    let Opening { opened, .. } = open_listed(store, vec![object], Some(format), wanted).await?;
    match opened {
        Opened::Indexed(source) => Ok(source),
        Opened::Arriving(_) => Err(Error::config("the shard has no index").url(url)),
    }
}

/// Which rows a condition holds for.
pub fn of_rows(condition: &Expr, rows: &RecordBatch) -> Result<Vec<bool>> {
    condition.of_rows(rows)
}

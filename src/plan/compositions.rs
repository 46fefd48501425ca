//! Random trees of orders, compared with a model that turns them into lists of rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::mix::{Exhausted, Mixing, quotas};
use super::order::{Frame, Lanes, Order, Picked, Positions, Turns};
use super::shuffle::ShuffledOrder;
use super::steps::{Remainder, Steps};
use super::{Catalog, Shuffle};
use crate::random::Key;

/// A graph, as a user would write it.
#[derive(Clone, Debug)]
enum Graph {
    /// Rows of blocks; each block is a shard.
    Source(Vec<u64>),
    Interleave(Vec<u64>, usize, u64),
    Shuffle(Option<u64>, Box<Graph>),
    Take(u64, Box<Graph>),
    Skip(u64, Box<Graph>),
    Repeat(u64, Box<Graph>),
    Concat(Vec<Graph>),
    Zip(Box<Graph>, Box<Graph>),
    Mix(Vec<(u64, Graph)>, Exhausted),
}

fn graphs() -> impl Strategy<Value = Graph> {
    let blocks = || prop::collection::vec(1..12u64, 1..8);
    let source = prop_oneof![
        3 => blocks().prop_map(Graph::Source),
        1 => (blocks(), 1..5usize, 1..4u64).prop_map(|(blocks, cycle, run)| Graph::Interleave(blocks, cycle, run)),
    ];
    let exhausted = prop_oneof![Just(Exhausted::Stop), Just(Exhausted::Drop), Just(Exhausted::Repeat)];
    source.prop_recursive(4, 12, 3, move |inner| {
        let one = || inner.clone().prop_map(Box::new);
        let buffer = prop_oneof![Just(None), (2..60u64).prop_map(Some)];
        prop_oneof![
            3 => (buffer, one()).prop_map(|(buffer, input)| Graph::Shuffle(buffer, input)),
            1 => (0..60u64, one()).prop_map(|(rows, input)| Graph::Take(rows, input)),
            1 => (0..30u64, one()).prop_map(|(rows, input)| Graph::Skip(rows, input)),
            1 => (1..4u64, one()).prop_map(|(times, input)| Graph::Repeat(times, input)),
            1 => prop::collection::vec(inner.clone(), 1..4).prop_map(Graph::Concat),
            1 => (one(), one()).prop_map(|(left, right)| Graph::Zip(left, right)),
            3 => (prop::collection::vec((1..6u64, inner.clone()), 1..4), exhausted.clone())
                .prop_map(|(parts, exhausted)| Graph::Mix(parts, exhausted)),
        ]
    })
}

/// Lowers a graph like `loader::lower`, with separate steps for the parts of a mix.
struct Lowering {
    leaves: usize,
    ids: u64,
    nodes: u64,
}

impl Lowering {
    fn source(&mut self, blocks: &[u64]) -> Order {
        let mut catalog = Catalog::new();
        for (shard, &rows) in blocks.iter().enumerate() {
            catalog.push_shard(shard.to_string());
            catalog.push_block(rows, rows);
        }
        let order = Order::Rows { leaf: self.leaves, first_id: self.ids, catalog: Arc::new(catalog) };
        self.leaves += 1;
        self.ids += blocks.iter().sum::<u64>();
        order
    }

    fn lower(&mut self, graph: &Graph, steps: Steps) -> Order {
        self.nodes += 1;
        let key = Key::new(5).with_number(self.nodes);
        let mut boxed = |input: &Graph| Box::new(self.lower(input, steps));
        match graph {
            Graph::Source(blocks) => self.source(blocks),
            Graph::Interleave(blocks, cycle, run) => {
                let input = Box::new(self.source(blocks));
                let lanes = Arc::new(Lanes::new(&input.shards().unwrap(), *cycle, *run));
                Order::Interleave { lanes, input }
            }
            Graph::Shuffle(buffer, input) => {
                let input = boxed(input);
                let (starts, divisible) = input.blocks();
                let shuffle = buffer.map_or(Shuffle::global(), Shuffle::buffer);
                Order::Shuffle { order: ShuffledOrder::new(key, shuffle, &starts, divisible, steps), input }
            }
            Graph::Take(rows, input) => Order::Take { rows: *rows, input: boxed(input) },
            Graph::Skip(rows, input) => Order::Skip { rows: *rows, input: boxed(input) },
            Graph::Repeat(times, input) => Order::Repeat { turns: Turns::Times(*times), input: boxed(input) },
            Graph::Concat(inputs) => Order::Concat(inputs.iter().map(|input| *boxed(input)).collect()),
            Graph::Zip(left, right) => Order::Zip(vec![*boxed(left), *boxed(right)]),
            Graph::Mix(parts, exhausted) => {
                let weights = weights(parts);
                let window = weights.iter().sum();
                let inputs = parts
                    .iter()
                    .zip(&weights)
                    .map(|((_, part), &quota)| self.lower(part, steps.thinned(quota, window)));
                let inputs: Vec<Order> = inputs.collect();
                let lengths: Vec<u64> = inputs.iter().map(|input| input.rows().unwrap()).collect();
                // Nothing cannot be repeated, and the loader refuses it.
                let exhausted = if lengths.contains(&0) { Exhausted::Drop } else { *exhausted };
                Order::Mix { mixing: Mixing::new(key, &weights, lengths, exhausted), inputs }
            }
        }
    }
}

fn weights(parts: &[(u64, Graph)]) -> Vec<u64> {
    quotas(&parts.iter().map(|part| part.0 as f64).collect::<Vec<_>>()).unwrap()
}

/// How often each row of the first column may come at most, how many rows there are, and whether each row comes exactly that often.
struct Model {
    most: BTreeMap<u64, u64>,
    rows: u64,
    exact: bool,
}

impl Model {
    /// What remains if only `rows` rows are taken.
    fn cut(self, rows: u64) -> Self {
        let rows = rows.min(self.rows);
        Self { rows, exact: self.exact && rows == self.rows, ..self }
    }

    fn repeated(mut self, times: u64) -> Self {
        self.most.values_mut().for_each(|count| *count *= times);
        Self { rows: self.rows * times, ..self }
    }

    fn sum(parts: impl IntoIterator<Item = Model>) -> Self {
        let mut all = Self { most: BTreeMap::new(), rows: 0, exact: true };
        for part in parts {
            part.most.into_iter().for_each(|(id, count)| *all.most.entry(id).or_insert(0) += count);
            all.rows += part.rows;
            all.exact &= part.exact;
        }
        all
    }

    fn of(graph: &Graph, ids: &mut u64) -> Self {
        match graph {
            Graph::Source(blocks) | Graph::Interleave(blocks, ..) => {
                let rows = blocks.iter().sum::<u64>();
                *ids += rows;
                Self { most: (*ids - rows..*ids).map(|id| (id, 1)).collect(), rows, exact: true }
            }
            Graph::Shuffle(_, input) => Self::of(input, ids),
            Graph::Take(rows, input) => Self::of(input, ids).cut(*rows),
            Graph::Skip(rows, input) => {
                let input = Self::of(input, ids);
                let left = input.rows.saturating_sub(*rows);
                input.cut(left)
            }
            Graph::Repeat(times, input) => Self::of(input, ids).repeated(*times),
            Graph::Concat(inputs) => Self::sum(inputs.iter().map(|input| Self::of(input, ids)).collect::<Vec<_>>()),
            Graph::Zip(left, right) => {
                let (left, right) = (Self::of(left, ids), Self::of(right, ids));
                left.cut(right.rows)
            }
            Graph::Mix(parts, exhausted) => {
                let quotas = weights(parts);
                let parts: Vec<Model> = parts.iter().map(|(_, part)| Self::of(part, ids)).collect();
                let windows = parts.iter().zip(&quotas);
                match exhausted {
                    Exhausted::Stop if parts.iter().all(|part| part.rows > 0) => {
                        let windows = windows.map(|(part, quota)| part.rows / quota).min().unwrap();
                        Self::sum(parts.into_iter().zip(&quotas).map(|(part, quota)| part.cut(windows * quota)))
                    }
                    Exhausted::Repeat if parts.iter().all(|part| part.rows > 0) => {
                        let windows = windows.map(|(part, quota)| part.rows.div_ceil(*quota)).max().unwrap();
                        Self::sum(parts.into_iter().zip(&quotas).map(|(part, quota)| {
                            let rows = windows * quota;
                            let turns = rows.div_ceil(part.rows);
                            part.repeated(turns).cut(rows)
                        }))
                    }
                    _ => Self::sum(parts),
                }
            }
        }
    }
}

/// (sample, pass) of the first column at each position.
fn flatten(picked: &Picked) -> Vec<(u64, u64)> {
    match picked {
        Picked::Rows(rows) => (0..rows.rows.len()).map(|row| (rows.id(row), rows.pass)).collect(),
        Picked::Gathered { parts, from } => {
            let parts: Vec<_> = parts.iter().map(flatten).collect();
            from.iter().map(|&(part, index)| parts[part as usize][index as usize]).collect()
        }
        Picked::Zipped(parts) => flatten(&parts[0]),
        Picked::Enumerated { input, .. } | Picked::Applied { input, .. } => flatten(input),
    }
}

fn pick(order: &mut Order, positions: std::ops::Range<u64>, pass: u64, batch: u64) -> Vec<(u64, u64)> {
    let mut ahead = Vec::new();
    order.ahead(positions.clone(), pass, Some(Frame::of_epoch(batch)), &mut ahead);
    let step = positions.start / batch;
    let picked = order.pick(Positions::new(positions.collect(), step), pass, Some(Frame::of_epoch(batch)), &[]);
    flatten(&picked.unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_composition_delivers_what_it_should_in_any_chunks_and_world(
        graph in graphs(), share in 1..4u64, chunk in 1..30u64, pass in 0..3u64,
    ) {
        let (streams, batch) = (4, 4 * share);
        let steps = Steps::new(batch, Some(streams), (0, 1), Remainder::Keep).unwrap();
        let lowered = || Lowering { leaves: 0, ids: 0, nodes: 0 }.lower(&graph, steps);
        let order = lowered();
        let model = Model::of(&graph, &mut 0);
        let rows = order.rows().unwrap();
        prop_assert_eq!(rows, model.rows);

        let mut global = order.clone();
        let steps_of = |k: u64| k * batch..((k + 1) * batch).min(rows);
        let batches: Vec<_> = (0..rows.div_ceil(batch)).map(|k| pick(&mut global, steps_of(k), pass, batch)).collect();
        let all = batches.concat();

        // Each row as often as it should come.
        let mut counts = BTreeMap::new();
        all.iter().for_each(|(id, _)| *counts.entry(*id).or_insert(0) += 1);
        prop_assert_eq!(all.len() as u64, model.rows);
        if model.exact {
            prop_assert_eq!(&counts, &model.most);
        }
        prop_assert!(counts.iter().all(|(id, count)| model.most.get(id).is_some_and(|most| count <= most)));

        // The same in chunks of any size, and one by one from the back.
        let mut chunked = order.clone();
        let starts = (0..rows).step_by(chunk as usize);
        let parts: Vec<_> = starts.map(|start| pick(&mut chunked, start..(start + chunk).min(rows), pass, batch)).collect();
        prop_assert_eq!(parts.concat(), all.clone());
        let mut single = order.clone();
        for position in (0..rows).rev() {
            prop_assert_eq!(pick(&mut single, position..position + 1, pass, batch)[0], all[position as usize]);
        }

        // Ranks' slices tile the global batch.
        for world in [2, 4] {
            let ranks = (0..world).map(|rank| {
                let steps = Steps { rank, world, ..steps };
                let mut order = Lowering { leaves: 0, ids: 0, nodes: 0 }.lower(&graph, steps);
                (0..batches.len() as u64).map(|step| pick(&mut order, steps.slots(step, rows), pass, batch)).collect::<Vec<_>>()
            });
            let ranks: Vec<_> = ranks.collect();
            for (step, batch) in batches.iter().enumerate() {
                prop_assert_eq!(&ranks.iter().flat_map(|rank| rank[step].clone()).collect::<Vec<_>>(), batch);
            }
        }
    }
}

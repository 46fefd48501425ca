//! The one place that turns a graph into what is executed: an order, functions, and the layout of batches.

mod functions;
mod requests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub(crate) use requests::{Request, requests};

use super::pipeline::{Leaf, Pipeline, Stage};
use crate::batch::collate::Layout;
use crate::batch::{Pad, Side};
use crate::dataset::Dataset;
use crate::dataset::files::Format;
use crate::dataset::graph::{Function, Node, visit};
use crate::dataset::validate::{all_of, row_changer};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::mix::{self, Mixing};
use crate::plan::order::{ENDLESS, Lanes, Order, Turns};
use crate::plan::shuffle::ShuffledOrder;
use crate::plan::state::{Identity, is_transform};
use crate::plan::steps::Steps;
use crate::plan::{DataMark, Exhausted, Remainder, Shuffle};
use crate::random::Key;
use crate::schema::{Column, Dtype, Shape};
use crate::transform::image::Image;
use crate::transform::tokens::{Part, holds};

/// What the graph says about batches after `.batch(n)`, read off its top.
pub(crate) struct BatchSpec<'a> {
    pub(crate) size: u64,
    pub(crate) remainder: Remainder,
    /// Batches that wait for the loop, if their number was stated.
    pub(crate) prefetch: Option<usize>,
    /// The nodes from the batch upwards.
    above: Vec<&'a Node>,
    input: &'a Arc<Node>,
}

/// Batches that wait for the loop unless their number is stated.
const PREFETCH: u64 = 2;

/// Small batches may be more, up to these bytes and this number: handing one over costs what gathering some hundred rows does, and threads that find
/// no work fall asleep. 1,024 rows of 8 bytes came through 3 times as fast as with two.
const SMALL_BYTES: u64 = 1 << 20;
const MANY: u64 = 64;

/// Batches in flight at a time: those that wait for the loop, and one that is being made.
fn window(prefetch: Option<usize>, layouts: &[Layout], rows: u64) -> u64 {
    let sample_bytes =
        layouts.iter().map(|layout| layout.sample_bytes().map(|bytes| bytes as u64)).sum::<Option<u64>>();
    let small = sample_bytes.map_or(0, |bytes| SMALL_BYTES / bytes.saturating_mul(rows).max(1));
    prefetch.map_or_else(|| small.clamp(PREFETCH, MANY), |batches| batches as u64) + 1
}

impl<'a> BatchSpec<'a> {
    /// Reads the specification off a validated graph.
    pub(crate) fn of(dataset: &'a Dataset) -> Self {
        let (mut node, mut above) = (&dataset.node, Vec::new());
        let (mut remainder, mut prefetch) = (None, None);
        loop {
            match &**node {
                Node::Batch { input, size } => {
                    above.reverse();
                    let remainder = remainder.unwrap_or_default();
                    return Self { size: *size, remainder, prefetch, above, input };
                }
                Node::Remainder { remainder: said, .. } => _ = remainder.get_or_insert(*said),
                Node::Prefetch { batches, .. } => _ = prefetch.get_or_insert(*batches),
                other => above.push(other),
            }
            node = &node.inputs()[0];
        }
    }
}

/// A column on its way to the batch.
#[derive(Clone)]
struct Carried {
    column: Column,
    /// The source from which the column is read unchanged.
    leaf: Option<usize>,
    pad: Option<Pad>,
    /// An image operation that waits until the batch is laid out.
    image: Option<(Arc<Image>, Key, String)>,
    /// Whether the column says where other columns' elements lie.
    is_index: bool,
}

impl Carried {
    fn new(column: Column, leaf: Option<usize>) -> Self {
        Self { column, leaf, pad: None, image: None, is_index: false }
    }

    /// The column's padding in words, which are equal if the padding is equal, also for NaN.
    fn padding(&self) -> String {
        self.pad.unwrap_or_default().to_string()
    }
}

/// A node, lowered.
struct Lowered {
    order: Order,
    columns: Vec<Carried>,
    /// The nodes that determine which row stands where. Equal lists mean equal orders.
    path: Vec<*const Node>,
}

struct Lowering<'a> {
    opened: &'a HashMap<*const Node, Leaf>,
    /// How the node is dealt to streams: below a mix, in smaller steps than those of the epoch.
    steps: Steps,
    seed: Key,
    leaves: Vec<(*const Node, Leaf, u64)>,
    stages: Vec<Stage>,
    /// Functions of whole windows, and all functions after one. They commute with everything that only reorders, so they are no part of the order.
    on_windows: Vec<usize>,
    enumerated: Vec<Column>,
    /// The shuffle nodes met so far. A node that feeds two branches has one order in both.
    shuffles: Vec<*const Node>,
    /// The mix nodes met so far, likewise.
    mixes: Vec<*const Node>,
    mistakes: Vec<Error>,
    notes: Vec<String>,
}

/// Lowers a validated graph whose file nodes were opened.
pub(crate) fn lower(
    dataset: &Dataset,
    opened: &HashMap<*const Node, Leaf>,
    steps: Steps,
    seed: u64,
) -> Result<Pipeline> {
    let spec = BatchSpec::of(dataset);
    let mut lowering = Lowering {
        opened,
        steps,
        seed: Key::new(seed),
        leaves: Vec::new(),
        stages: Vec::new(),
        on_windows: Vec::new(),
        enumerated: Vec::new(),
        shuffles: Vec::new(),
        mixes: Vec::new(),
        mistakes: Vec::new(),
        notes: Vec::new(),
    };
    let mut lowered = lowering.node(spec.input);
    let changer = row_changer(spec.input);
    let expands = changer.is_some();
    let (mut on_batches, mut limit) = (Vec::new(), None);
    for node in spec.above {
        match node {
            Node::Take { rows, .. } if expands => limit = Some(limit.map_or(*rows, |l: u64| l.min(*rows))),
            Node::Take { rows, .. } => {
                lowered.order = Order::Take { rows: rows.saturating_mul(spec.size), input: Box::new(lowered.order) };
            }
            Node::Skip { rows, .. } if !expands => {
                lowered.order = Order::Skip { rows: rows.saturating_mul(spec.size), input: Box::new(lowered.order) };
            }
            Node::Skip { .. } => lowering.mistakes.push(
                Error::config(format!("skip behind a batch whose rows went through {}", changer.unwrap_or_default()))
                    .advice("skip rows before that"),
            ),
            Node::Apply { name, function, .. } => {
                lowered = lowering.decode_images(lowered);
                let stage = lowering.stage(name, function, &mut lowered.columns);
                on_batches.push(stage);
            }
            _ => {}
        }
    }
    if expands && steps.world > 1 && steps.stated.is_none() {
        lowering.mistakes.push(
            Error::config(format!(
                "the {} ranks would take different numbers of steps behind {}",
                steps.world,
                changer.unwrap_or_default()
            ))
            .advice(
                "state the number with .steps_per_epoch(n), filter when the shards are written, or train with one rank",
            ),
        );
    }
    if expands && matches!(steps.remainder, Remainder::Repeat | Remainder::Refuse) {
        let message = format!(
            "Remainder::{:?} behind {}, where the remainder is not known before",
            steps.remainder,
            changer.unwrap_or_default()
        );
        lowering.mistake(message, "take .remainder(Remainder::Keep) or .drop_remainder()");
    }
    let mut layouts = Vec::new();
    for Carried { column, pad, image, is_index, .. } in lowered.columns {
        if let Some(pad) = pad {
            if !is_padded(&column) {
                lowering.mistake(format!("`{column}` is padded, but is not ragged"), "remove its .pad()");
            } else if !holds(column.dtype(), pad.value) {
                lowering.mistake(
                    format!("`{column}` is padded {pad}, and holds no such element"),
                    "take a value that its dtype holds, or make the column of another one in a .map()",
                );
            }
        }
        let image = image.map(|(image, key, _)| (image, key));
        layouts.push(Layout { column, pad: pad.unwrap_or_default(), image, is_index });
    }
    let rows = lowered.order.rows().filter(|&rows| rows != ENDLESS);
    if let Some(rows) = rows.filter(|_| !expands)
        && let Err(error) = steps.check(rows)
    {
        lowering.mistakes.push(error);
    }
    let turn = rows.filter(|_| steps.stated.is_some());
    // Numbers and chance may keep a filter waiting for many turns, so it takes as many until it is believed to leave nothing.
    let is_endless = lowered.order.rows() == Some(ENDLESS);
    let endless = || lowered.order.endless_turn().map(|rows| rows.saturating_mul(64).max(1 << 16));
    let barren_turn = turn.or_else(|| endless().filter(|_| is_endless));
    if turn == Some(0) && expands {
        lowering.mistake("the data set has no rows".into(), "look at its URLs, .take() and .skip()");
    }
    if let Some(stated) = steps.stated.filter(|_| expands) {
        if let Some(taken) = limit.filter(|taken| *taken < stated) {
            lowering.mistake(
                format!("an epoch of {stated} stated steps, of which .take({taken}) behind the batch leaves {taken}"),
                "leave .take() out: .steps_per_epoch(n) says how many there are",
            );
        }
        limit = Some(stated);
    }
    if let Some(rows) = turn {
        if steps.remainder == Remainder::Drop && !expands {
            let rows = rows / steps.batch * steps.batch;
            lowered.order = Order::Take { rows, input: Box::new(lowered.order) };
        }
        lowered.order = Order::Repeat { turns: Turns::Stated, input: Box::new(lowered.order) };
    }
    all_of(lowering.mistakes)?;
    let shares = lowering
        .stages
        .iter()
        .any(|stage| matches!(&stage.function, Function::Bucket { part: Part { tokens: Some(_), .. }, .. }));
    if shares && steps.own_streams() > 1 {
        lowering.notes.push(format!(
            "a token budget is held by the part of each of the {} streams, and a rank pads {} of them to one length: together they may take many times as much; .streams({}) holds it for each rank",
            steps.streams,
            steps.own_streams(),
            steps.world
        ));
    }
    let share = steps.stream_share();
    let window_rows = lowering.stages.iter().filter_map(|stage| stage.function.window()).max();
    let window = window(spec.prefetch, &layouts, steps.batch / steps.world);
    let data = lowering.leaves.iter().map(|(_, leaf, _)| match leaf {
        Leaf::Indexed(source) => source.catalog().mark(),
        Leaf::Arriving(source) => source.mark(),
    });
    let drops = turn.is_some_and(|rows| steps.remainder == Remainder::Drop && !expands && rows % steps.batch != 0);
    let identity = identity(dataset, data.collect(), steps, drops, seed);
    Ok(Pipeline {
        leaves: lowering.leaves.into_iter().map(|(_, leaf, _)| leaf).collect(),
        order: lowered.order,
        stages: lowering.stages,
        enumerated: lowering.enumerated,
        layouts,
        on_batches,
        steps,
        expands,
        changer: changer.unwrap_or_default(),
        window_rows: window_rows.map(|window| window.next_multiple_of(share)),
        on_windows: lowering.on_windows,
        shares,
        limit,
        window,
        barren_turn,
        identity: Arc::new(identity),
        transforms_may_differ: false,
        notes: lowering.notes,
    })
}

/// What every state of a loader has in common.
fn identity(dataset: &Dataset, data: Vec<DataMark>, steps: Steps, drops: bool, seed: u64) -> Identity {
    let early = in_front_of_row_changes(&dataset.node);
    let (mut graph, mut stages) = (Vec::new(), Vec::new());
    // By node: its number, and that of the last stage up to it that decides which rows come. How many of those there are.
    let (mut numbers, mut deciders, mut wiring) = (HashMap::new(), 0, Vec::new());
    visit(&dataset.node, &mut |node| {
        let inputs = node.inputs().iter().map(|input| numbers[&Arc::as_ptr(input)]);
        let (all, deciding): (Vec<usize>, Vec<usize>) = inputs.unzip();
        let place = std::ptr::from_ref(node);
        // How far is read ahead, what becomes of an epoch's last rows, and where the shards lie, changes no order.
        let stage = match node {
            Node::Prefetch { .. } | Node::Remainder { .. } => {
                numbers.insert(place, (all[0], deciding[0]));
                return;
            }
            Node::Files(files) => {
                let mark = files.format.as_ref().map(Format::mark).unwrap_or_default();
                if mark.is_empty() { "read".to_owned() } else { format!("read {mark}") }
            }
            other => other.to_string(),
        };
        let verb = stage.split(' ').next().unwrap_or_default();
        let word = match node {
            Node::Apply { name, .. } if name.split(' ').next() == Some(verb) => name.clone(),
            Node::Apply { name, .. } => format!("{verb} {name}"),
            _ => verb.to_owned(),
        };
        // What such a stage makes decides which rows come: it is no transform like others.
        let word = if early.contains(&place) { format!("early {word}") } else { word };
        // Which stages feed it belongs to what it does, where it is not the one before.
        if !all.is_empty() && all != [graph.len() - 1] {
            wiring.push((graph.len(), all));
        }
        if is_transform(&word) {
            numbers.insert(place, (graph.len(), deciding[0]));
            graph.push(Identity::mark(&word, &stage));
        } else {
            let is_next = deciding.is_empty() || deciders > 0 && deciding == [deciders - 1];
            let fed = if is_next { String::new() } else { format!("{deciding:?}") };
            numbers.insert(place, (graph.len(), deciders));
            deciders += 1;
            graph.push(Identity::mark(&word, &format!("{stage}{fed}")));
        }
        stages.push(stage);
    });
    if !wiring.is_empty() {
        graph.push(Identity::mark("inputs", &format!("{wiring:?}")));
        stages.push("inputs of stages".to_owned());
    }
    if steps.stated.is_some() {
        // How many they are changes nothing but the epoch's end; where rows that fill no batch are dropped each turn, all behind the first stand elsewhere.
        let turns = if drops { "steps_per_epoch of whole batches" } else { "steps_per_epoch" };
        graph.push(Identity::mark("steps_per_epoch", if drops { turns } else { "" }));
        stages.push(turns.to_owned());
    }
    let identity = Identity { seed, streams: steps.streams, rank: steps.rank, world: steps.world, data, graph, stages };
    identity.bounded()
}

/// Stages whose samples later go through a stage that makes more or fewer of them, or moves them.
fn in_front_of_row_changes(node: &Arc<Node>) -> HashSet<*const Node> {
    /// `seen`: the nodes met, and whether each of them is as early, too.
    fn walk(node: &Arc<Node>, is_early: bool, seen: &mut HashMap<*const Node, bool>) {
        let known = seen.insert(Arc::as_ptr(node), is_early || seen.get(&Arc::as_ptr(node)) == Some(&true));
        if known.is_none_or(|known| is_early && !known) {
            let changes = matches!(&**node, Node::Apply { function, .. } if function.changes_rows());
            node.inputs().iter().for_each(|input| walk(input, is_early || changes, seen));
        }
    }
    let mut seen = HashMap::new();
    walk(node, false, &mut seen);
    seen.into_iter().filter_map(|(node, is_early)| is_early.then_some(node)).collect()
}

impl Lowering<'_> {
    fn mistake(&mut self, message: String, advice: &'static str) {
        self.mistakes.push(Error::config(message).advice(advice));
    }

    fn node(&mut self, node: &Arc<Node>) -> Lowered {
        let mut lowered = self.node_itself(node);
        let reorders = matches!(
            &**node,
            Node::Shuffle { .. }
                | Node::Interleave { .. }
                | Node::Concat { .. }
                | Node::Mix { .. }
                | Node::Repeat { .. }
                | Node::Take { .. }
                | Node::Skip { .. }
        );
        if reorders {
            lowered.path.push(Arc::as_ptr(node));
        }
        lowered
    }

    fn node_itself(&mut self, node: &Arc<Node>) -> Lowered {
        let boxed = |lowered: Lowered, make: &dyn Fn(Box<Order>) -> Order| Lowered {
            order: make(Box::new(lowered.order)),
            ..lowered
        };
        match &**node {
            Node::Files(_) => self.leaf(node, self.opened[&Arc::as_ptr(node)].clone()),
            Node::Source(source) => self.leaf(node, Leaf::Indexed(source.clone())),
            Node::Columns { input, columns } => {
                let lowered = self.node(input);
                self.select(lowered, columns)
            }
            Node::Apply { input, name, function } => {
                let mut lowered = self.node(input);
                if let Function::Image { column, image } = function {
                    return self.image(lowered, name, column, image);
                }
                lowered = self.decode_images(lowered);
                let stage = self.stage(name, function, &mut lowered.columns);
                self.applied(stage, lowered)
            }
            Node::Shuffle { input, shuffle } if shuffle.is_none() => self.node(input),
            Node::Shuffle { input, shuffle } => {
                let lowered = self.node(input);
                let number = number_among(&mut self.shuffles, node);
                self.shuffle(lowered, *shuffle, number)
            }
            Node::Interleave { input, cycle, run } => {
                let lowered = self.node(input);
                match lowered.order.shards() {
                    Some(shards) => {
                        let lanes = Arc::new(Lanes::new(&shards, *cycle, *run));
                        boxed(lowered, &|input| Order::Interleave { lanes: lanes.clone(), input })
                    }
                    None => {
                        self.mistake(
                            "interleave needs the shards of one source below it".into(),
                            "put .interleave() right behind the source",
                        );
                        lowered
                    }
                }
            }
            Node::Concat { inputs } => {
                let parts = inputs.iter().map(|input| self.node(input)).collect();
                let (orders, columns) = self.alike("concat", parts);
                Lowered { order: Order::Concat(orders), columns, path: Vec::new() }
            }
            Node::Mix { inputs, weights, exhausted } => {
                let number = number_among(&mut self.mixes, node);
                let quotas = mix::quotas(weights).expect("validated");
                let (steps, window) = (self.steps, quotas.iter().sum::<u64>());
                if steps.world > 1 && !steps.holds_windows_of(window) {
                    let whole = window * steps.world;
                    self.notes.push(format!(
                        "windows of {window} samples of a mix are cut by the ranks' shares: each rank reads blocks of its shuffled parts that others read as well; a batch of a multiple of {whole} would mend it"
                    ));
                }
                let mut parts = Vec::new();
                for (input, &quota) in inputs.iter().zip(&quotas) {
                    self.steps = steps.thinned(quota, window);
                    parts.push(self.node(input));
                }
                self.steps = steps;
                let (orders, columns) = self.alike("mix", parts);
                let lengths: Vec<u64> = orders.iter().map(|order| order.rows().unwrap_or(ENDLESS)).collect();
                for (part, (&rows, &quota)) in lengths.iter().zip(&quotas).enumerate() {
                    if rows == 0 || rows < quota && *exhausted == Exhausted::Stop {
                        self.mistake(
                            format!(
                                "part {part} of a mix has {rows} rows, and {quota} of every {window} are to be of it"
                            ),
                            "leave it out, or take Exhausted::Drop or Repeat where it has any",
                        );
                    }
                }
                let key = self.seed.with("mix").with_number(number);
                let mixing = Mixing::new(key, &quotas, lengths, *exhausted);
                Lowered { order: Order::Mix { mixing, inputs: orders }, columns, path: Vec::new() }
            }
            Node::Zip { inputs } => {
                let (mut orders, mut columns, mut path) = (Vec::new(), Vec::<Carried>::new(), Vec::new());
                for input in inputs {
                    let lowered = self.node(input);
                    for carried in lowered.columns {
                        match columns.iter().find(|c| c.column.name() == carried.column.name()) {
                            None => columns.push(carried),
                            Some(same)
                                if same.leaf.is_some()
                                    && same.leaf == carried.leaf
                                    && path == lowered.path
                                    && same.padding() == carried.padding() => {}
                            Some(_) => self.mistake(
                                format!("zip of two columns called {:?}", carried.column.name()),
                                "give one of them another name in a .map(), or leave it out with .columns()",
                            ),
                        }
                    }
                    if orders.is_empty() {
                        path = lowered.path;
                    }
                    orders.push(lowered.order);
                }
                Lowered { order: Order::Zip(orders), columns, path }
            }
            Node::Repeat { input, times } => {
                let turns = times.map_or(Turns::Forever, Turns::Times);
                let lowered = self.node(input);
                if lowered.order.rows() == Some(0) {
                    self.mistake("a repetition of no rows".into(), "look at the URLs, .take() and .skip() before it");
                }
                boxed(lowered, &|input| Order::Repeat { turns, input })
            }
            Node::Take { input, rows } => boxed(self.node(input), &|input| Order::Take { rows: *rows, input }),
            Node::Skip { input, rows } => boxed(self.node(input), &|input| Order::Skip { rows: *rows, input }),
            Node::Enumerate { input, column } => {
                let mut lowered = self.node(input);
                let numbers = Carried::new(column.clone(), None);
                match lowered.columns.iter_mut().find(|carried| carried.column.name() == column.name()) {
                    Some(carried) => *carried = numbers,
                    None => lowered.columns.push(numbers),
                }
                self.enumerated.push(column.clone());
                let number = self.enumerated.len() - 1;
                boxed(lowered, &|input| Order::Enumerate { column: number, input })
            }
            Node::Pad { input, column, pad } => {
                let mut lowered = self.node(input);
                match lowered.columns.iter_mut().find(|c| c.column.name().as_ref() == column) {
                    Some(carried) if carried.is_index => {
                        // What stands behind a row's own entries is a place like these: another filler would point elsewhere.
                        let own = carried.pad.map_or(0.0, |pad| pad.value);
                        carried.pad = Some(pad.value(own));
                        if pad.truncate || pad.side == Side::Left || ![0.0, own].contains(&pad.value) {
                            self.mistake(
                                format!("{column:?} says where each row's documents lie, and is padded {pad}"),
                                "take Pad::to(n) or Pad::longest(), without .value() and .side(): what it is filled with is settled",
                            );
                        }
                    }
                    Some(carried) => carried.pad = Some(*pad),
                    None => self.no_column(&lowered.columns, column, ".pad()"),
                }
                lowered
            }
            Node::Batch { input, .. } | Node::Remainder { input, .. } | Node::Prefetch { input, .. } => {
                self.node(input)
            }
        }
    }

    /// The orders of parts that follow each other, and their columns, which must be the same.
    fn alike(&mut self, verb: &str, parts: Vec<Lowered>) -> (Vec<Order>, Vec<Carried>) {
        let parts: Vec<Lowered> = parts.into_iter().map(|part| self.decode_images(part)).collect();
        let names = |lowered: &Lowered| lowered.columns.iter().map(|c| c.column.to_string()).collect::<Vec<_>>();
        if let Some(other) = parts[1..].iter().find(|part| names(part) != names(&parts[0])) {
            let (first, other) = (names(&parts[0]).join(", "), names(other).join(", "));
            self.mistake(
                format!("{verb} of different columns: {first} and {other}"),
                "choose the same with .columns() in both",
            );
        }
        // A batch has rows of several parts, and is padded one way: none of theirs is taken for the others'.
        for part in &parts[1..] {
            for (first, other) in parts[0].columns.iter().zip(&part.columns) {
                let ([first_pad, other_pad], name) = ([first, other].map(Carried::padding), first.column.name());
                if name == other.column.name() && first_pad != other_pad {
                    self.mistake(
                        format!("{verb} of {name:?} padded {first_pad} and {other_pad}"),
                        "state one .pad() behind it, and none in the parts",
                    );
                }
            }
        }
        let mut columns = parts[0].columns.clone();
        columns.iter_mut().for_each(|carried| carried.leaf = None);
        (parts.into_iter().map(|part| part.order).collect(), columns)
    }

    fn no_column(&mut self, columns: &[Carried], name: &str, verb: &str) {
        let names: Vec<_> = columns.iter().map(|c| c.column.name().as_ref()).collect();
        let error =
            Error::new(ErrorKind::Schema, format!("{verb} of a column {name:?}; these exist: {}", names.join(", ")));
        self.mistakes.push(error.advice("look at the spelling, and at what .columns() before it leaves"));
    }

    fn leaf(&mut self, node: &Arc<Node>, leaf: Leaf) -> Lowered {
        let at = self.leaves.iter().position(|known| known.0 == Arc::as_ptr(node)).unwrap_or_else(|| {
            // Sample ids of a source begin where those of the sources before end.
            let first = self.leaves.iter().map(|(_, leaf, _)| leaf.num_ids()).sum();
            self.leaves.push((Arc::as_ptr(node), leaf, first));
            self.leaves.len() - 1
        });
        let (_, leaf, first_id) = &self.leaves[at];
        let carried = |column: &Column| Carried::new(column.clone(), Some(at));
        let columns = leaf.columns().iter().map(carried).collect();
        let order = match leaf {
            Leaf::Indexed(source) => {
                Order::Rows { leaf: at, catalog: Arc::new(source.catalog().clone()), first_id: *first_id }
            }
            Leaf::Arriving(_) => Order::Arrival { leaf: at, key: self.seed.with("arrival"), buffer: 1, segment: None },
        };
        Lowered { order, columns, path: vec![Arc::as_ptr(node)] }
    }

    /// Chooses columns by name. A declaration that differs from the column at hand is a mistake.
    fn select(&mut self, lowered: Lowered, wanted: &[Column]) -> Lowered {
        let mut columns = Vec::with_capacity(wanted.len());
        for want in wanted {
            match lowered.columns.iter().find(|c| c.column.name() == want.name()) {
                None => self.no_column(&lowered.columns, want.name(), ".columns()"),
                Some(carried) => {
                    let have = &carried.column;
                    if carried.image.is_none()
                        && (have.dtype() != want.dtype() || !same_extent(have.shape(), want.shape()))
                    {
                        self.mistake(
                            format!("`{have}` is declared as `{want}`"),
                            "declare what there is, or compute another column with .map()",
                        );
                    }
                    columns.push(carried.clone());
                }
            }
        }
        let names = |columns: &[Carried]| columns.iter().map(|c| c.column.name().to_string()).collect::<Vec<_>>();
        if names(&columns) == names(&lowered.columns) {
            return Lowered { columns, ..lowered };
        }
        let stage = self.add_stage("columns", Function::Select { columns: names(&columns) });
        self.applied(stage, Lowered { columns, ..lowered })
    }

    /// Notes that a function is applied to the rows at hand.
    fn applied(&mut self, stage: usize, lowered: Lowered) -> Lowered {
        // A graph in which rows behind a window meet others never got here: `validate` looked at it.
        if !self.on_windows.is_empty() || self.stages[stage].function.window().is_some() {
            self.on_windows.push(stage);
            return lowered;
        }
        Lowered { order: Order::Apply { stage, input: Box::new(lowered.order) }, ..lowered }
    }

    fn add_stage(&mut self, name: &str, function: Function) -> usize {
        let key = self.seed.with("operation").with(name);
        self.stages.push(Stage { name: name.to_owned(), function, key, counter: Arc::default() });
        self.stages.len() - 1
    }

    /// Notes how much a global shuffle reads if blocks can only be read as a whole.
    fn note_reads_of_rows(&mut self) {
        let whole_blocks = self.leaves.iter().find_map(|(_, leaf, _)| match leaf {
            Leaf::Indexed(source) => {
                let catalog = source.catalog();
                let rows = catalog.rows().checked_div(catalog.blocks() as u64).unwrap_or(0);
                (catalog.is_indivisible() && catalog.total_bytes() > 0 && rows > 1).then(|| (source.name(), rows))
            }
            Leaf::Arriving(_) => None,
        });
        if let Some((name, rows)) = whole_blocks {
            self.notes.push(format!(
                "a global shuffle of {name}, whose blocks hold {rows} rows on average and are read as a whole, reads the data set up to {rows} times an epoch; take Shuffle::buffer(n), or plain TFRecord, of which single records are read"
            ));
        }
    }

    fn shuffle(&mut self, mut lowered: Lowered, shuffle: Shuffle, number: u64) -> Lowered {
        let key = self.seed.with("shuffle").with_number(number);
        if let Some(buffer) = lowered.order.arrival_buffer() {
            match shuffle.samples() {
                Some(samples) => *buffer = samples,
                None => self.mistake(
                    "a global shuffle of shards without an index".into(),
                    "build one with .index(Index::Build), or take Shuffle::buffer(n)",
                ),
            }
            return lowered;
        }
        let (starts, divisible) = lowered.order.blocks();
        let blocks = starts.len() as u64 - 1;
        let rows = starts.last().copied().unwrap_or(0);
        let wanted = crate::plan::shuffle::PIECES_PER_STREAM * self.steps.streams;
        if !divisible && blocks < wanted && shuffle.samples().is_some_and(|samples| samples < rows) {
            self.notes.push(format!(
                "{blocks} blocks that cannot be read in part are shuffled over {} streams: mixing is coarse; a larger shuffle buffer or smaller shards would help",
                self.steps.streams
            ));
        }
        if shuffle.is_global() {
            self.note_reads_of_rows();
        }
        let order = ShuffledOrder::new(key, shuffle, &starts, divisible, self.steps);
        lowered.order = Order::Shuffle { order, input: Box::new(lowered.order) };
        lowered
    }
}

/// Whether samples of a column are brought to one length in the batch.
fn is_padded(column: &Column) -> bool {
    matches!(column.shape(), Shape::Ragged(_)) && column.dtype() != Dtype::Bytes
}

/// The number of a node among those of its kind, in the order in which they were met.
fn number_among(met: &mut Vec<*const Node>, node: &Arc<Node>) -> u64 {
    let number = met.iter().position(|&known| known == Arc::as_ptr(node)).unwrap_or_else(|| {
        met.push(Arc::as_ptr(node));
        met.len() - 1
    });
    number as u64
}

/// Whether shapes have the same number of elements and the same raggedness: Arrow does not know inner extents.
fn same_extent(a: &Shape, b: &Shape) -> bool {
    match (a, b) {
        (Shape::Ragged(a), Shape::Ragged(b)) => a.iter().product::<usize>() == b.iter().product::<usize>(),
        (Shape::Ragged(_), _) | (_, Shape::Ragged(_)) => false,
        _ => a.elements() == b.elements(),
    }
}

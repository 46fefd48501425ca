//! `forebay replay`: lists which samples a step of a run held, from the state that the run logged.

use std::io::Write;

use serde_json::json;

use super::count::IndexArgs;
use super::explain::Shuffled;
use super::format::FormatArgs;
use super::shards::ShardArgs;
use super::terminal::{Mark, Terminal};
use super::{Failure, Verdict};
use crate::dataset::{Dataset, Format};
use crate::engine::Scheduler;
use crate::error::{Error, Result};
use crate::loader::World;
use crate::plan::state::Identity;
use crate::plan::{Remainder, State};
use crate::source::open::{Index, doubt};

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay replay 'gs://bucket/train-*.tfrecord' --shuffle 10000 --batch 256 --log \"$(tail -1 train.log)\"
  forebay replay data/ --shuffle 10000 --batch 256 --seed 42 --epoch 3 --step 118 --rank 2 --world 4

A log line holds a state as JSON: what batch.state() serialises to. It is the batch's that was delivered last, and that batch is replayed.
Shuffle and batch size are held against the state. As JSON: one object a sample, with \"slot\", \"sample\", \"url\", \"record\" and \"offset\".";

/// Arguments of `forebay replay`.
#[derive(clap::Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("position").args(["log", "epoch", "step"]).required(true).multiple(true)))]
pub(super) struct ReplayArgs {
    /// Shards of the run, as accepted by `Dataset::open`; they may have moved.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Samples per batch, over all ranks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The run's shuffle: a buffer of this many samples, `global` or `none`.
    #[arg(long, value_name = "N", default_value = "none")]
    shuffle: Shuffled,
    /// A line that contains a state.
    #[arg(long, value_name = "LINE")]
    log: Option<String>,
    /// The epoch, instead of the one in the log [default without a log: 0].
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// The step in the epoch, counted from 0, instead of the one in the log [default without a log: 0].
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// The run's seed [default: from the log, or 0].
    #[arg(long, value_name = "N", conflicts_with = "log")]
    seed: Option<u64>,
    /// The run's streams [default: from the log, or the loader's default].
    #[arg(long, value_name = "N", conflicts_with = "log")]
    streams: Option<usize>,
    /// The rank [default: from the log, or 0].
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// The number of ranks [default: from the log, or 1].
    #[arg(long, value_name = "N")]
    world: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    index: IndexArgs,
}

pub(super) fn run(args: &ReplayArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let state = args.log.as_deref().map(state_in).transpose()?;
    let of_state = |read: fn(&State) -> u64| state.as_ref().map(read);
    let world = args.world.or(of_state(|s| s.world).map(|n| n as usize)).unwrap_or(1);
    let rank = args.rank.or(of_state(|s| s.rank).map(|n| n as usize)).unwrap_or(0);
    let epoch = args.epoch.or(of_state(|s| s.epoch)).unwrap_or(0);
    let step = args.step.or(of_state(|s| s.step.saturating_sub(1))).unwrap_or(0);

    let shards = ShardArgs { urls: args.urls.clone(), threads: None }.find()?;
    let format = match args.format.of(&shards.objects)? {
        // What records hold does not matter here.
        Format::TfRecord(options) => options.records().into(),
        other => other,
    };
    let dataset = Dataset::open_with(&args.urls[..], format.clone())?.shuffle(args.shuffle.0);
    // What becomes of the rows that fill no step is no part of a state, and changes no step before; this keeps several ranks to equal steps.
    let remainder = if world > 1 { Remainder::Repeat } else { Remainder::Keep };
    let dataset = dataset.batch(args.batch as usize).remainder(remainder);
    let mut builder = dataset.loader().world(World::new(rank, world)?).index(Index::Build);
    builder = builder.scheduler(Scheduler::single_threaded());
    if let Some(dir) = args.index.dir() {
        builder = builder.index_dir(dir);
    }
    builder = builder.seed(args.seed.or(of_state(|s| s.seed)).unwrap_or(0));
    if let Some(streams) = args.streams.or(of_state(|s| s.streams).map(|n| n as usize)) {
        builder = builder.streams(streams);
    }
    if let Some(state) = &state {
        check(state, args)?;
        // An epoch of stated steps may go on behind the data's end.
        if state.graph.iter().any(|mark| mark.starts_with("steps_per_epoch#")) {
            builder = builder.steps_per_epoch(step + 1);
        }
    }
    let loader = builder.build().map_err(|error| doubt(&format, error))?;
    if let Some(state) = &state {
        let same = loader.identity().data == state.data;
        if !same {
            let list =
                |marks: &[crate::plan::DataMark]| marks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (is, was) = (list(&loader.identity().data), list(&state.data));
            let message =
                format!("the shards are not the run's: here are {is}; the state has {was}, or other names or blocks");
            return Err(Error::config(message).advice("name the run's shards, under their names of then").into());
        }
    }
    let replay = loader.replay(epoch, step, rank).map_err(|error| doubt(&format, error))?;
    let mut out = terminal.out();
    let first = step * u64::from(args.batch) + rank as u64 * u64::from(args.batch) / world as u64;
    if !terminal.is_json() {
        let title = format!("epoch {epoch}, step {step}, rank {rank} of {world}: {} samples", replay.origins.len());
        writeln!(out, "{}", terminal.mark(Mark::Bold, title))?;
    }
    for (slot, origin) in replay.origins.iter().enumerate() {
        let crate::batch::Origin { sample, url, record, offset } = origin;
        let slot = first % u64::from(args.batch) + slot as u64;
        if terminal.is_json() {
            let line = json!({ "slot": slot, "sample": sample, "url": url, "record": record, "offset": offset });
            serde_json::to_writer(&mut out, &line)?;
            writeln!(out)?;
        } else {
            let offset = offset.map_or(String::new(), |offset| format!(", byte {offset}"));
            writeln!(out, "{slot:>5}  sample {sample}  {url}, record {record}{offset}")?;
        }
    }
    out.flush()?;
    Ok(Verdict::Good)
}

/// Returns the state that a line of text contains.
fn state_in(line: &str) -> Result<State> {
    let starts = line.match_indices('{').map(|(at, _)| &line[at..]);
    let parsed = starts.map(|text| serde_json::Deserializer::from_str(text).into_iter::<State>().next());
    parsed.flatten().find_map(|state| state.ok()).ok_or_else(|| {
        Error::config("the line holds no state")
            .advice("log what batch.state() serialises to as JSON, and give that line")
    })
}

/// Checks what the arguments say of the graph against the state.
fn check(state: &State, args: &ReplayArgs) -> Result<()> {
    if !state.cursors.is_empty() || state.data.iter().any(|mark| mark.rows.is_none()) {
        return Err(Error::config(
            "the run's rows went through a filter or flat_map, or had no index: their order is not known from outside",
        )
        .advice("call loader.replay(epoch, step, rank) in the program that has the graph"));
    }
    let words: Vec<&str> = state.graph.iter().filter_map(|mark| mark.split('#').next()).collect();
    let moves = |word: &&&str| {
        let is_fold = || word.strip_suffix(" stages").is_some_and(|count| count.parse::<u64>().is_ok());
        ["take", "skip", "repeat", "interleave", "concat", "zip", "mix"].contains(*word) || is_fold()
    };
    let twice = words.iter().filter(|word| **word == "shuffle").nth(1);
    if let Some(word) = words.iter().find(moves).or(twice) {
        return Err(Error::config(format!("the run's graph has `{word}`, which arguments do not tell"))
            .advice("call loader.replay(epoch, step, rank) in the program that has the graph"));
    }
    let shuffle = args.shuffle.0.to_string();
    let stages =
        [("shuffle", format!("shuffle {shuffle}")), ("batch", format!("batch {} samples over all ranks", args.batch))];
    for (word, stage) in stages {
        let mut known = state.graph.iter().filter(|mark| mark.split('#').next() == Some(word));
        let any = known.clone().next().is_some();
        if any && known.all(|mark| *mark != Identity::mark(word, &stage)) {
            return Err(Error::config(format!("the run had another {word} than `{stage}`"))
                .advice("say --shuffle and --batch as the run's .shuffle() and .batch() did"));
        }
        if !any && word == "shuffle" && shuffle != "none" {
            return Err(Error::config(format!("the run did not `{stage}`")).advice("leave --shuffle out"));
        }
    }
    Ok(())
}

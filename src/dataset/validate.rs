//! Checks of a graph that need no data. They report all mistakes at once, each with the call that fixes it.

use std::sync::Arc;

use super::Dataset;
use super::graph::{Function, Node, visit};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Exhausted, mix};

/// The most rows of one Arrow list.
const LARGEST_BATCH: u64 = i32::MAX as u64;

const MOST_PREFETCHED: usize = 1_000_000;

/// Combines all mistakes of a configuration into one error.
pub(crate) fn all_of(mut mistakes: Vec<Error>) -> Result<()> {
    match mistakes.len() {
        0 => Ok(()),
        1 => Err(mistakes.remove(0)),
        count => {
            let lines: Vec<String> = mistakes.iter().enumerate().map(|(i, e)| format!("\n  {}. {e}", i + 1)).collect();
            Err(Error::new(ErrorKind::Config, format!("{count} mistakes:{}", lines.concat())))
        }
    }
}

/// Whether, because of a function below a node, its rows no longer correspond to positions.
pub(crate) fn changes_rows(node: &Arc<Node>) -> bool {
    row_changer(node).is_some()
}

/// Returns the first function below a node after which rows no longer correspond to positions, with an article.
pub(crate) fn row_changer(node: &Arc<Node>) -> Option<&'static str> {
    let mut found = None;
    visit(node, &mut |node| match node {
        Node::Apply { function, .. } if function.changes_rows() => _ = found.get_or_insert(function.a_verb()),
        _ => {}
    });
    found
}

pub(crate) fn mistakes(dataset: &Dataset) -> Vec<Error> {
    let mut mistakes = Vec::new();
    let mut add = |message: String, advice: &'static str| mistakes.push(Error::config(message).advice(advice));
    let mut batches = 0;
    let mut weights_wrong = Vec::new();
    let (mut windows, mut mistaken) = (Vec::new(), Vec::new());
    visit(&dataset.node, &mut |node| {
        match node {
            Node::Mix { weights, .. } => weights_wrong.extend(mix::quotas(weights).err()),
            Node::Batch { size, .. } => {
                batches += 1;
                if *size == 0 {
                    add("a batch of 0 samples".into(), ".batch(n) wants n of at least 1");
                }
                if *size > LARGEST_BATCH {
                    add(format!("a batch of {size} samples"), ".batch(n) takes 2,147,483,647 at most");
                }
            }
            Node::Prefetch { batches, .. } if *batches > MOST_PREFETCHED => {
                add(
                    format!("prefetch({batches})"),
                    ".prefetch(n) takes 1,000,000 at most; room is kept for each of them, so as many as the budget holds is a number to be found",
                );
            }
            Node::Interleave { cycle, run, .. } if *cycle == 0 || *run == 0 => {
                add(format!("interleave({cycle}, {run})"), ".interleave(cycle, run) wants both to be at least 1");
            }
            Node::Repeat { times: Some(0), .. } => {
                add("repeat(0) leaves nothing".into(), "remove it, or use .take(0) to say so")
            }
            Node::Columns { columns, .. } if columns.is_empty() => {
                add("an empty list of columns".into(), "name at least one in .columns(), or leave the call out");
            }
            Node::Pad { column, pad, .. } => {
                if let Some((message, advice)) = pad.mistake() {
                    add(format!("{column} is {message}"), advice);
                }
            }
            Node::Apply { function: Function::Image { column, image }, .. } => {
                if let Err(error) = image.validate() {
                    add(format!("image {column}: {error}"), "see the documentation of Image");
                }
            }
            Node::Apply { function, input, .. } => token_mistakes(function, input, &mut windows, &mut mistaken),
            _ => {}
        }
        if node.inputs().len() > 1
            && let Some(window) = node.inputs().iter().find_map(window_below)
        {
            add(
                format!("`{window}` below `{node}`, whose parts have no windows of their own"),
                "put it behind: windows are of what comes to the batch",
            );
        }
        let needs_positions = match node {
            Node::Take { input, .. } | Node::Skip { input, .. } if !has_batch(input) => {
                Some((input, "take and skip count"))
            }
            Node::Enumerate { input, .. } => Some((input, "enumerate numbers")),
            Node::Zip { inputs } => inputs.iter().find(|input| changes_rows(input)).map(|input| (input, "zip pairs")),
            Node::Mix { inputs, .. } => {
                inputs.iter().find(|input| changes_rows(input)).map(|input| (input, "mix counts"))
            }
            _ => None,
        };
        if let Some((input, verb)) = needs_positions
            && let Some(changer) = row_changer(input)
        {
            let advice = match node {
                Node::Mix { .. } => "put .filter(), or what it is, behind the mix",
                _ => "put it before that stage; .take(n) behind .batch() counts batches",
            };
            add(format!("{verb} rows whose number is not known before {changer} has run"), advice);
        }
        if let Node::Repeat { input, times: None } = node
            && endless(input)
        {
            add("an endless repetition of an endless data set".into(), "leave one .repeat_forever() out");
        }
        if let Node::Shuffle { input, .. } = node
            && endless(input)
        {
            add("a shuffle of an endless data set".into(), "put .shuffle() before .repeat_forever()");
        }
    });
    if batches == 0 {
        add("the data set has no batch size".into(), "end it with .batch(n)");
    }
    let mut top = &dataset.node;
    while !matches!(**top, Node::Batch { .. }) && top.inputs().len() == 1 && has_batch(top) {
        match &**top {
            Node::Prefetch { .. } | Node::Remainder { .. } | Node::Take { .. } | Node::Skip { .. } => {}
            Node::Apply { function: Function::MapBatch { .. }, .. } => {}
            other => add(format!("`{other}` works on samples, but stands behind the batch"), "put it before .batch(n)"),
        }
        top = &top.inputs()[0];
    }
    if batches > 1 || (batches == 1 && !matches!(**top, Node::Batch { .. })) {
        add("a batch below another stage".into(), "let one .batch(n) end the graph");
    }
    if let Node::Batch { input, .. } = &**top {
        visit(input, &mut |node| {
            if matches!(node, Node::Prefetch { .. } | Node::Remainder { .. }) {
                add(format!("`{node}` speaks of batches, but stands before the batch"), "put it behind .batch(n)");
            }
        });
    }
    mistaken.into_iter().for_each(|(message, advice)| add(message, advice));
    if let [first, others @ ..] = &windows[..]
        && let Some(other) = others.iter().find(|other| *other != first)
    {
        add(
            format!("windows of {first} and of {other} samples in one graph, whose streams have one"),
            "state the same .window(n) for each",
        );
    }
    for name in dataset.names_drawn_twice() {
        add(
            format!("two functions are called {name:?}, and would draw the same random numbers"),
            "give each .map(), .filter(), .flat_map() and .map_batch() its own name",
        );
    }
    mistakes.extend(weights_wrong);
    mistakes
}

/// Returns the mistakes of a token function and of its place in the graph.
fn token_mistakes(
    function: &Function,
    input: &Arc<Node>,
    windows: &mut Vec<u64>,
    mistakes: &mut Vec<(String, &'static str)>,
) {
    match function {
        Function::Chunk { column, chunk } => mistakes.extend(chunk.mistakes(column)),
        #[cfg(feature = "tokenizers")]
        Function::Tokenize { tokenizer, .. } => mistakes.extend(tokenizer.mistakes()),
        Function::Pack { pack, .. } => mistakes.extend(pack.mistakes()),
        Function::Bucket { buckets, .. } => mistakes.extend(buckets.mistakes()),
        _ => {}
    }
    windows.extend(function.window());
    if !function.changes_rows() {
        return;
    }
    visit(input, &mut |below| match below {
        Node::Apply { function: Function::Bucket { .. }, .. } => mistakes.push((
            format!(
                "`{below}` deals whole shares of batches, and a filter, flat_map, chunk or pack behind it changes them"
            ),
            "put .bucket_by_length() last, right before .batch(n)",
        )),
        Node::Apply { function: Function::Pack { .. }, .. } if function.window().is_some() => mistakes.push((
            format!("`{below}` stands below another pack or bucket_by_length, and packed rows are of one length"),
            "leave one of them out",
        )),
        _ => {}
    });
}

/// Returns a function below that works on windows.
fn window_below(node: &Arc<Node>) -> Option<String> {
    let mut found = None;
    visit(node, &mut |node| {
        if matches!(node, Node::Apply { function, .. } if function.window().is_some()) {
            found = Some(node.to_string());
        }
    });
    found
}

fn has_batch(node: &Arc<Node>) -> bool {
    let mut found = false;
    visit(node, &mut |node| found |= matches!(node, Node::Batch { .. }));
    found
}

fn endless(node: &Arc<Node>) -> bool {
    match &**node {
        Node::Repeat { times: None, .. } => true,
        Node::Take { .. } => false,
        Node::Zip { inputs } | Node::Mix { inputs, exhausted: Exhausted::Stop | Exhausted::Repeat, .. } => {
            inputs.iter().all(endless)
        }
        other => other.inputs().iter().any(endless),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Shuffle, int64};

    fn numbers() -> Dataset {
        Dataset::from_columns([("x", Arc::new(arrow::array::Int64Array::from(vec![1, 2, 3])) as _)]).unwrap()
    }

    fn messages(dataset: &Dataset) -> String {
        mistakes(dataset).iter().map(|e| format!("{e}\n")).collect()
    }

    #[test]
    fn a_sound_graph_has_no_mistake() {
        let dataset = numbers().skip(1).enumerate("i").filter("all", |_, _| Ok(true)).shuffle(Shuffle::buffer(2));
        assert_eq!(messages(&dataset.batch(2).drop_remainder().take(1).prefetch(3)), "");
    }

    #[test]
    fn all_mistakes_come_at_once_with_what_mends_them() {
        let keep = |dataset: &Dataset| dataset.filter("f", |_, _| Ok(true));
        let dataset = keep(&keep(&numbers()).take(2))
            .columns([])
            .repeat_forever()
            .shuffle(Shuffle::buffer(9))
            .prefetch(1)
            .batch(0);
        let text = all_of(mistakes(&dataset)).unwrap_err().to_string();
        for part in [
            "take and skip count",
            "empty list of columns",
            "endless",
            "`prefetch 1 batches`",
            "0 samples",
            "two functions",
            "6 mistakes",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn stages_stand_on_their_side_of_the_batch() {
        assert!(messages(&numbers()).contains(".batch(n)"));
        let dataset = numbers().batch(2).map("m", [int64("y")], |_, _, out| out.set("y", 1i64));
        assert!(messages(&dataset).contains("stands behind the batch"));
        assert!(messages(&numbers().batch(2).zip(&numbers())).contains("below another stage"));
        assert!(messages(&numbers().batch(2).batch(2)).contains("one .batch(n)"));
    }

    #[test]
    fn numbers_without_end_are_refused() {
        assert!(messages(&numbers().batch(usize::MAX)).contains("a batch of 18446744073709551615 samples"));
        assert!(messages(&numbers().batch(2).prefetch(usize::MAX)).contains(".prefetch(n) takes 1,000,000"));
        assert_eq!(messages(&numbers().batch(i32::MAX as usize).prefetch(1_000_000)), "");
    }
}

//! The graph as text, DOT and Mermaid.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use super::graph::{Node, visit};
use crate::plan::steps;

/// Numbers each node, inputs first.
fn numbered(root: &Arc<Node>) -> (Vec<&Node>, HashMap<*const Node, usize>) {
    let (mut nodes, mut numbers) = (Vec::new(), HashMap::new());
    visit(root, &mut |node| {
        numbers.insert(std::ptr::from_ref(node), nodes.len());
        nodes.push(node);
    });
    (nodes, numbers)
}

/// Prints one line per node. A node whose input is not on the line above names its input. A batch says so if ranks could share it, but not with the plan's
/// streams.
pub(super) fn text(root: &Arc<Node>) -> String {
    let (nodes, numbers) = numbered(root);
    let mut text = String::new();
    // With a token budget there is a stream a rank.
    let one_each = nodes.iter().any(|node| node.holds_tokens());
    for (number, node) in nodes.iter().enumerate() {
        let inputs: Vec<usize> = node.inputs().iter().map(|input| numbers[&Arc::as_ptr(input)]).collect();
        let from = match inputs[..] {
            [] => String::new(),
            [input] if input + 1 == number => String::new(),
            _ => format!("  <- {}", inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let streams = match node {
            Node::Batch { size, .. } if !one_each => steps::hint(*size).map(|hint| format!(": {hint}")),
            _ => None,
        };
        _ = writeln!(text, "{number:>2}  {node}{from}{}", streams.unwrap_or_default());
    }
    text
}

pub(super) fn dot(root: &Arc<Node>) -> String {
    let (nodes, numbers) = numbered(root);
    let mut text = String::from("digraph forebay {\n  node [shape=box, fontname=\"monospace\"];\n");
    for (number, node) in nodes.iter().enumerate() {
        let label = node.to_string().replace('\\', "\\\\").replace('"', "\\\"");
        _ = writeln!(text, "  n{number} [label=\"{label}\"];");
        for input in node.inputs() {
            _ = writeln!(text, "  n{} -> n{number};", numbers[&Arc::as_ptr(input)]);
        }
    }
    text + "}\n"
}

pub(super) fn mermaid(root: &Arc<Node>) -> String {
    let (nodes, numbers) = numbered(root);
    let mut text = String::from("flowchart TD\n");
    for (number, node) in nodes.iter().enumerate() {
        let label = node.to_string().replace('"', "#quot;");
        _ = writeln!(text, "  n{number}[\"{label}\"]");
        for input in node.inputs() {
            _ = writeln!(text, "  n{} --> n{number}", numbers[&Arc::as_ptr(input)]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::{Dataset, Shuffle, bytes, int64};

    fn diamond() -> Dataset {
        let source = Dataset::open("gs://b/*.tfrecord").unwrap().columns([bytes("a"), int64("b")]);
        let left = source.filter("odd \"b\"", |_, row| Ok(row.get::<i64>("b")? % 2 == 1));
        left.zip(&source.shuffle(Shuffle::buffer(10))).batch(4)
    }

    #[test]
    fn text_has_a_line_a_stage_and_names_other_inputs() {
        let wanted = concat!(
            " 0  read TFRecord gs://b/*.tfrecord\n",
            " 1  columns a: bytes, b: i64\n",
            " 2  filter \"odd \\\"b\\\"\"\n",
            " 3  shuffle buffer of 10 samples  <- 1\n",
            " 4  zip  <- 2, 3\n",
            " 5  batch 4 samples over all ranks\n",
        );
        assert_eq!(diamond().explain(), wanted);
    }

    #[test]
    fn a_batch_that_ranks_could_share_says_that_its_plan_cannot_be() {
        let last = |dataset: Dataset| dataset.explain().lines().last().unwrap_or_default().to_owned();
        let source = Dataset::open("gs://b/*.tfrecord").unwrap();
        let wanted = " 1  batch 100 samples over all ranks: 5 streams, which 1 or 5 ranks can share (.streams(10): 1, 2, 5 or 10; .batch(104): 1, 2, 4 or 8)";
        assert_eq!(last(source.batch(100)), wanted);
        let bucketed = source.bucket_by_length("tokens", crate::Buckets::token_budget(4096));
        for (graph, batch) in [(&source, 256), (&source, 25), (&bucketed, 100)] {
            assert!(last(graph.batch(batch)).ends_with(&format!("batch {batch} samples over all ranks")));
        }
    }

    #[test]
    fn graphs_draw_a_shared_node_once() {
        let dot = diamond().to_dot();
        assert_eq!(dot.matches("columns a").count(), 1);
        assert!(dot.contains("n1 -> n2;") && dot.contains("n1 -> n3;") && dot.contains("n3 -> n4;"), "{dot}");
        let mermaid = diamond().to_mermaid();
        assert!(mermaid.contains("n1 --> n3") && mermaid.contains("#quot;odd"), "{mermaid}");
    }
}

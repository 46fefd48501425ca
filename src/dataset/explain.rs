//! The graph as text, DOT and Mermaid.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use super::graph::{Node, visit};

/// Numbers each node, inputs first.
fn numbered(root: &Arc<Node>) -> (Vec<&Node>, HashMap<*const Node, usize>) {
    let (mut nodes, mut numbers) = (Vec::new(), HashMap::new());
    visit(root, &mut |node| {
        numbers.insert(std::ptr::from_ref(node), nodes.len());
        nodes.push(node);
    });
    (nodes, numbers)
}

/// One line a node; a node whose input is not the line above says which it is.
pub(super) fn text(root: &Arc<Node>) -> String {
    let (nodes, numbers) = numbered(root);
    let mut text = String::new();
    for (number, node) in nodes.iter().enumerate() {
        let inputs: Vec<usize> = node.inputs().iter().map(|input| numbers[&Arc::as_ptr(input)]).collect();
        let from = match inputs[..] {
            [] => String::new(),
            [input] if input + 1 == number => String::new(),
            _ => format!("  <- {}", inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        _ = writeln!(text, "{number:>2}  {node}{from}");
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
    fn graphs_draw_a_shared_node_once() {
        let dot = diamond().to_dot();
        assert_eq!(dot.matches("columns a").count(), 1);
        assert!(dot.contains("n1 -> n2;") && dot.contains("n1 -> n3;") && dot.contains("n3 -> n4;"), "{dot}");
        let mermaid = diamond().to_mermaid();
        assert!(mermaid.contains("n1 --> n3") && mermaid.contains("#quot;odd"), "{mermaid}");
    }
}

//! How well do shuffles mix, compared with a sliding buffer of the same size? Prints the tables of `docs/shuffle.md` and draws its plot,
//! `docs/shuffle.svg`.
//!
//! Data: row numbers, in the shapes of two data sets, sorted by label. The loader delivers an epoch of them; what a sliding buffer would deliver is
//! computed. Nothing is timed.
//!
//! `cargo bench --bench shuffle_quality --no-default-features`

use std::fmt::Write as _;

use forebay::Shuffle;

#[path = "../tests/it/support/quality.rs"]
mod quality;

use quality::{Quality, Rows, Shards};

/// 1.28 million images of 110 KB and 1,000 classes, in blocks of 4 MB.
const IMAGES: Rows = Rows { shards: 1024, shard_rows: 1250, block_rows: 38, labels: 1000, batch: 256 };

/// 4 million records of 500 bytes: few large blocks.
const RECORDS: Rows = Rows { shards: 64, shard_rows: 65_536, block_rows: 8192, labels: 1000, batch: 1024 };

const INTERLEAVED: Shards = Shards::Interleaved(16);

fn main() {
    for (name, rows, buffer) in
        [("1.28 million images", IMAGES, 16_384), ("4.2 million small records", RECORDS, 262_144)]
    {
        println!("{name}, blocks of {} rows, batches of {}, a buffer of {buffer}\n", rows.block_rows, rows.batch);
        println!(
            "| | displacement | same block next | next row next | serial correlation | run of a label | largest label of a batch | worst | block mates |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        let ours = |shuffle| rows.measure(&rows.delivered(shuffle));
        let sliding = |shards| rows.measure(&rows.sliding(buffer as usize, shards));
        line("every order equally likely", rows.measure(&rows.uniform()));
        line("`Shuffle::global()`", ours(Shuffle::global()));
        line("`Shuffle::buffer`", ours(Shuffle::buffer(buffer)));
        line("sliding, shards shuffled, 16 in turn", sliding(INTERLEAVED));
        line("sliding, shards shuffled", sliding(Shards::Shuffled));
        line("sliding", sliding(Shards::InOrder));
        line("`Shuffle::none()`", ours(Shuffle::none()));
        println!();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/shuffle.svg");
    std::fs::write(path, plot()).expect("the plot is written");
    println!("{path}");
}

fn line(name: &str, quality: Quality) {
    let Quality { displacement, same_block, adjacent, serial, label_run, largest_label, worst_label, together } =
        quality;
    println!(
        "| {name} | {displacement:.3} | {:.2} % | {:.2} % | {serial:.3} | {label_run:.2} | {:.1} % | {:.1} % | {together:.1} |",
        100.0 * same_block,
        100.0 * adjacent,
        100.0 * largest_label,
        100.0 * worst_label,
    );
}

/// One curve of the plot.
struct Curve {
    name: &'static str,
    colour: &'static str,
    points: Vec<(u32, Quality)>,
}

const BUFFERS: std::ops::RangeInclusive<u32> = 8..=20;

/// Draws the plot over buffers of 256 to a million rows of the images: displacement, and the largest label of a batch.
fn plot() -> String {
    let measured = |name, colour, order: &dyn Fn(u64) -> Vec<u64>| Curve {
        name,
        colour,
        points: BUFFERS.step_by(2).map(|bits| (bits, IMAGES.measure(&order(1 << bits)))).collect(),
    };
    let sliding = |shards| move |buffer: u64| IMAGES.sliding(buffer as usize, shards);
    let curves = [
        measured("Shuffle::buffer", "#0a7d5a", &|buffer| IMAGES.delivered(Shuffle::buffer(buffer))),
        measured("sliding, shards shuffled, 16 in turn", "#3366cc", &sliding(INTERLEAVED)),
        measured("sliding, shards shuffled", "#cc7a00", &sliding(Shards::Shuffled)),
        measured("sliding", "#b03030", &sliding(Shards::InOrder)),
    ];
    let panels = [
        (
            "mean displacement, of all rows",
            0.0,
            0.4,
            &(|quality: &Quality| quality.displacement) as &dyn Fn(&Quality) -> f64,
        ),
        ("most frequent label, of a batch", 0.0, 1.0, &|quality: &Quality| quality.largest_label),
    ];
    let uniform = IMAGES.measure(&IMAGES.uniform());
    let mut svg = String::from(concat!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 330\" font-family=\"sans-serif\" font-size=\"11\">\n",
        "<rect width=\"760\" height=\"330\" fill=\"white\"/>\n",
    ));
    for (panel, (title, low, high, value)) in panels.into_iter().enumerate() {
        let left = 50.0 + 375.0 * panel as f64;
        let x = |bits: f64| left + (bits - 8.0) / 12.0 * 310.0;
        let y = |value: f64| 240.0 - (value - low) / (high - low) * 200.0;
        _ = writeln!(svg, "<text x=\"{left}\" y=\"24\" font-size=\"13\">{title}</text>");
        for step in 0..=4 {
            let value = low + (high - low) * f64::from(step) / 4.0;
            let (y, label) = (y(value), format!("{value:.2}"));
            _ = writeln!(svg, "<path d=\"M{left} {y:.1}h310\" stroke=\"#ddd\"/>");
            _ = writeln!(svg, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 6.0, y + 4.0);
        }
        for bits in BUFFERS.step_by(4) {
            let rows = if bits < 10 { format!("{}", 1 << bits) } else { format!("{}k", 1 << (bits - 10)) };
            _ = writeln!(svg, "<text x=\"{:.0}\" y=\"256\" text-anchor=\"middle\">{rows}</text>", x(f64::from(bits)));
        }
        _ = writeln!(svg, "<text x=\"{:.0}\" y=\"272\" text-anchor=\"middle\">rows of buffer</text>", left + 155.0);
        let ideal = y(value(&uniform));
        _ = writeln!(svg, "<path d=\"M{left} {ideal:.1}h310\" stroke=\"black\" stroke-dasharray=\"2 3\"/>");
        for Curve { colour, points, .. } in &curves {
            let points =
                points.iter().map(|(bits, quality)| format!("{:.1},{:.1}", x(f64::from(*bits)), y(value(quality))));
            let points = points.collect::<Vec<_>>().join(" ");
            _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        }
    }
    let ideal = Curve { name: "every order equally likely", colour: "black", points: Vec::new() };
    for (i, Curve { name, colour, .. }) in curves.iter().chain([&ideal]).enumerate() {
        let (x, y) = (50 + 250 * (i % 3), 298 + 18 * (i / 3));
        let dashes = if i == curves.len() { " stroke-dasharray=\"2 3\"" } else { "" };
        _ = writeln!(svg, "<path d=\"M{x} {}h22\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>", y - 4);
        _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{name}</text>", x + 28);
    }
    svg + "</svg>\n"
}

//! What `forebay bench` prints for people.

use std::io::{self, Write};

use super::Measured;
use super::emulate::{Emulation, Ran};
use super::jitter::Jitter;
use super::search::{HOLDS, SHARE, Search, median};
use crate::cli::Failure;
use crate::cli::terminal::{Mark, Terminal};

fn rate(rate: f64) -> String {
    match rate {
        1e6.. => format!("{:.2} M/s", rate / 1e6),
        1e4.. => format!("{:.1} k/s", rate / 1e3),
        _ => format!("{rate:.0} /s"),
    }
}

fn size(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

pub(super) fn print(measured: &Measured, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<22} {value}");
    let m = measured;
    line("workload", format!("{}, batches of {}, {} threads", m.workload, m.batch, m.threads))?;
    line("shuffle", m.shuffle.clone())?;
    if let (Some(preset), Some(files), Some(bytes)) = (&m.preset, m.files, m.files_bytes) {
        line("sizes", preset.clone())?;
        let memory = m.memory_bytes.map_or(String::new(), |memory| format!(" beside {} of memory", size(memory)));
        let cached = match m.fits_page_cache {
            Some(true) => ": fits the page cache, so that memory is measured rather than a disk",
            Some(false) => ": more than the page cache holds",
            None => "",
        };
        line("files", format!("{files}, {}{memory}{cached}", size(bytes)))?;
    }
    let checked = match m.checked {
        Some(_) => terminal.mark(Mark::Good, "as made"),
        None => "nothing to compare with".into(),
    };
    let what = if m.workload == "pack" { "tokens" } else { "samples" };
    line("checked", format!("{} {what}, sum {}: {checked}", m.checked_samples, m.checked_sum))?;
    line(
        "samples",
        format!(
            "{}, {} in {} epochs, {:.2} s",
            terminal.mark(Mark::Bold, rate(m.samples_per_s)),
            m.samples,
            m.epochs,
            m.wall_s
        ),
    )?;
    if let (Some(tokens), Some(padding)) = (m.tokens_per_s, m.padding_share) {
        line("tokens", format!("{}, {:.2} % padding", terminal.mark(Mark::Bold, rate(tokens)), padding * 100.0))?;
    }
    let again = match m.read_share {
        Some(share) if share < 0.9 => {
            format!(
                ", {:.0} % of what was delivered: the rest was in memory from steps before; take more --files",
                share * 100.0
            )
        }
        _ => String::new(),
    };
    line("stored bytes", format!("{:.1} MB/s{again}", m.stored_bytes_per_s / 1e6))?;
    line("cpu", format!("{:.2} s, {} per cpu second", m.cpu_s, rate(m.samples_per_cpu_s).trim_end_matches("/s")))?;
    line("first batch", format!("{:.3} s after the process's start", m.first_batch_s))?;
    line(
        "waited",
        format!(
            "{:.1} % of the time; median {:.6} s, p99 {:.6} s, longest {:.6} s",
            m.wait_share * 100.0,
            m.wait_p50_s,
            m.wait_p99_s,
            m.wait_max_s
        ),
    )?;
    let per_batch = m.plan_s / m.batches.max(1) as f64 * 1e6;
    line(
        "planned",
        format!("{:.1} % of the time, {per_batch:.1} us a batch, under the run's lock", m.plan_s / m.wall_s * 100.0),
    )?;
    line("utilisation", format!("{:.4}, without the first step {:.4}", m.utilisation, m.utilisation_after_first))?;
    if let Some(bytes) = m.peak_rss_bytes {
        line("peak memory", format!("{:.0} MiB resident", bytes as f64 / f64::from(1 << 20)))?;
    }
    if let Some(emulation) = &m.emulation {
        accelerators(emulation, m.batch, &mut line)?;
    }
    for limit in &m.limits {
        let share = m.samples_per_s / limit.samples_per_s * 100.0;
        line("limit", format!("{}, of which this is {share:.1} %: {}", rate(limit.samples_per_s), limit.what))?;
    }
    if let Some(found) = &m.search {
        search(found, m.batch, terminal, &mut out)?;
    }
    if let Some(jitter) = &m.jitter {
        launches(jitter, terminal, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

fn accelerators(
    emulation: &Emulation,
    batch: usize,
    line: &mut impl FnMut(&str, String) -> io::Result<()>,
) -> io::Result<()> {
    let runs = &emulation.runs;
    let steps = span(runs.iter().map(|ran| ran.steps as f64), |steps| steps.to_string());
    let step = span(runs.iter().map(|ran| ran.step_s), |step| step.to_string());
    line(
        "accelerators",
        format!(
            "{} (threads: {}), batches of {batch}, {steps} steps of {step} s each",
            emulation.accelerators, emulation.host_threads
        ),
    )?;
    let utilisations: Vec<f64> = runs.iter().map(|ran| ran.utilisation_after_first).collect();
    let least = utilisations.iter().copied().fold(f64::INFINITY, f64::min);
    let middle = median(&utilisations);
    line("runs", format!("{}: utilisation at least {least:.4}, median {middle:.4}", utilisations.len()))?;
    let percent = |share: f64| format!("{share:.1}");
    let before = span(runs.iter().map(|ran| ran.demand_share * 100.0), percent);
    let after = |ran: &Ran| ran.demand_share * ran.maximum_samples_per_s / ran.maximum_after_samples_per_s * 100.0;
    let after = span(runs.iter().map(after), percent);
    line(
        "they ask for",
        format!(
            "{before} % of what they take when no step needs time, and {after} % of what they take so after the run"
        ),
    )?;
    line("without a loader", format!("utilisation {:.4}: the rest is waking threads", emulation.without_loader))
}

/// The least and the most of what runs had, once where they read alike.
fn span(values: impl Iterator<Item = f64> + Clone, text: impl Fn(f64) -> String) -> String {
    let (least, most) = (text(values.clone().fold(f64::INFINITY, f64::min)), text(values.fold(0.0, f64::max)));
    if least == most { least } else { format!("{least} to {most}") }
}

fn search(found: &Search, batch: usize, terminal: &Terminal, out: &mut impl Write) -> io::Result<()> {
    let (alone, theirs) = (rate(found.alone_samples_per_s), rate(median(&found.maxima)));
    writeln!(
        out,
        "\nAccelerators with a step of {} s and batches of {batch}; without time they take {theirs}, a loop alone {alone}",
        found.step_s
    )?;
    let rows: Vec<Vec<String>> = found
        .tried
        .iter()
        .map(|tried| {
            let share = |share: f64| if share.is_finite() { format!("{share:.4}") } else { "none".to_owned() };
            let holds = match &tried.refused {
                Some(why) => format!("no: {why}"),
                None => (if tried.holds { "yes" } else { "no" }).to_owned(),
            };
            vec![
                tried.accelerators.to_string(),
                format!("{:.1} %", tried.demand_share * 100.0),
                tried.runs.len().to_string(),
                share(tried.min()),
                share(median(&tried.utilisations())),
                share(tried.without_loader),
                holds,
            ]
        })
        .collect();
    terminal.table(&["accelerators", "demand", "runs", "least", "median", "no loader", "busy"], &rows, out)?;
    let share = SHARE * 100.0;
    writeln!(out, "{} ask for at most {share} % of the loader's maximum", found.within_share)?;
    let largest = terminal.mark(Mark::Bold, found.largest);
    writeln!(out, "{largest} are the most that were busy for {HOLDS} of the time or more in every run")
}

fn launches(jitter: &Jitter, terminal: &Terminal, out: &mut impl Write) -> io::Result<()> {
    let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
    writeln!(
        out,
        "\nLaunches of {} us, {} a step, {} steps; how much later they came, in us",
        us(jitter.launch_s),
        jitter.launches_per_step,
        jitter.steps
    )?;
    let rows: Vec<Vec<String>> = jitter
        .cases
        .iter()
        .map(|case| {
            vec![
                case.what.to_owned(),
                us(case.late_p50_s),
                us(case.late_p99_s),
                us(case.late_max_s),
                case.moved.to_string(),
                case.threads.map_or_else(|| "-".to_owned(), |threads| threads.to_string()),
                case.samples_per_s.map_or_else(|| "-".to_owned(), rate),
            ]
        })
        .collect();
    terminal.table(&["beside", "median", "p99", "longest", "moved", "threads", "samples"], &rows, out)
}

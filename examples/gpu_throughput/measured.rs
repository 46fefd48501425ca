//! What a measurement found.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay::Report;
use serde::Serialize;

/// Numbers, what was wanted of them, and how they came about.
#[derive(Default, Serialize)]
pub(crate) struct Measured {
    name: String,
    /// Numbers, each with its unit in its name; of what was measured in turns the median.
    values: BTreeMap<&'static str, f64>,
    /// Each turn of those.
    turns: BTreeMap<&'static str, Vec<f64>>,
    /// What was wanted, and whether it was so.
    wanted: Vec<(String, bool)>,
    /// Why there are no numbers.
    error: Option<String>,
    seconds: f64,
    /// What the loaders say of themselves.
    reports: Vec<String>,
}

impl Measured {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A measurement that ended with an error.
    pub(crate) fn failed(name: &str, error: &str) -> Self {
        Self { error: Some(error.to_owned()), ..Self::new(name) }
    }

    /// Adds a number; without a GPU some are shares of nothing, and left out.
    pub(crate) fn with(mut self, name: &'static str, value: f64) -> Self {
        if value.is_finite() {
            self.values.insert(name, value);
        }
        self
    }

    /// Adds what was measured in turns.
    pub(crate) fn with_turns(mut self, name: &'static str, turns: Vec<f64>) -> Self {
        if turns.iter().all(|turn| turn.is_finite()) {
            self.values.insert(name, median(&turns));
            self.turns.insert(name, turns);
        }
        self
    }

    pub(crate) fn with_report(mut self, report: &Report) -> Self {
        eprint!("{report}\n\n");
        self.reports.push(report.to_string());
        self
    }

    pub(crate) fn wants(mut self, what: impl Into<String>, so: bool) -> Self {
        self.wanted.push((what.into(), so));
        self
    }

    pub(crate) fn took(self, time: Duration) -> Self {
        Self { seconds: time.as_secs_f64(), ..self }
    }

    /// Numbers, and what was wanted of them where that means something.
    pub(crate) fn print(&self, is_rehearsal: bool) {
        println!("{}, in {:.1} s", self.name, self.seconds);
        for (name, value) in &self.values {
            let turns: String =
                self.turns.get(name).into_iter().flatten().map(|turn| format!(" {}", text(*turn))).collect();
            let of = if turns.is_empty() { "" } else { "  median of" };
            println!("  {name:<44} {:>14}{of}{turns}", text(*value));
        }
        if let Some(error) = &self.error {
            println!("  FAILED: {error}");
        }
        if is_rehearsal {
            return;
        }
        self.wanted.iter().for_each(|(what, so)| println!("  {}: {what}", if *so { "good" } else { "MISSED" }));
    }

    /// Whether it came to its end, and found what was wanted; a rehearsal has no claims.
    pub(crate) fn is_good(&self, is_rehearsal: bool) -> bool {
        self.error.is_none() && (is_rehearsal || self.wanted.iter().all(|(_, so)| *so))
    }
}

/// The middle one; the lower middle one of an even number.
pub(crate) fn median(turns: &[f64]) -> f64 {
    let mut sorted = turns.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) / 2).copied().unwrap_or(f64::NAN)
}

fn text(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_kept_beside_their_median() {
        let measured = Measured::new("x").with_turns("a", vec![3.0, 1.0, 2.0]).with_turns("b", vec![1.0, f64::NAN]);
        assert_eq!((measured.values["a"], measured.turns["a"].as_slice()), (2.0, &[3.0, 1.0, 2.0][..]));
        assert!(!measured.values.contains_key("b"));
        assert_eq!((median(&[2.0, 1.0]), text(4.77e-7).as_str(), text(0.5).as_str()), (1.0, "4.77e-7", "0.5000"));
    }
}

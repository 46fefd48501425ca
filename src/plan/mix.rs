//! Formulas for several data sets mixed by weights: which part takes a position, and which of its rows.
//!
//! Positions lie in *windows*. In each window, every part takes as many positions as its weight says, in an order specific to the window. A part's own position
//! therefore follows from the number of the window and the part's earlier places within it: nothing is counted from the beginning.

use std::fmt;
use std::ops::Range;

use super::order::{ENDLESS, Frame, PADDING};
use super::permutation::shuffle;
use crate::error::{Error, Result};
use crate::random::Key;

/// What happens to a mix when one of its parts has delivered its last row.
///
/// # Order
/// Weights `q` are whole numbers without a common divisor. A window has W positions, where W is the sum of the weights, and each part takes exactly q positions
/// in each window. With parts of N rows:
///
/// - [`Stop`](Self::Stop): there are `min(N / q)` windows, as many as every part can fill. No row comes twice; some rows of the other parts never come.
/// - [`Drop`](Self::Drop): when a part ends, the others continue in their proportions to each other, until all have ended. Each row comes once. If a part ends
///   in the middle of a window, every part gives in that window what it has left, up to its weight.
/// - [`Repeat`](Self::Repeat): a part that has ended starts over, until the last part has ended for the first time. There are `max(⌈N / q⌉)` windows, and each
///   row of a part comes as often as all its other rows, or once more. A part that starts over draws its shuffles and augmentations anew.
///
/// An endless part never ends: `Stop` and `Repeat` then depend on the other parts, and `Drop` makes an endless mix.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::Int64Array;
/// use forebay::{Dataset, Exhausted};
///
/// # let numbers = |range: std::ops::Range<i64>| Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(range)) as _)]);
/// let (large, small) = (numbers(0..900)?, numbers(0..100)?);
/// for (exhausted, rows) in [(Exhausted::Stop, 400), (Exhausted::Drop, 1000), (Exhausted::Repeat, 1200)] {
///     let mix = Dataset::mix([(large.clone(), 3), (small.clone(), 1)], exhausted).batch(100);
///     assert_eq!(mix.loader().build()?.steps_per_epoch(), Some(rows / 100));
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exhausted {
    /// The mix ends, after a whole window.
    Stop,
    /// The part is left out; the others continue.
    Drop,
    /// The part starts over, until all parts have ended once.
    Repeat,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop with the first that is exhausted",
            Self::Drop => "leave out what is exhausted",
            Self::Repeat => "repeat what is exhausted",
        })
    }
}

/// The most positions of a window, because its order is a table.
const LARGEST_WINDOW: u64 = 1 << 16;

/// Weights that are not whole numbers are rounded to this many parts of their sum.
const ROUNDED_TO: u64 = 1000;

/// Returns whole numbers without common divisor in the proportions of the weights: the positions of each part in a window.
///
/// Whole numbers are kept if they add up to 65,536 at most; others are rounded to thousandths of their sum, such that the thousandths add up to one.
pub(crate) fn quotas(weights: &[f64]) -> Result<Vec<u64>> {
    let refuse = |message: String| {
        Err(Error::config(message).advice("weights are numbers above 0; leave a data set out rather than give it none"))
    };
    if weights.is_empty() {
        return Err(Error::config("a mix of nothing").advice("give .mix() at least one data set"));
    }
    if let Some(weight) = weights.iter().find(|weight| !weight.is_finite() || **weight <= 0.0) {
        return refuse(format!("a weight of {weight} in a mix"));
    }
    if weights.iter().all(|weight| weight.fract() == 0.0 && *weight < u64::MAX as f64) {
        let whole = reduced(weights.iter().map(|&weight| weight as u64).collect());
        if whole.iter().try_fold(0u64, |sum, &weight| sum.checked_add(weight)).is_some_and(|sum| sum <= LARGEST_WINDOW)
        {
            return Ok(whole);
        }
    }
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * ROUNDED_TO as f64).collect();
    if let Some((weight, _)) = weights.iter().zip(&exact).find(|(_, exact)| exact.is_nan() || **exact < 0.5) {
        return Err(Error::config(format!(
            "a weight of {weight} in a mix is less than a thousandth of their sum, {sum}"
        ))
        .advice("give whole numbers that come to 65,536 at most"));
    }
    // Rounded down, what is missing goes to those with the largest remainders; then to none that would have nothing.
    let mut quotas: Vec<u64> = exact.iter().map(|exact| (exact.floor() as u64).max(1)).collect();
    let mut by_remainder: Vec<usize> = (0..exact.len()).collect();
    by_remainder
        .sort_by(|&a, &b| (exact[b] - quotas[b] as f64).total_cmp(&(exact[a] - quotas[a] as f64)).then(a.cmp(&b)));
    let given: u64 = quotas.iter().sum();
    for &part in by_remainder.iter().cycle().take(ROUNDED_TO.saturating_sub(given) as usize) {
        quotas[part] += 1;
    }
    Ok(reduced(quotas))
}

/// Divides numbers by their common divisor.
fn reduced(mut numbers: Vec<u64>) -> Vec<u64> {
    let divisor = numbers.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    numbers.iter_mut().for_each(|number| *number /= divisor);
    numbers
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The order of one mix: maps a position to the part, the turn of the part, and the position in it.
#[derive(Clone, Debug)]
pub(crate) struct Mixing {
    key: Key,
    /// Rows of each part.
    lengths: Vec<u64>,
    /// How often each part starts in an epoch.
    turns: Vec<u64>,
    phases: Vec<Phase>,
    rows: u64,
    /// The last window asked for.
    window: Window,
}

/// A run of windows with the same quotas.
#[derive(Clone, Debug)]
struct Phase {
    /// Position of the first window, and its number.
    start: u64,
    first: u64,
    /// Positions of each part in a window, and their sum.
    quotas: Vec<u64>,
    length: u64,
    /// Rows that each part delivered before.
    before: Vec<u64>,
}

/// The order within a window: for each place the part, and how many places before it are of the same part.
#[derive(Clone, Debug, Default)]
struct Window {
    of: Option<(u64, u64)>,
    places: Vec<(u32, u32)>,
}

/// The row to which a position of a mix leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartRow {
    pub(crate) part: usize,
    /// How often the part started over before this.
    pub(crate) turn: u64,
    pub(crate) position: u64,
}

impl Mixing {
    /// `lengths`: rows of the parts. With `Repeat`, none of them is 0.
    pub(crate) fn new(key: Key, quotas: &[u64], lengths: Vec<u64>, exhausted: Exhausted) -> Self {
        let length: u64 = quotas.iter().sum();
        let ending = || lengths.iter().zip(quotas).filter(|(rows, _)| **rows != ENDLESS);
        let whole = |windows: Option<u64>| {
            let phase = Phase { start: 0, first: 0, quotas: quotas.into(), length, before: vec![0; quotas.len()] };
            (vec![phase], windows.map_or(ENDLESS, |windows| windows.saturating_mul(length)))
        };
        let (phases, rows) = match exhausted {
            Exhausted::Stop => whole(ending().map(|(rows, quota)| rows / quota).min()),
            Exhausted::Repeat => whole(ending().map(|(rows, quota)| rows.div_ceil(*quota)).max()),
            Exhausted::Drop => phases(quotas, &lengths),
        };
        let turns = lengths.iter().zip(quotas).map(|(&part, &quota)| match exhausted {
            Exhausted::Repeat if part != ENDLESS => (rows / length).saturating_mul(quota).div_ceil(part.max(1)).max(1),
            _ => 1,
        });
        let turns = turns.collect();
        Self { key, lengths, turns, phases, rows, window: Window::default() }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns where a position leads in a pass.
    pub(crate) fn place(&mut self, pass: u64, position: u64) -> PartRow {
        let at = self.phases.partition_point(|phase| phase.start <= position) - 1;
        let phase = &self.phases[at];
        let (window, place) = ((position - phase.start) / phase.length, (position - phase.start) % phase.length);
        let (part, nth) = self.window.draw(self.key, pass, phase.first + window, &phase.quotas)[place as usize];
        let row = phase.before[part as usize] + window * phase.quotas[part as usize] + u64::from(nth);
        let length = self.lengths[part as usize];
        PartRow { part: part as usize, turn: row / length, position: row % length }
    }

    /// Returns the rows that each part delivered before a position, over all its turns.
    fn given(&mut self, pass: u64, position: u64) -> Vec<u64> {
        let at = self.phases.partition_point(|phase| phase.start <= position) - 1;
        let phase = &self.phases[at];
        let (window, place) = ((position - phase.start) / phase.length, (position - phase.start) % phase.length);
        let mut given: Vec<u64> =
            phase.before.iter().zip(&phase.quotas).map(|(before, quota)| before + window * quota).collect();
        if place > 0 {
            let places = self.window.draw(self.key, pass, phase.first + window, &phase.quotas);
            places[..place as usize].iter().for_each(|&(part, _)| given[part as usize] += 1);
        }
        given
    }

    /// Returns what a range of positions of the mix takes from each part: part, turn and positions in it.
    pub(crate) fn ranges(&mut self, pass: u64, positions: Range<u64>) -> Vec<(usize, u64, Range<u64>)> {
        let (from, to) = (self.given(pass, positions.start), self.given(pass, positions.end));
        let mut ranges = Vec::new();
        for (part, (&from, &to)) in from.iter().zip(&to).enumerate() {
            let (length, mut at) = (self.lengths[part], from);
            while at < to {
                let (turn, position) = (at / length, at % length);
                let rows = (length - position).min(to - at);
                ranges.push((part, turn, position..position + rows));
                at += rows;
            }
        }
        ranges
    }

    /// Returns the pass of a part in one of its turns: each turn has its own pass over all epochs.
    pub(crate) fn pass_of(&self, pass: u64, part: usize, turn: u64) -> u64 {
        let number = (pass & !PADDING).wrapping_mul(self.turns[part]).wrapping_add(turn);
        number & !PADDING | pass & PADDING
    }

    /// How the positions of a part lie in the steps, from one of them on: where the part is slow for lack of others, too late rather
    /// than too early.
    pub(crate) fn frame(&self, frame: Frame, part: usize, turn: u64, position: u64) -> Frame {
        let before = turn * self.lengths[part];
        let row = before + position;
        let at = self.phases.partition_point(|phase| phase.before[part] <= row && phase.start < self.rows) - 1;
        let phase = &self.phases[at];
        // The end of the window in which the phase's row i comes is start + (i / quota + 1) · length.
        let shift = i128::from(before) - i128::from(phase.before[part]);
        frame.stretched(phase.length, phase.quotas[part].max(1), phase.start + phase.length - 1).moved(shift)
    }
}

impl Window {
    fn draw(&mut self, key: Key, pass: u64, number: u64, quotas: &[u64]) -> &[(u32, u32)] {
        if self.of != Some((pass, number)) {
            self.of = Some((pass, number));
            self.places.clear();
            for (part, &quota) in (0..).zip(quotas) {
                self.places.extend((0..quota).map(|_| (part, 0)));
            }
            shuffle(&mut self.places, key.with_number(pass).with_number(number));
            let mut counts = vec![0; quotas.len()];
            for (part, nth) in &mut self.places {
                *nth = counts[*part as usize];
                counts[*part as usize] += 1;
            }
        }
        &self.places
    }
}

/// Returns the phases of a mix that leaves out exhausted parts, and the number of its rows.
fn phases(quotas: &[u64], lengths: &[u64]) -> (Vec<Phase>, u64) {
    let (mut phases, mut start, mut first) = (Vec::new(), 0, 0);
    let mut before = vec![0; quotas.len()];
    loop {
        let left: Vec<u64> = lengths.iter().zip(&before).map(|(&rows, before)| rows - before).collect();
        let alive = quotas.iter().zip(&left).map(|(&quota, &left)| if left > 0 { quota } else { 0 });
        let alive = reduced(alive.collect());
        let length: u64 = alive.iter().sum();
        if length == 0 {
            return (phases, start);
        }
        let ending = alive.iter().zip(&left).zip(lengths).filter(|((quota, _), rows)| **quota > 0 && **rows != ENDLESS);
        let Some(windows) = ending.map(|((quota, left), _)| left / quota).min() else {
            phases.push(Phase { start, first, quotas: alive, length, before });
            return (phases, ENDLESS);
        };
        let mut push = |quotas: Vec<u64>, windows: u64| {
            let length: u64 = quotas.iter().sum();
            phases.push(Phase { start, first, quotas: quotas.clone(), length, before: before.clone() });
            start += windows * length;
            first += windows;
            before.iter_mut().zip(quotas).for_each(|(before, quota)| *before += windows * quota);
        };
        if windows > 0 {
            push(alive, windows);
        } else {
            push(alive.iter().zip(&left).map(|(&quota, &left)| quota.min(left)).collect(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mixing(seed: u64, quotas: &[u64], lengths: &[u64], exhausted: Exhausted) -> Mixing {
        Mixing::new(Key::new(seed), quotas, lengths.into(), exhausted)
    }

    fn places(mixing: &mut Mixing, pass: u64, positions: Range<u64>) -> Vec<PartRow> {
        positions.map(|position| mixing.place(pass, position)).collect()
    }

    #[test]
    fn weights_become_small_whole_numbers() {
        for (weights, wanted) in [
            (&[3.0, 1.0][..], &[3, 1][..]),
            (&[0.7, 0.3], &[7, 3]),
            (&[6.0, 4.0, 2.0], &[3, 2, 1]),
            (&[5.0], &[1]),
            (&[1.0 / 3.0, 2.0 / 3.0], &[333, 667]),
            (&[0.5, 0.25, 0.25], &[2, 1, 1]),
            // Too large to be kept: to thousandths.
            (&[1_234_567.0, 7_654_321.0], &[139, 861]),
            (&[1.0; 2000], &[1; 2000]),
            // Those that would come to nothing take from the largest remainders.
            (&[0.0006, 0.9994], &[1, 999]),
        ] {
            assert_eq!(quotas(weights).unwrap(), wanted, "{:?}", &weights[..weights.len().min(4)]);
        }
    }

    #[test]
    fn weights_that_mean_nothing_are_refused() {
        for weights in [&[][..], &[1.0, 0.0], &[-1.0], &[f64::NAN, 1.0], &[f64::INFINITY], &[1.5, 1e-4], &[f64::MAX; 3]]
        {
            let text = quotas(weights).unwrap_err().to_string();
            assert!(text.contains("mix"), "{text}");
        }
    }

    #[test]
    fn the_order_for_seed_42_is_pinned() {
        let key = Key::new(42).with("mix").with_number(0);
        for (exhausted, wanted) in PINNED {
            let mut mixing = Mixing::new(key, &[3, 2], vec![8, 3], exhausted);
            let rows = mixing.rows();
            let all = places(&mut mixing, 0, 0..rows);
            let names = all.iter().map(|place| format!("{}{} ", ["a", "b"][place.part], place.position));
            assert_eq!(names.collect::<String>(), wanted, "{exhausted:?}");
        }
    }

    const PINNED: [(Exhausted, &str); 3] = [
        (Exhausted::Stop, "a0 a1 a2 b0 b1 "),
        (Exhausted::Drop, "a0 a1 a2 b0 b1 a3 b2 a4 a5 a6 a7 "),
        (Exhausted::Repeat, "a0 a1 a2 b0 b1 b2 a3 a4 b0 a5 a6 a7 b1 a0 b2 "),
    ];

    #[test]
    fn parts_of_a_mix_that_end_are_left_out_one_by_one() {
        // Two whole windows of 2:1:1, one in which the third has nothing left and the second one row, then the first alone.
        let mut mixing = mixing(7, &[2, 1, 1], &[10, 3, 2], Exhausted::Drop);
        assert_eq!(mixing.rows(), 15);
        let parts: Vec<usize> = places(&mut mixing, 0, 0..15).iter().map(|place| place.part).collect();
        let count = |range: Range<usize>, part| parts[range].iter().filter(|&&p| p == part).count();
        assert_eq!([count(0..4, 0), count(0..4, 1), count(0..4, 2)], [2, 1, 1]);
        assert_eq!([count(4..8, 0), count(4..8, 1), count(4..8, 2)], [2, 1, 1]);
        assert_eq!([count(8..11, 0), count(8..11, 1)], [2, 1]);
        assert_eq!(parts[11..], [0; 4]);
    }

    #[test]
    fn endless_parts_do_not_end_a_mix() {
        let rows = |lengths: &[u64], exhausted| mixing(1, &[1, 2], lengths, exhausted).rows();
        assert_eq!(rows(&[ENDLESS, 10], Exhausted::Stop), 15);
        assert_eq!(rows(&[ENDLESS, 11], Exhausted::Repeat), 18);
        assert_eq!(rows(&[ENDLESS, 10], Exhausted::Drop), ENDLESS);
        for exhausted in [Exhausted::Stop, Exhausted::Repeat, Exhausted::Drop] {
            let mut mixing = mixing(1, &[1, 2], &[ENDLESS, ENDLESS], exhausted);
            assert_eq!(mixing.rows(), ENDLESS);
            let far = places(&mut mixing, 5, 3_000_000_000..3_000_000_003);
            let ones: Vec<_> =
                far.iter().filter(|place| place.part == 0).map(|place| (place.turn, place.position)).collect();
            assert_eq!(ones, [(0, 1_000_000_000)]);
        }
    }

    #[test]
    fn windows_and_passes_have_orders_of_their_own() {
        let mut mixing = mixing(3, &[5, 5], &[500, 500], Exhausted::Stop);
        let parts = |places: Vec<PartRow>| places.iter().map(|place| place.part).collect::<Vec<_>>();
        let windows: Vec<_> = (0..100).map(|w| parts(places(&mut mixing, 0, w * 10..w * 10 + 10))).collect();
        let distinct = windows.iter().collect::<std::collections::HashSet<_>>().len();
        // 252 orders of a window, 100 drawn: 83 distinct ones are expected.
        assert!((70..95).contains(&distinct), "{distinct}");
        assert_ne!(windows[0], parts(places(&mut mixing, 1, 0..10)));
    }

    fn mixes() -> impl Strategy<Value = (Vec<u64>, Vec<u64>, Exhausted, u64)> {
        let parts = prop::collection::vec((1..7u64, 0..60u64), 1..5);
        let exhausted = prop_oneof![Just(Exhausted::Stop), Just(Exhausted::Drop), Just(Exhausted::Repeat)];
        (parts, exhausted, 0..100u64).prop_map(|(parts, exhausted, seed)| {
            let (quotas, lengths): (Vec<u64>, Vec<u64>) = parts.into_iter().unzip();
            let least = u64::from(exhausted == Exhausted::Repeat);
            (reduced(quotas), lengths.iter().map(|&rows| rows.max(least)).collect(), exhausted, seed)
        })
    }

    proptest! {
        #[test]
        fn every_window_has_the_proportions_and_every_row_comes_as_often_as_it_should(
            (quotas, lengths, exhausted, seed) in mixes(),
        ) {
            let mut mixing = mixing(seed, &quotas, &lengths, exhausted);
            let (rows, window) = (mixing.rows(), quotas.iter().sum::<u64>());
            let all = places(&mut mixing, 2, 0..rows);
            // Windows in which all parts have enough left are exact.
            let mut given = vec![0; quotas.len()];
            for places in all.chunks(window as usize) {
                if exhausted == Exhausted::Drop && given.iter().zip(&lengths).zip(&quotas).any(|((g, n), q)| g + q > *n) {
                    break;
                }
                let counts: Vec<u64> =
                    (0..quotas.len()).map(|part| places.iter().filter(|place| place.part == part).count() as u64).collect();
                prop_assert_eq!(&counts, &quotas);
                given.iter_mut().zip(counts).for_each(|(given, count)| *given += count);
            }
            // A part's rows come in its order, turn after turn.
            for (part, &length) in lengths.iter().enumerate() {
                let own: Vec<_> = all.iter().filter(|place| place.part == part).map(|p| (p.turn, p.position)).collect();
                let wanted: Vec<_> = (0..own.len() as u64).map(|i| (i / length, i % length)).collect();
                prop_assert_eq!(&own, &wanted);
                let (count, windows) = (own.len() as u64, rows / window);
                match exhausted {
                    Exhausted::Stop => prop_assert!(count == windows * quotas[part] && count <= length),
                    Exhausted::Drop => prop_assert_eq!(count, length),
                    Exhausted::Repeat => prop_assert!(count == windows * quotas[part] && count >= length),
                }
                if let Some(&(turn, _)) = own.last() {
                    prop_assert!(turn < mixing.turns[part] && (exhausted == Exhausted::Repeat || turn == 0));
                }
            }
            match exhausted {
                Exhausted::Stop => prop_assert!(lengths.iter().zip(&quotas).any(|(n, q)| n - rows / window * q < *q)),
                Exhausted::Repeat => prop_assert!(lengths.iter().zip(&quotas).any(|(n, q)| rows / window * q < n + q)),
                Exhausted::Drop => {}
            }
        }

        #[test]
        fn a_position_leads_to_one_place_however_it_is_asked_for((quotas, lengths, exhausted, seed) in mixes(), cut in 0..100u64) {
            let mut sequential = mixing(seed, &quotas, &lengths, exhausted);
            let rows = sequential.rows();
            let all = places(&mut sequential, 1, 0..rows);
            let mut backwards = mixing(seed, &quotas, &lengths, exhausted);
            for position in (0..rows).rev() {
                prop_assert_eq!(backwards.place(1, position), all[position as usize]);
            }
            if rows > 0 {
                let cut = cut % rows;
                let mut counted: Vec<PartRow> = Vec::new();
                for (part, turn, range) in backwards.ranges(1, cut..rows) {
                    counted.extend(range.map(|position| PartRow { part, turn, position }));
                }
                let mut wanted = all[cut as usize..].to_vec();
                wanted.sort_by_key(|place| (place.part, place.turn, place.position));
                prop_assert_eq!(counted, wanted);
            }
        }

        #[test]
        fn frames_name_a_step_soon_after_the_row(
            (quotas, lengths, exhausted, seed) in mixes(), before in 0..50u64, batch in 1..20u64,
        ) {
            let mut mixing = mixing(seed, &quotas, &lengths, exhausted);
            let (rows, window) = (mixing.rows(), quotas.iter().sum::<u64>());
            let outer = Frame::of_epoch(batch).moved(before.into());
            for (position, place) in (0..).zip(places(&mut mixing, 0, 0..rows)) {
                let frame = mixing.frame(outer, place.part, place.turn, place.position);
                let (step, real) = (frame.step_of(place.position), outer.step_of(position));
                prop_assert!(step >= real && step <= real + (2 * window).div_ceil(batch), "{step} for {real}");
            }
        }
    }
}

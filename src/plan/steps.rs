//! Which positions a rank delivers in each step.

use std::ops::Range;

use crate::error::{Error, Result};

/// What happens to the rows at the end of an epoch that do not fill a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Remainder {
    /// They come as a last, shorter batch. With more than one rank, `build()` refuses this if there is a remainder.
    #[default]
    Keep,
    /// They are left out of this epoch.
    Drop,
    /// The last batch is filled up with the first samples of the epoch's order.
    Repeat,
    /// `build()` refuses a data set that has a remainder.
    Refuse,
}

/// The arithmetic of an epoch: global batches, steps, and a rank's share of each.
///
/// Step k holds the positions `k·batch .. (k+1)·batch` of the data set's order. The plan has `streams` logical streams;
/// stream i gives the slots `i·batch/streams .. (i+1)·batch/streams` of every step, and rank r of w owns the streams
/// `r·streams/w .. (r+1)·streams/w`, so its batch is a contiguous slice of the global one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) batch: u64,
    pub(crate) streams: u64,
    pub(crate) rank: u64,
    pub(crate) world: u64,
    pub(crate) remainder: Remainder,
    /// Steps of an epoch, if they are stated: its rows are then repeated without end.
    pub(crate) stated: Option<u64>,
}

/// The default number of streams of a plan: enough for worlds of 1, 2, 4 and 8.
const DEFAULT_STREAMS: u64 = 8;

/// The default number of streams of a batch: the largest that fits the world. `None` if the world does not divide the batch.
fn default_streams(batch: u64, world: u64) -> Option<u64> {
    let fits = |l: &u64| l.is_multiple_of(world) && batch.is_multiple_of(*l);
    (1..=DEFAULT_STREAMS.max(world)).rev().find(fits)
}

/// Returns in words how many ranks can share a plan of this many streams: the numbers that divide it.
pub(crate) fn sharers(streams: u64) -> String {
    const MOST: usize = 8;
    // A state says how many there are, and may be damaged.
    const LARGEST: u64 = 1 << 12;
    let mut worlds: Vec<u64> = (1..=streams.min(LARGEST)).filter(|&world| streams.is_multiple_of(world)).collect();
    if worlds.last() != Some(&streams) {
        worlds.push(streams);
    }
    let more = if worlds.len() > MOST { ", …" } else { "" };
    worlds.drain(MOST.min(worlds.len()) - 1..worlds.len() - 1);
    let last = worlds.pop().expect("the number of streams itself");
    let others: Vec<String> = worlds.iter().map(ToString::to_string).collect();
    if others.is_empty() { last.to_string() } else { format!("{}{more} or {last}", others.join(", ")) }
}

/// Describes the default streams of a batch if ranks could share the batch but not these streams: who can share them, and which settings would help.
pub(crate) fn hint(batch: u64) -> Option<String> {
    let streams = default_streams(batch, 1).filter(|streams| batch.is_multiple_of(2) && !streams.is_multiple_of(2))?;
    let (twice, near) = (2 * streams, batch.next_multiple_of(DEFAULT_STREAMS));
    Some(format!(
        "{streams} streams, which {} ranks can share (.streams({twice}): {}; .batch({near}): {})",
        sharers(streams),
        sharers(twice),
        sharers(DEFAULT_STREAMS)
    ))
}

/// Advises on a state of this many streams, and a batch or world that do not fit it.
pub(crate) fn advice_for_state(streams: u64, batch: u64, world: u64) -> String {
    let (stay, ranks) = (format!("the state has {streams} streams, which stay: restore it with"), sharers(streams));
    if !batch.is_multiple_of(streams) {
        return format!("{stay} its batch, which they divide, and {ranks} ranks");
    }
    if !batch.is_multiple_of(world) {
        return format!(
            "{stay} {ranks} ranks; for {world} to go on, a run has to begin with a batch and .streams(n) that {world} divides"
        );
    }
    // Both divide the batch, and so does the least number that both divide.
    let both = (1..=world).map(|times| streams * times).find(|both| both.is_multiple_of(world)).unwrap_or(batch);
    format!("{stay} {ranks} ranks; a run that begins with .streams({both}) can go on with {}", sharers(both))
}

impl Steps {
    /// Picks the number of streams: the one stated, or the largest `L <= max(8, world)` with `world | L | batch`.
    pub(crate) fn new(
        batch: u64,
        streams: Option<u64>,
        (rank, world): (u64, u64),
        remainder: Remainder,
    ) -> Result<Self> {
        if batch == 0 {
            return Err(Error::config("a batch of 0 samples").advice(".batch(n) wants n of at least 1"));
        }
        if !batch.is_multiple_of(world) {
            let below = batch / world * world;
            let near = if below == 0 { world.to_string() } else { format!("{below} or {}", below + world) };
            return Err(Error::config(format!("a global batch of {batch} cannot be shared by {world} ranks"))
                .advice(format!("take .batch({near})")));
        }
        let fits = |l: u64| l > 0 && l.is_multiple_of(world) && batch.is_multiple_of(l);
        let streams = match streams {
            Some(l) if fits(l) => l,
            Some(l) => {
                let mut near: Vec<u64> = (1..=batch).filter(|&l| fits(l)).collect();
                near.sort_by_key(|&fit| fit.abs_diff(l));
                near.truncate(3);
                return Err(Error::config(format!(
                    "{l} streams: the number must divide the batch of {batch} and be a multiple of the {world} ranks"
                ))
                .advice(format!("take .streams(n) with n one of {near:?}")));
            }
            None => default_streams(batch, world).expect("world divides the batch"),
        };
        Ok(Self { batch, streams, rank, world, remainder, stated: None })
    }

    /// States the steps of an epoch.
    pub(crate) fn with_epoch(self, steps: Option<u64>) -> Self {
        Self { stated: steps, ..self }
    }

    /// Streams of this rank.
    pub(crate) fn own_streams(&self) -> u64 {
        self.streams / self.world
    }

    /// The first of them.
    pub(crate) fn first_stream(&self) -> u64 {
        self.rank * self.own_streams()
    }

    /// Positions that one stream delivers of an order of `rows` rows.
    pub(crate) fn stream_rows(&self, stream: u64, rows: u64) -> u64 {
        let (share, rest) = (self.stream_share(), rows % self.batch);
        rows / self.batch * share + rest.saturating_sub(stream * share).min(share)
    }

    /// Converts a position of a stream to a position in the order.
    pub(crate) fn position_of(&self, stream: u64, within: u64) -> u64 {
        let share = self.stream_share();
        (within / share).saturating_mul(self.batch).saturating_add(stream * share + within % share)
    }

    /// Converts some positions of a stream to positions in the order: a range for each step.
    pub(crate) fn positions_of(self, stream: u64, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let share = self.stream_share();
        let mut at = within.start;
        std::iter::from_fn(move || {
            let stop = within.end.min((at / share + 1) * share);
            let first = self.position_of(stream, at);
            let run = first..first + stop.checked_sub(at).filter(|&run| run > 0)?;
            at = stop;
            Some(run)
        })
    }

    /// Returns how streams share a part of a mix that takes `part` of every `whole` positions of these steps.
    ///
    /// If the streams' shares hold whole windows, the part's streams are those of the plan, and a rank reads its own. Otherwise streams are joined until they
    /// do; and if not even a whole batch does, the part's streams wander over the slots.
    pub(crate) fn thinned(self, part: u64, whole: u64) -> Self {
        let fits = |l: &u64| self.streams.is_multiple_of(*l) && (self.batch / l).is_multiple_of(whole);
        if let Some(streams) = (1..=self.streams).rev().find(fits) {
            return Self { batch: self.batch / whole * part, streams, ..self };
        }
        let share = (u128::from(self.stream_share()) * u128::from(part) + u128::from(whole) / 2) / u128::from(whole);
        Self { batch: (share as u64).max(1) * self.streams, ..self }
    }

    /// Whether every rank's share of a step holds whole windows.
    pub(crate) fn holds_windows_of(&self, whole: u64) -> bool {
        (self.batch / self.world).is_multiple_of(whole)
    }

    /// Rows of a step that one stream delivers.
    pub(crate) fn stream_share(&self) -> u64 {
        self.batch / self.streams
    }

    /// Steps of an epoch of `rows` rows, the same for every rank.
    pub(crate) fn per_epoch(&self, rows: u64) -> u64 {
        match (self.stated, self.remainder) {
            (Some(steps), _) => steps,
            (None, Remainder::Keep | Remainder::Repeat) => rows.div_ceil(self.batch),
            (None, Remainder::Drop | Remainder::Refuse) => rows / self.batch,
        }
    }

    /// The positions that this rank delivers in `step`; positions of `rows` and above repeat those from the front.
    pub(crate) fn slots(&self, step: u64, rows: u64) -> Range<u64> {
        let share = self.batch / self.world;
        let start = step * self.batch + self.rank * share;
        let end = start + share;
        if self.remainder == Remainder::Repeat { start..end } else { start.min(rows)..end.min(rows) }
    }

    /// Checks an epoch of `rows` rows against the remainder policy.
    pub(crate) fn check(&self, rows: u64) -> Result<()> {
        let rest = rows % self.batch;
        let batch = self.batch;
        if rows == 0 {
            return Err(Error::config("the data set has no rows").advice("look at its URLs, .take() and .skip()"));
        }
        if rest == 0 || self.stated.is_some() && self.remainder != Remainder::Drop {
            return Ok(());
        }
        match self.remainder {
            Remainder::Keep if self.world > 1 => Err(Error::config(format!(
                "{rows} rows leave {rest} that do not fill a batch of {batch}, and {} ranks must take equal steps",
                self.world
            ))
            .advice("say what becomes of them: .remainder(Remainder::Drop) or .remainder(Remainder::Repeat)")),
            Remainder::Refuse => {
                Err(Error::config(format!("{rows} rows leave {rest} that do not fill a batch of {batch}"))
                    .advice(".remainder(Remainder::Drop), Keep or Repeat, or another batch size"))
            }
            Remainder::Drop if rows < batch => Err(Error::config(format!(
                "{rows} rows never fill a batch of {batch}, and the remainder is dropped: no batch would come"
            ))
            .advice("make the batch smaller, or take .remainder(Remainder::Keep)")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(batch: u64, world: u64) -> Result<Steps> {
        Steps::new(batch, None, (0, world), Remainder::Keep)
    }

    #[test]
    fn streams_are_the_largest_divisor_up_to_eight_or_the_world() {
        for (batch, world, streams) in
            [(256, 1, 8), (100, 1, 5), (7, 1, 7), (11, 1, 1), (24, 3, 6), (64, 16, 16), (1, 1, 1)]
        {
            assert_eq!(steps(batch, world).unwrap().streams, streams, "batch {batch}, world {world}");
        }
    }

    #[test]
    fn a_default_that_no_two_ranks_can_share_is_told_with_what_they_could() {
        for (batch, said) in [
            (20, "5 streams, which 1 or 5 ranks can share (.streams(10): 1, 2, 5 or 10; .batch(24): 1, 2, 4 or 8)"),
            (100, "5 streams, which 1 or 5 ranks can share (.streams(10): 1, 2, 5 or 10; .batch(104): 1, 2, 4 or 8)"),
            (14, "7 streams, which 1 or 7 ranks can share (.streams(14): 1, 2, 7 or 14; .batch(16): 1, 2, 4 or 8)"),
        ] {
            assert_eq!(hint(batch).unwrap(), said);
        }
        // What two ranks can share, and what they could not whatever is stated.
        for batch in [0, 1, 2, 5, 6, 24, 25, 30, 36, 256] {
            assert_eq!(hint(batch), None, "{batch}");
        }
    }

    #[test]
    fn worlds_are_those_that_divide_the_streams() {
        for (streams, said) in [
            (1, "1"),
            (5, "1 or 5"),
            (24, "1, 2, 3, 4, 6, 8, 12 or 24"),
            (720, "1, 2, 3, 4, 5, 6, 8, … or 720"),
            (5003, "1 or 5003"),
            (u64::MAX, "1, 3, 5, 15, 17, 51, 85, … or 18446744073709551615"),
            (0, "0"),
        ] {
            assert_eq!(sharers(streams), said);
        }
    }

    #[test]
    fn what_a_state_can_go_on_with_is_told() {
        for (streams, batch, world, words) in [
            (5, 20, 2, "1 or 5 ranks; a run that begins with .streams(10) can go on with 1, 2, 5 or 10"),
            (5, 100, 4, "1 or 5 ranks; a run that begins with .streams(20) can go on with 1, 2, 4, 5, 10 or 20"),
            (
                8,
                256,
                3,
                "1, 2, 4 or 8 ranks; for 3 to go on, a run has to begin with a batch and .streams(n) that 3 divides",
            ),
            (8, 20, 2, "its batch, which they divide, and 1, 2, 4 or 8 ranks"),
            (0, 20, 2, "its batch"),
        ] {
            let advice = advice_for_state(streams, batch, world);
            assert!(advice.contains(&format!("{streams} streams, which stay: restore it with {words}")), "{advice}");
        }
    }

    #[test]
    fn parts_of_a_mix_have_streams_that_stand_in_the_slots_of_the_plans() {
        // A share of 24: windows of 4 fit; of 16, two streams together; of 96, all; of 10, none.
        for (part, whole, batch, streams) in
            [(3, 4, 72, 4), (7, 16, 42, 2), (5, 96, 5, 1), (7, 10, 68, 4), (1, 1000, 4, 4)]
        {
            let thin = Steps::new(96, Some(4), (0, 1), Remainder::Keep).unwrap().thinned(part, whole);
            assert_eq!((thin.batch, thin.streams), (batch, streams), "{part} of {whole}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let error = steps(10, 4).unwrap_err().to_string();
        assert!(error.contains(".batch(8 or 12)"), "{error}");
        let error = Steps::new(24, Some(5), (0, 2), Remainder::Keep).unwrap_err().to_string();
        assert!(error.contains("[4, 6, 2]"), "{error}");
        assert!(Steps::new(0, None, (0, 1), Remainder::Keep).is_err());
    }

    #[test]
    fn ranks_share_each_step_without_gap_or_overlap() {
        for remainder in [Remainder::Keep, Remainder::Drop, Remainder::Repeat] {
            let rows = 50;
            let all: Vec<_> = (0..3)
                .map(|rank| Steps::new(12, None, (rank, 3), remainder).unwrap())
                .flat_map(|s| (0..s.per_epoch(rows)).flat_map(move |k| s.slots(k, rows)))
                .collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            let end = match remainder {
                Remainder::Keep => 50,
                Remainder::Drop => 48,
                _ => 60,
            };
            assert_eq!(sorted, (0..end).collect::<Vec<_>>());
        }
    }

    #[test]
    fn streams_share_the_rows_of_an_order() {
        let steps = Steps::new(12, Some(6), (1, 3), Remainder::Keep).unwrap();
        assert_eq!((steps.own_streams(), steps.first_stream()), (2, 2));
        for rows in 0..40 {
            let mut positions: Vec<u64> = (0..6)
                .flat_map(|stream| (0..steps.stream_rows(stream, rows)).map(move |at| steps.position_of(stream, at)))
                .collect();
            positions.sort_unstable();
            assert_eq!(positions, (0..rows).collect::<Vec<_>>());
        }
    }

    #[test]
    fn remainders_that_would_surprise_are_refused() {
        let check = |batch, world, remainder, rows| Steps::new(batch, None, (0, world), remainder).unwrap().check(rows);
        assert!(check(10, 1, Remainder::Keep, 25).is_ok());
        assert!(check(10, 2, Remainder::Keep, 25).is_err());
        assert!(check(10, 2, Remainder::Keep, 30).is_ok());
        assert!(check(10, 2, Remainder::Drop, 25).is_ok());
        assert!(check(10, 1, Remainder::Drop, 9).is_err());
        assert!(check(10, 1, Remainder::Refuse, 25).is_err());
        assert!(check(10, 1, Remainder::Keep, 0).is_err());
    }
}

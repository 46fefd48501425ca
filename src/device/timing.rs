//! What a device did with its time, by its own clock: marks in its streams, read once the device has come past them.

use std::collections::VecDeque;

use super::copier::{Copier, Event};

/// The marks around one batch. `asked` and `arrived` are on the default stream: after what the loop had queued when it asked for the batch, and where
/// the batch's copy is waited for. Each of `copies` is between two other marks: a copy of what lies in the slot, and one of what crosses in pieces,
/// after what it waits for.
pub(super) struct Marks {
    pub(super) asked: Event,
    pub(super) arrived: Event,
    pub(super) copies: Vec<(Event, Event)>,
    pub(super) bytes: u64,
}

/// Sums over the batches that the device has come past. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Times {
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    /// Time of copies, one batch after the other.
    pub(crate) copying: f64,
    /// From the moment when all work was done that was queued before a batch was asked for, until the batch was there.
    pub(crate) waited: f64,
    /// The part of `waited` in which the batch was being copied.
    pub(crate) waited_for_copies: f64,
}

/// Batches whose times are not known yet, oldest first, and the sums of the others.
#[derive(Default)]
pub(super) struct Timing {
    pending: VecDeque<Marks>,
    times: Times,
}

impl Timing {
    pub(super) fn push(&mut self, marks: Marks) {
        self.pending.push_back(marks);
    }

    /// Takes into account the batches that the device has come past. It waits for nothing, and leaves errors of the device to other calls.
    pub(super) fn settle(&mut self, copier: &dyn Copier) -> Times {
        while let Some(marks) = self.pending.pop_front_if(|marks| copier.is_done(&marks.arrived).unwrap_or(false)) {
            self.times.add(&marks, copier);
        }
        self.times
    }
}

impl Times {
    fn add(&mut self, Marks { asked, arrived, copies, bytes }: &Marks, copier: &dyn Copier) {
        let between = |from, to| Some(copier.seconds(from, to).ok()?.max(0.0));
        let of_copies: Option<Vec<(f64, f64)>> = copies
            .iter()
            .map(|(begun, copied)| {
                // Where the copy was done before, nothing was waited for.
                let copying = between(begun, copied)?;
                Some((copying, between(asked, copied)?.min(copying)))
            })
            .collect();
        let (Some(waited), Some(of_copies)) = (between(asked, arrived), of_copies) else { return };
        self.batches += 1;
        self.bytes += bytes;
        self.waited += waited;
        self.copying += of_copies.iter().map(|(copying, _)| copying).sum::<f64>();
        self.waited_for_copies += of_copies.iter().map(|(_, since_asked)| since_asked).sum::<f64>().min(waited);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::copier::{Locked, Stream};
    use crate::error::{Error, ErrorKind, Result};

    /// Events are their times, in milliseconds; those of a time that has not come are not done.
    struct At {
        now: i64,
    }

    impl Copier for At {
        fn number(&self) -> usize {
            unreachable!()
        }

        fn lock(&self, _: usize) -> Result<Box<dyn Locked>> {
            unreachable!()
        }

        fn allocate(&self, _: usize) -> Result<tch::Tensor> {
            unreachable!()
        }

        fn record(&self, _: Stream) -> Result<Event> {
            unreachable!()
        }

        fn mark(&self, _: Stream) -> Result<Event> {
            unreachable!()
        }

        fn wait(&self, _: Stream, _: &Event) -> Result<()> {
            unreachable!()
        }

        #[expect(unsafe_code, reason = "the trait's")]
        unsafe fn copy(&self, _: *const u8, _: &tch::Tensor, _: usize) -> Result<()> {
            unreachable!()
        }

        fn is_done(&self, event: &Event) -> Result<bool> {
            Ok(time(event) <= self.now)
        }

        fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
            match (time(from), time(to)) {
                (-1, _) => Err(Error::new(ErrorKind::Device, "no such event")),
                (from, to) => Ok((to - from) as f64 / 1000.0),
            }
        }

        fn synchronize(&self, _: &Event) -> Result<()> {
            unreachable!()
        }

        fn drain(&self) -> Result<()> {
            unreachable!()
        }
    }

    fn time(event: &Event) -> i64 {
        *event.downcast_ref::<i64>().unwrap()
    }

    fn marks(asked: i64, arrived: i64, begun: i64, copied: i64) -> Marks {
        let at = |time: i64| Arc::new(time) as Event;
        Marks { asked: at(asked), arrived: at(arrived), copies: vec![(at(begun), at(copied))], bytes: 10 }
    }

    fn times(all: Vec<Marks>, now: i64) -> (u64, u64, [f64; 3]) {
        let mut timing = Timing::default();
        all.into_iter().for_each(|marks| timing.push(marks));
        let Times { batches, bytes, copying, waited, waited_for_copies } = timing.settle(&At { now });
        (batches, bytes, [copying, waited, waited_for_copies].map(|time| (time * 1000.0).round()))
    }

    #[test]
    fn a_wait_is_for_the_copy_as_long_as_that_lasts() {
        for (marks, expected) in [
            // Copied beside the step before.
            (marks(100, 100, 20, 60), [40.0, 0.0, 0.0]),
            // The batch came late, and was then copied at once.
            (marks(100, 150, 130, 150), [20.0, 50.0, 20.0]),
            // The copy had begun.
            (marks(100, 150, 80, 150), [70.0, 50.0, 50.0]),
            // It was done, but the loop was told late.
            (marks(100, 150, 80, 110), [30.0, 50.0, 10.0]),
            (marks(100, 150, 20, 60), [40.0, 50.0, 0.0]),
        ] {
            assert_eq!(times(vec![marks], 1000), (1, 10, expected));
        }
    }

    #[test]
    fn what_crosses_in_two_parts_is_waited_for_in_both() {
        let two = |asked, arrived, [first, second]: [(i64, i64); 2]| {
            let mut marks = marks(asked, arrived, first.0, first.1);
            marks.copies.extend(super::tests::marks(asked, arrived, second.0, second.1).copies);
            marks
        };
        // The images were on their way when the batch was asked for, and what has no bound waited for a step in between.
        assert_eq!(times(vec![two(100, 190, [(80, 130), (170, 190)])], 1000), (1, 10, [70.0, 90.0, 50.0]));
        assert_eq!(times(vec![two(100, 110, [(20, 60), (80, 110)])], 1000), (1, 10, [70.0, 10.0, 10.0]));
    }

    #[test]
    fn batches_are_added_in_order_as_the_device_comes_past_them() {
        let all = || vec![marks(10, 20, 10, 20), marks(30, 40, 30, 40), marks(50, 60, 50, 60)];
        assert_eq!(times(all(), 15), (0, 0, [0.0; 3]));
        assert_eq!(times(all(), 45), (2, 20, [20.0; 3]));
        assert_eq!(times(all(), 60), (3, 30, [30.0; 3]));
        // One that cannot be told counts for nothing.
        assert_eq!(times(vec![marks(-1, 20, 10, 20), marks(30, 40, 30, 40)], 60), (1, 10, [10.0; 3]));
    }
}

//! Restores the planned order after a parallel stage.

use std::collections::VecDeque;

/// Takes results as they are finished, and gives them back by sequence number.
#[derive(Debug)]
pub(crate) struct Reorder<T> {
    next: u64,
    /// Slot i waits for the sequence number `next + i`.
    slots: VecDeque<Option<T>>,
}

impl<T> Default for Reorder<T> {
    fn default() -> Self {
        Self { next: 0, slots: VecDeque::new() }
    }
}

impl<T> Reorder<T> {
    /// Hands in the result of `sequence`.
    ///
    /// # Panics
    /// If this number was handed in before, which is a fault of the engine.
    pub(crate) fn put(&mut self, sequence: u64, item: T) {
        let at = sequence.checked_sub(self.next).expect("each sequence number comes once") as usize;
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, || None);
        }
        let before = self.slots[at].replace(item);
        assert!(before.is_none(), "each sequence number comes once");
    }

    /// The next result in order, if it is there.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = self.slots.front_mut()?.take()?;
        self.slots.pop_front();
        self.next += 1;
        Some(item)
    }

    /// Gives back the result that was popped last.
    pub(crate) fn put_back(&mut self, item: T) {
        self.next -= 1;
        self.slots.push_front(Some(item));
    }

    /// Whether the next result is there.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.slots.front(), Some(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_late_ticket_holds_back_its_successors() {
        let mut reorder = Reorder::default();
        reorder.put(1, "b");
        assert!(!reorder.is_ready());
        assert_eq!(reorder.pop(), None);
        reorder.put(0, "a");
        assert_eq!((reorder.pop(), reorder.pop(), reorder.pop()), (Some("a"), Some("b"), None));
    }

    proptest! {
        #[test]
        fn any_arrival_comes_out_in_order(order in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle(), pops in proptest::collection::vec(0..3usize, 40)) {
            let (mut reorder, mut out) = (Reorder::default(), Vec::new());
            for (sequence, pops) in order.into_iter().zip(pops) {
                reorder.put(sequence, sequence);
                out.extend((0..pops).filter_map(|_| reorder.pop()));
            }
            out.extend(std::iter::from_fn(|| reorder.pop()));
            prop_assert_eq!(out, (0..40).collect::<Vec<_>>());
        }
    }
}

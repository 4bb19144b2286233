//! The sequence numbers of one session.
//!
//! ```text
//!       acknowledged_below          next
//!              v                     v
//!   . . . . .  o  .  o  o  .  .  .   _       o outstanding   . done
//!              |<---- less than window ---->|
//! ```
//!
//! A number is outstanding until its write will not be sent again: it was answered, it failed, or its
//! caller went away. Then it may be acknowledged, although its answer never came. The node forgets
//! what is acknowledged and refuses it from then on, so a straggler of an abandoned write cannot
//! overtake a later write.

use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct Numbers {
    next: u64,
    outstanding: BTreeSet<u64>,
    window: u64,
}

impl Numbers {
    /// `window` is how many numbers may be in use from `acknowledged_below` on.
    pub fn new(window: u64) -> Self {
        Self {
            next: 1,
            outstanding: BTreeSet::new(),
            window: window.max(1),
        }
    }

    /// A number for a new write; `None` while the window is full.
    pub fn take(&mut self) -> Option<u64> {
        if self.next - self.acknowledged_below() >= self.window {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.outstanding.insert(number);
        Some(number)
    }

    /// The write with this number will not be sent again.
    pub fn release(&mut self, number: u64) {
        self.outstanding.remove(&number);
    }

    pub fn acknowledged_below(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }

    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledges_up_to_the_first_that_is_outstanding() {
        let mut numbers = Numbers::new(100);
        let [one, two, three] = [(); 3].map(|()| numbers.take().unwrap());
        assert_eq!((one, two, three), (1, 2, 3));
        numbers.release(two);
        assert_eq!(numbers.acknowledged_below(), 1);
        numbers.release(one);
        assert_eq!(numbers.acknowledged_below(), 3);
        numbers.release(three);
        assert_eq!(numbers.acknowledged_below(), 4);
    }

    #[test]
    fn stays_within_the_window() {
        let mut numbers = Numbers::new(3);
        let taken: Vec<u64> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!(taken, [1, 2, 3]);
        // A gap in the middle makes no room: the window begins at the first outstanding one.
        numbers.release(2);
        assert_eq!(numbers.take(), None);
        numbers.release(1);
        assert_eq!(numbers.take(), Some(4));
        assert_eq!(numbers.take(), Some(5));
        assert_eq!(numbers.take(), None);
    }
}

//! Finding the sector that makes a read of many fail, so that the guest gets its address, and everything before it.
//!
//! The disk says that a read failed, not where. So the range is read again by halves, into the same memory. An error that
//! does not come again is none: what was read in pieces is as good as what is read at once.

use serde::{Deserialize, Serialize};

/// Requests that one search makes at the most. A search through 65536 sectors takes 17; more are needed only when
/// errors come and go.
const MOST_PROBES: u32 = 200;

/// A search within a read that failed. Units are sectors from the read's first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Search {
    /// Sectors of the read.
    pub total: usize,
    /// All before this one were read.
    pub low: usize,
    /// A bad one is before this one, as far as is known.
    pub high: usize,
    pub probes: u32,
}

/// What to do after a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Probe,
    /// This sector cannot be read.
    Bad(usize),
    /// Everything was read after all.
    Readable,
}

impl Search {
    /// A search in a read of this many sectors, which failed.
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            low: 0,
            high: total,
            probes: 0,
        }
    }

    /// Whether this is a search in a read of this many sectors.
    pub(super) fn is_sound(&self, total: usize) -> bool {
        self.total == total && self.low < self.high && self.high <= total && self.probes < MOST_PROBES
    }

    /// The sectors to read next: from and to.
    pub(super) fn probe(&self) -> (usize, usize) {
        (self.low, self.low + (self.high - self.low).div_ceil(2))
    }

    /// The probe is done.
    pub(super) fn probed(&mut self, readable: bool) -> Next {
        let (from, to) = self.probe();
        self.probes += 1;
        if !readable && (to - from <= 1 || self.probes >= MOST_PROBES) {
            return Next::Bad(from);
        }
        if readable {
            self.low = to;
        } else {
            self.high = to;
        }
        if self.low >= self.total {
            return Next::Readable;
        }
        if self.low >= self.high {
            self.high = self.total;
        }
        if self.probes >= MOST_PROBES {
            return Next::Bad(self.low);
        }
        Next::Probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(total: usize, bad: &[usize]) -> (Next, u32) {
        let mut search = Search::new(total);
        loop {
            let (from, to) = search.probe();
            assert!(from < to && to <= total, "a probe reads something");
            let next = search.probed(!bad.iter().any(|sector| (from..to).contains(sector)));
            if next != Next::Probe {
                return (next, search.probes);
            }
        }
    }

    #[test]
    fn the_first_bad_sector_is_found_wherever_it_is() {
        for total in [2, 3, 8, 13] {
            for bad in 0..total {
                assert_eq!(find(total, &[bad, total - 1]).0, Next::Bad(bad), "{bad} of {total}");
            }
        }
        assert_eq!(find(65_536, &[65_535]), (Next::Bad(65_535), 17));
    }

    #[test]
    fn an_error_that_does_not_come_again_is_none() {
        assert_eq!(find(300, &[]).0, Next::Readable);
    }

    #[test]
    fn errors_that_come_and_go_end_the_search() {
        let mut search = Search::new(65_536);
        let mut flip = false;
        let end = std::iter::from_fn(|| {
            flip = !flip;
            Some(search.probed(flip))
        })
        .take(1000)
        .find(|next| *next != Next::Probe);
        assert!(end.is_some());
    }
}

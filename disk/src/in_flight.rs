//! Which guest clusters the requests in flight touch, so that no two get in each other's way.
//!
//! Reads and writes in place *use* the mapping of their clusters: any number may run side by side.
//! A request that *changes* the mapping (an allocating write, a discard) has its clusters to itself. So
//! - of two writes to one unallocated cluster the second waits for the first one's link and then overwrites in place,
//! - a cluster that is being read or written is never freed and given to somebody else meanwhile.
//!
//! Requests that conflict run in the order in which they came; nobody starves.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::planted_bug::{Bug, planted};
use crate::wait::WaitList;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Use,
    Change,
}

#[derive(Default)]
pub(crate) struct InFlight {
    entries: RefCell<Entries>,
    waiters: WaitList,
}

#[derive(Default)]
struct Entries {
    /// In order of arrival, those that wait included.
    live: Vec<Entry>,
    next_id: u64,
}

struct Entry {
    id: u64,
    range: Range<u64>,
    access: Access,
}

/// A place in the order of requests; leaving it lets the next ones go on.
pub(crate) struct InFlightGuard {
    owner: Rc<InFlight>,
    id: u64,
}

impl InFlight {
    /// Waits until nobody changes the mapping of these clusters, and keeps it so.
    pub(crate) async fn use_mapping(self: &Rc<Self>, clusters: Range<u64>) -> InFlightGuard {
        self.enter(clusters, Access::Use).await
    }

    /// Like [`InFlight::use_mapping`], for who would rather do something else than wait.
    pub(crate) fn try_use_mapping(self: &Rc<Self>, clusters: Range<u64>) -> Option<InFlightGuard> {
        let mut entries = self.entries.borrow_mut();
        if !entries.may_run(entries.next_id, &clusters, Access::Use) {
            return None;
        }
        let id = entries.add(clusters, Access::Use);
        drop(entries);
        Some(InFlightGuard {
            owner: self.clone(),
            id,
        })
    }

    /// Waits until nobody uses or changes the mapping of these clusters, and keeps it so.
    pub(crate) async fn change_mapping(self: &Rc<Self>, clusters: Range<u64>) -> InFlightGuard {
        self.enter(clusters, Access::Change).await
    }

    async fn enter(self: &Rc<Self>, range: Range<u64>, access: Access) -> InFlightGuard {
        let id = self.entries.borrow_mut().add(range.clone(), access);
        let guard = InFlightGuard {
            owner: self.clone(),
            id,
        };
        self.waiters
            .until(|| self.entries.borrow().may_run(id, &range, access).then_some(()))
            .await;
        guard
    }
}

impl Entries {
    fn add(&mut self, range: Range<u64>, access: Access) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.live.push(Entry { id, range, access });
        id
    }

    /// Whether none of those that came earlier stands in the way.
    fn may_run(&self, id: u64, range: &Range<u64>, access: Access) -> bool {
        self.live.iter().take_while(|earlier| earlier.id != id).all(|earlier| {
            if planted(Bug::NobodyWaits) || (planted(Bug::ReadersDoNotWait) && access == Access::Use) {
                return true;
            }
            let overlap = earlier.range.start < range.end && range.start < earlier.range.end;
            !overlap || (access == Access::Use && earlier.access == Access::Use)
        })
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.owner.entries.borrow_mut().live.retain(|entry| entry.id != self.id);
        self.owner.waiters.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn ready<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn conflicting_requests_run_in_order_of_arrival() {
        let in_flight = Rc::new(InFlight::default());
        let mut reader = pin!(in_flight.use_mapping(0..4));
        let reading = ready(reader.as_mut()).expect("nobody is in the way");
        let mut writer = pin!(in_flight.change_mapping(3..5));
        assert!(ready(writer.as_mut()).is_none(), "the reader uses cluster 3");
        let mut late_reader = pin!(in_flight.use_mapping(4..5));
        assert!(ready(late_reader.as_mut()).is_none(), "the writer came first");
        let mut elsewhere = pin!(in_flight.change_mapping(8..9));
        assert!(ready(elsewhere.as_mut()).is_some());
        drop(reading);
        let writing = ready(writer.as_mut()).expect("the reader is gone");
        assert!(ready(late_reader.as_mut()).is_none());
        drop(writing);
        assert!(ready(late_reader.as_mut()).is_some());
    }

    #[test]
    fn a_waiting_request_that_is_dropped_leaves_the_queue() {
        let in_flight = Rc::new(InFlight::default());
        let mut first = pin!(in_flight.change_mapping(0..1));
        let held = ready(first.as_mut()).expect("free");
        {
            let mut dropped = pin!(in_flight.change_mapping(0..1));
            assert!(ready(dropped.as_mut()).is_none());
        }
        drop(held);
        let mut next = pin!(in_flight.change_mapping(0..1));
        assert!(ready(next.as_mut()).is_some());
    }
}

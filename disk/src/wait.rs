//! Waiting for a condition among the tasks of one thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait for something to change. Whoever changes it wakes them, and each looks again for itself.
#[derive(Default)]
pub(crate) struct WaitList {
    wakers: RefCell<Vec<Waker>>,
}

impl WaitList {
    /// Waits until `condition` yields a value. It is tried at once and after each [`WaitList::wake_all`].
    pub(crate) async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                self.wakers.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Lets every waiting task look again.
    pub(crate) fn wake_all(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

//! The local executor: every request, and what must outlive one, is a task on it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use async_executor::{LocalExecutor, Task};

use crate::DiskError;
use crate::storage::Transfer;
use crate::workers::Workers;

/// The executor of one engine.
///
/// A *clone* is a handle: it starts tasks, and does not keep the executor alive. Tasks hold such handles themselves, by way of the
/// images that they work on, so an executor that every handle kept alive would never end. When the original is dropped its tasks
/// are, too, wherever they are, and what is started by way of a handle then is dropped at once.
pub(crate) struct Tasks {
    executor: Weak<LocalExecutor<'static>>,
    /// Not in a clone.
    own: Option<Rc<LocalExecutor<'static>>>,
    live: Rc<Cell<usize>>,
    /// Who does what would hold up this thread. Nobody in a simulation: there this thread does it, at a time that only the seed decides.
    workers: Option<Rc<Workers>>,
}

impl Default for Tasks {
    /// An executor on one thread alone.
    fn default() -> Self {
        Self::new(None)
    }
}

impl Clone for Tasks {
    fn clone(&self) -> Self {
        Self {
            executor: self.executor.clone(),
            own: None,
            live: self.live.clone(),
            workers: self.workers.clone(),
        }
    }
}

impl Tasks {
    /// An executor, with others to do what takes long.
    pub(crate) fn new(workers: Option<Rc<Workers>>) -> Self {
        let own = Rc::new(LocalExecutor::new());
        Self {
            executor: Rc::downgrade(&own),
            own: Some(own),
            live: Rc::default(),
            workers,
        }
    }

    /// Runs `future` to its end, on its own.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.spawn_cancellable(future).detach();
    }

    /// Runs `future` until it ends, or until the task that this returns is dropped.
    pub(crate) fn spawn_cancellable<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let live = Live::new(&self.live);
        let counted = async move {
            let _live = live;
            future.await
        };
        match self.executor.upgrade() {
            Some(executor) => executor.spawn(counted),
            // Its executor ends with this expression, and so does the task.
            None => LocalExecutor::new().spawn(counted),
        }
    }

    /// Does `work`, which takes long and waits for nothing, on another thread if there is one. `None` if it panicked there.
    pub(crate) async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match &self.workers {
            Some(workers) => workers.run(work).await,
            None => Some(work()),
        }
    }

    /// Runs `future` to its end, even when the caller stops waiting for it half-way.
    pub(crate) fn to_the_end<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> ToTheEnd<T> {
        ToTheEnd(Some(self.spawn_cancellable(future)))
    }

    /// Tasks that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.live.get()
    }

    /// Runs every task that can go on. Returns whether there was one.
    pub(crate) fn run(&self) -> bool {
        let Some(executor) = self.executor.upgrade() else {
            return false;
        };
        let mut progress = false;
        while executor.try_tick() {
            progress = true;
        }
        progress
    }

    /// Drops every task, wherever it is. Nothing can be started afterwards.
    pub(crate) fn abandon(&mut self) {
        self.own = None;
    }

    /// Awaits `transfer` and gives `kept` back when it is done. When the caller stops waiting, the transfer still
    /// runs to its end, and `kept` (the memory, clusters or place in the order that it needs) lives until then.
    pub(crate) fn finish<T: 'static>(&self, transfer: Transfer, kept: T) -> Finish<T> {
        Finish {
            tasks: self.clone(),
            running: Some((transfer, kept)),
        }
    }
}

/// Counts a task until its future is dropped: at its end, or before.
struct Live(Rc<Cell<usize>>);

impl Live {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// See [`Tasks::to_the_end`].
pub(crate) struct ToTheEnd<T>(Option<Task<T>>);

impl<T> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Some(task) => Pin::new(task).poll(context),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

/// See [`Tasks::finish`].
pub(crate) struct Finish<T: 'static> {
    tasks: Tasks,
    running: Option<(Transfer, T)>,
}

impl<T: Unpin> Future for Finish<T> {
    type Output = Result<T, DiskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((transfer, _)) = &mut self.running else {
            return Poll::Pending;
        };
        let Poll::Ready(result) = Pin::new(transfer).poll(context) else {
            return Poll::Pending;
        };
        let kept = self.running.take().map(|(_, kept)| kept);
        match (result, kept) {
            (Ok(()), Some(kept)) => Poll::Ready(Ok(kept)),
            (Err(error), _) => Poll::Ready(Err(error)),
            (Ok(()), None) => Poll::Pending,
        }
    }
}

impl<T: 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        if let Some((transfer, kept)) = self.running.take() {
            self.tasks.spawn(async move {
                if let Err(error) = transfer.await {
                    tracing::debug!(%error, "a transfer failed after its request was dropped");
                }
                drop(kept);
            });
        }
    }
}

//! Work that would hold up the engine's thread, done by a few others: decompression.
//!
//! What is under way is bounded, so that a guest which reads nothing but compressed clusters takes up a bounded amount of memory here. A
//! piece of work owns what it needs: when nobody waits for it any more it still runs to its end, and its result is dropped.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::doorbell::Doorbell;
use crate::wait::WaitList;

/// The most threads.
const MAX_THREADS: usize = 4;

/// Pieces of work under way for each thread: one in its hands, one that it finds when it is done.
const DEPTH: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that are started when there is work for them.
pub(crate) struct Workers {
    doorbell: Arc<Doorbell>,
    jobs: RefCell<Option<Sender<Job>>>,
    queue: Arc<Mutex<Receiver<Job>>>,
    /// Pieces of work that are done, and that the engine has not taken note of.
    finished: Arc<AtomicUsize>,
    under_way: Cell<usize>,
    max_threads: usize,
    threads: RefCell<Vec<thread::JoinHandle<()>>>,
    /// Woken when a piece of work is done.
    changed: WaitList,
}

impl Workers {
    /// Threads that ring when they have finished something.
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Self {
        let (jobs, queue) = channel();
        Self {
            doorbell,
            jobs: RefCell::new(Some(jobs)),
            queue: Arc::new(Mutex::new(queue)),
            finished: Arc::default(),
            under_way: Cell::new(0),
            max_threads: thread::available_parallelism().map_or(1, |count| count.get().min(MAX_THREADS)),
            threads: RefCell::default(),
            changed: WaitList::default(),
        }
    }

    /// Does `work` on another thread. `None` if it panicked.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let may_start = || self.under_way.get() < self.max_threads * DEPTH;
        self.changed.until(|| may_start().then_some(())).await;
        self.under_way.update(|count| count + 1);
        let result = Arc::new(Mutex::new(None));
        let (slot, finished, doorbell) = (result.clone(), self.finished.clone(), self.doorbell.clone());
        let job = move || {
            let outcome = catch_unwind(AssertUnwindSafe(work)).ok();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            finished.fetch_add(1, Ordering::Release);
            doorbell.ring();
        };
        self.start(Box::new(job));
        let taken = || result.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.changed.until(taken).await
    }

    /// Takes note of what is done. Returns how much that is.
    pub(crate) fn reap(&self) -> usize {
        let finished = self.finished.swap(0, Ordering::Acquire);
        if finished > 0 {
            self.under_way.update(|count| count - finished);
            self.changed.wake_all();
        }
        finished
    }

    fn start(&self, job: Job) {
        let mut threads = self.threads.borrow_mut();
        if threads.len() < self.under_way.get().min(self.max_threads) {
            let queue = self.queue.clone();
            let name = format!("disk-work-{}", threads.len());
            match thread::Builder::new().name(name).spawn(move || work(&queue)) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::warn!(%error, "no other thread decompresses"),
            }
        }
        match &*self.jobs.borrow() {
            Some(jobs) if !threads.is_empty() => drop(jobs.send(job)),
            // Slower, but it must be done.
            _ => job(),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs.take();
        for thread in self.threads.take() {
            // A panic is caught where it happens.
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::tasks::Tasks;

    fn settle(tasks: &Tasks, workers: &Workers) {
        while tasks.live() > 0 {
            tasks.run();
            if workers.reap() == 0 {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn work_is_bounded_and_every_result_arrives() {
        let tasks = Tasks::default();
        let workers = Rc::new(Workers::new(Arc::new(Doorbell::new().expect("an eventfd"))));
        let sum = Rc::new(Cell::new(0u64));
        for number in 0..200 {
            let (workers, sum) = (workers.clone(), sum.clone());
            tasks.spawn(async move {
                let square = workers.run(move || number * number).await.expect("does not panic");
                sum.set(sum.get() + square);
            });
        }
        tasks.run();
        assert!(workers.under_way.get() <= workers.max_threads * DEPTH);
        settle(&tasks, &workers);
        let expected: u64 = (0..200).map(|number| number * number).sum();
        assert_eq!(sum.get(), expected);
    }

    #[test]
    fn work_that_panics_or_that_nobody_waits_for_holds_nobody_up() {
        let tasks = Tasks::default();
        let workers = Rc::new(Workers::new(Arc::new(Doorbell::new().expect("an eventfd"))));
        let panicked = Rc::new(Cell::new(false));
        let (slot, same) = (panicked.clone(), workers.clone());
        tasks.spawn(async move {
            let outcome: Option<()> = same.run(|| std::panic::resume_unwind(Box::new("on purpose"))).await;
            slot.set(outcome.is_none());
        });
        for _ in 0..50 {
            let same = workers.clone();
            let task = tasks.spawn_cancellable(async move { same.run(|| ()).await });
            tasks.run();
            drop(task);
        }
        settle(&tasks, &workers);
        assert!(panicked.get());
        let same = workers.clone();
        tasks.spawn(async move { assert_eq!(same.run(|| 7).await, Some(7)) });
        settle(&tasks, &workers);
    }
}

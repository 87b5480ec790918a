//! Requests that go on to their disk a little later: what a throttle and injected latency stand on.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Disk, Request};

/// Holds requests back, and submits each to `disk` when its time has come, on a thread of its own.
pub(crate) struct Delay {
    shared: Arc<Shared>,
    /// Started by the first request that has to wait.
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// By the time at which they are due, then by order of arrival.
    waiting: BTreeMap<(Instant, u64), Request>,
    arrivals: u64,
    closed: bool,
}

impl Delay {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        let shared = Shared {
            disk,
            queue: Mutex::default(),
            changed: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            thread: Mutex::new(None),
        }
    }

    /// Submits `request` after `wait`; at once if that is nothing.
    pub(crate) fn submit_after(&self, wait: Duration, request: Request) {
        if wait.is_zero() {
            self.shared.disk.submit(request);
            return;
        }
        let Some(due) = Instant::now().checked_add(wait) else {
            // No clock reaches that far; nobody would live to see the answer.
            self.shared.disk.submit(request);
            return;
        };
        if !self.start_thread() {
            self.shared.disk.submit(request);
            return;
        }
        let mut queue = self.shared.lock();
        let arrival = queue.arrivals;
        queue.arrivals += 1;
        queue.waiting.insert((due, arrival), request);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Returns whether there is a thread that will submit what waits.
    fn start_thread(&self) -> bool {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = self.shared.clone();
            match thread::Builder::new()
                .name("disk delay".into())
                .spawn(move || shared.run())
            {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "no thread for delayed requests; they are not delayed"),
            }
        }
        thread.is_some()
    }
}

impl Drop for Delay {
    /// What waits goes on at once: a request that was accepted is answered.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of delayed requests has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let first = queue.waiting.first_key_value().map(|(key, _)| *key);
            queue = match first {
                None if queue.closed => return,
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(key) if queue.closed || key.0 <= now => {
                    let request = queue.waiting.remove(&key);
                    drop(queue);
                    if let Some(request) = request {
                        self.disk.submit(request);
                    }
                    self.lock()
                }
                Some((due, _)) => {
                    let woken = self.changed.wait_timeout(queue, due - now);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

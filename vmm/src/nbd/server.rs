//! All clients of one disk, on the event loop.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk::{Disk, Engine, Request as DiskRequest};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use nbd::Export;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::connection::{Connection, Next};
use super::finished::{Answer, Finished};
use super::job::{Capabilities, Job};
use super::listener::Listener;
use crate::signals::{Signals, Wish};

/// When the server is told to end, clients get so long to take the replies to what they had in flight.
const FAREWELL: Duration = Duration::from_secs(10);

/// How often the clock is looked at while something waits for it.
const TICK: Duration = Duration::from_secs(1);

/// What an event is about; clients come after these.
mod token {
    pub(super) const ENGINE: u32 = 0;
    pub(super) const LISTENER: u32 = 1;
    pub(super) const SIGNALS: u32 = 2;
    pub(super) const TIMER: u32 = 3;
    pub(super) const FINISHED: u32 = 4;
    pub(super) const FIRST_CLIENT: u32 = 16;
}

/// How a disk is served.
pub struct Service {
    /// What clients see.
    pub export: Export,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The most clients at a time; others wait.
    pub max_clients: usize,
    /// Go on when the last client has left.
    pub persistent: bool,
}

/// Serves `disk` until a signal comes, or until the last client has left. What is in flight then is finished; making it durable is up to
/// whoever closes the engine.
pub fn serve(
    engine: &Engine,
    disk: Arc<dyn Disk>,
    listener: Listener,
    signals: &Signals,
    service: Service,
) -> anyhow::Result<()> {
    let server = Server {
        engine,
        disk,
        listener: Some(listener),
        signals,
        service,
        timer: timer().context("Cannot make a timer")?,
        ticking: false,
        finished: Arc::new(Finished::new().context("Cannot make an eventfd")?),
        in_flight: 0,
        clients: HashMap::new(),
        next_token: token::FIRST_CLIENT,
        listening: false,
        paused: false,
        was_used: false,
        farewell: None,
        failure: None,
    };
    let mut manager = EventManager::new().context("Cannot make the event loop")?;
    let id = manager.add_subscriber(server);
    loop {
        let server = manager.subscriber_mut(id).ok().context("The server is gone")?;
        if let Some(failure) = server.failure.take() {
            return Err(failure);
        }
        if server.is_over() {
            return Ok(());
        }
        manager.run().context("The event loop failed")?;
    }
}

struct Server<'a> {
    engine: &'a Engine,
    disk: Arc<dyn Disk>,
    /// `None` once no more clients are wanted.
    listener: Option<Listener>,
    signals: &'a Signals,
    service: Service,
    timer: OwnedFd,
    ticking: bool,
    finished: Arc<Finished>,
    /// Commands that the disk has not answered, those of clients that are gone included.
    in_flight: usize,
    clients: HashMap<u32, Client>,
    next_token: u32,
    /// The loop waits for new clients.
    listening: bool,
    /// A client could not be let in; the next tick tries again.
    paused: bool,
    /// A client has come as far as to use the disk.
    was_used: bool,
    /// Set when the server was told to end: until when clients may take their replies.
    farewell: Option<Instant>,
    failure: Option<anyhow::Error>,
}

struct Client {
    connection: Connection,
    /// What the loop waits for on its socket.
    interest: EventSet,
}

fn timer() -> rustix::io::Result<OwnedFd> {
    rustix::time::timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )
}

/// A descriptor that event-manager can register.
struct Borrowed<'a>(BorrowedFd<'a>);

impl AsRawFd for Borrowed<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl MutEventSubscriber for Server<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        let registered = [
            (self.engine.event_fd(), token::ENGINE),
            (self.timer.as_fd(), token::TIMER),
            (self.finished.event(), token::FINISHED),
        ]
        .into_iter()
        .try_for_each(|(fd, token)| ops.add(Events::with_data(&Borrowed(fd), token, EventSet::IN)))
        .and_then(|()| ops.add(Events::with_data(self.signals, token::SIGNALS, EventSet::IN)));
        if let Err(error) = registered {
            self.failure = Some(anyhow::anyhow!("The event loop cannot wait on a descriptor: {error:?}"));
        }
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            // Every turn polls the engine.
            token::ENGINE => {}
            token::LISTENER => self.accept(ops),
            token::SIGNALS => self.signalled(ops),
            token::TIMER => self.tick(ops),
            token::FINISHED => {
                self.finished.woken();
            }
            client => self.client_event(client, events.event_set(), ops),
        }
        self.turn(ops);
        self.settle(ops);
    }
}

impl Server<'_> {
    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        self.listener.is_none() && self.clients.is_empty() && self.in_flight == 0
    }

    /// Lets in those who wait, as far as there is room.
    fn accept(&mut self, ops: &mut EventOps) {
        while let Some(listener) = &self.listener
            && self.clients.len() < self.service.max_clients
        {
            match listener.accept() {
                Ok(Some((socket, peer))) => {
                    tracing::info!(peer, "a client has come");
                    self.admit(Connection::new(socket, peer), ops);
                }
                Ok(None) => return,
                // A client that was gone before it was let in.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot let a client in");
                    // The reason may last.
                    self.paused = true;
                    self.stop_listening(ops);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, connection: Connection, ops: &mut EventOps) {
        let token = self.next_token;
        self.next_token = self.next_token.checked_add(1).unwrap_or(token::FIRST_CLIENT);
        let interest = EventSet::IN;
        if let Err(error) = ops.add(Events::with_data(connection.socket(), token, interest)) {
            tracing::warn!(?error, "cannot wait for a client");
            return;
        }
        self.clients.insert(token, Client { connection, interest });
        self.serve_client(token, ops);
    }

    fn signalled(&mut self, ops: &mut EventOps) {
        // There is no machine to go on with, and nothing is counted.
        let Some(Wish::End(signal)) = self.signals.read() else {
            return;
        };
        tracing::info!(signal, "told to end");
        if self.farewell.is_some() {
            // Told twice: nobody is waited for but the disk.
            self.farewell = Some(Instant::now());
            return;
        }
        self.farewell = Some(Instant::now() + FAREWELL);
        self.end(ops);
    }

    /// Takes no more clients and no more requests.
    fn end(&mut self, ops: &mut EventOps) {
        self.stop_listening(ops);
        self.listener = None;
        for token in self.clients.keys().copied().collect::<Vec<_>>() {
            if let Some(client) = self.clients.get_mut(&token) {
                client.connection.leave();
                client.connection.forget_unfinished();
            }
            self.serve_client(token, ops);
        }
    }

    /// Closes those who have run out of time.
    fn tick(&mut self, ops: &mut EventOps) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.paused = false;
        let now = Instant::now();
        let late: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| client.connection.is_late(now) || self.farewell.is_some_and(|until| now >= until))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.close(token, "it took too long", ops);
        }
    }

    fn client_event(&mut self, token: u32, events: EventSet, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if hung_up && !events.contains(EventSet::IN) {
            return self.close(token, "it has hung up", ops);
        }
        if events.contains(EventSet::IN) {
            client.connection.set_readable();
        }
        self.serve_client(token, ops);
    }

    /// Does all for a client that can be done without waiting.
    fn serve_client(&mut self, token: u32, ops: &mut EventOps) {
        loop {
            let Some(client) = self.clients.get_mut(&token) else {
                return;
            };
            match client.connection.next(&self.service.export, self.service.capabilities) {
                Next::Job(job) => self.go_on(token, job),
                Next::Wait => break,
                Next::Gone(why) => return self.close(token, &why.to_string(), ops),
            }
        }
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        self.was_used |= client.connection.has_negotiated();
        if let Err(error) = client.connection.flush() {
            return self.close(token, &error.to_string(), ops);
        }
        if client.connection.is_over() {
            return self.close(token, "it has left", ops);
        }
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, client.connection.wants_input());
        interest.set(EventSet::OUT, client.connection.wants_output());
        if interest != client.interest {
            client.interest = interest;
            if let Err(error) = ops.modify(Events::with_data(client.connection.socket(), token, interest)) {
                self.close(token, &format!("{error:?}"), ops);
            }
        }
    }

    /// Starts a job's next command, or answers.
    fn go_on(&mut self, token: u32, mut job: Box<Job>) {
        let Some(command) = job.next_command() else {
            if let Some(client) = self.clients.get_mut(&token) {
                client.connection.answer(job.succeed());
            }
            return;
        };
        self.in_flight += 1;
        let finished = self.finished.clone();
        self.disk.submit(DiskRequest {
            command,
            done: Box::new(move |outcome| {
                finished.push(Answer {
                    client: token,
                    job,
                    outcome,
                });
            }),
        });
    }

    /// Runs the engine, and passes on what it has finished, until nothing goes on.
    fn turn(&mut self, ops: &mut EventOps) {
        loop {
            self.engine.poll();
            let finished = self.finished.take();
            if finished.is_empty() {
                return;
            }
            let mut served: Vec<u32> = Vec::new();
            for Answer {
                client: token,
                job,
                outcome,
            } in finished
            {
                self.in_flight -= 1;
                let Some(client) = self.clients.get_mut(&token) else {
                    // Whoever asked is gone.
                    continue;
                };
                match outcome {
                    Ok(()) => self.go_on(token, job),
                    Err(error) => {
                        tracing::warn!(%error, "a request failed");
                        client.connection.answer(job.fail(&error));
                    }
                }
                if !served.contains(&token) {
                    served.push(token);
                }
            }
            for token in served {
                self.serve_client(token, ops);
            }
        }
    }

    fn close(&mut self, token: u32, why: &str, ops: &mut EventOps) {
        let Some(client) = self.clients.remove(&token) else {
            return;
        };
        tracing::info!(peer = client.connection.peer(), why, "a client is gone");
        if let Err(error) = ops.remove(Events::with_data(client.connection.socket(), token, client.interest)) {
            tracing::warn!(?error, "a client's socket stays registered");
        }
    }

    fn stop_listening(&mut self, ops: &mut EventOps) {
        if let Some(listener) = &self.listener
            && self.listening
        {
            self.listening = false;
            if let Err(error) = ops.remove(Events::with_data(listener, token::LISTENER, EventSet::IN)) {
                tracing::warn!(?error, "the listening socket stays registered");
            }
        }
    }

    /// Makes what the loop waits for what there is to wait for.
    fn settle(&mut self, ops: &mut EventOps) {
        let in_use = self.clients.values().any(|client| client.connection.has_negotiated());
        if self.was_used && !in_use && !self.service.persistent && self.listener.is_some() {
            self.farewell = Some(Instant::now());
            self.end(ops);
        }
        let has_room = self.clients.len() < self.service.max_clients;
        if !has_room {
            self.stop_listening(ops);
        } else if let Some(listener) = &self.listener
            && !self.listening
            && !self.paused
        {
            match ops.add(Events::with_data(listener, token::LISTENER, EventSet::IN)) {
                Ok(()) => self.listening = true,
                Err(error) => self.failure = Some(anyhow::anyhow!("Cannot wait for clients: {error:?}")),
            }
        }
        let negotiating = self.clients.values().any(|client| !client.connection.has_negotiated());
        self.set_ticking(negotiating || self.paused || self.farewell.is_some());
    }

    fn set_ticking(&mut self, ticking: bool) {
        if self.ticking == ticking {
            return;
        }
        self.ticking = ticking;
        let period = Timespec {
            tv_sec: if ticking { TICK.as_secs() as i64 } else { 0 },
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        if let Err(error) = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            tracing::warn!(%error, "the timer cannot be set");
        }
    }
}

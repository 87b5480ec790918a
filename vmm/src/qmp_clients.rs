//! The control socket's place in the event loop.

use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::announcer::Announcer;
use crate::control::Control;
use crate::event_loop::listen;
use crate::qmp::Server;

/// Serves the clients of the control socket while a machine runs.
pub struct Clients<'a> {
    /// Their connections, which outlive the machine.
    pub server: &'a mut Server,
    /// What they command.
    pub control: Control<'a>,
    /// Has what they are told.
    pub announcer: &'a Announcer,
}

impl MutEventSubscriber for Clients<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.server.listener().as_raw_fd() {
            self.accept(ops);
        } else if events.fd() == self.announcer.event().as_raw_fd() {
            self.tell(ops);
        } else {
            self.serve(events.fd(), ops);
            // What a command did is told at once.
            self.tell(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, self.server.listener(), self.control.power);
        listen(ops, self.announcer.event(), self.control.power);
        for client in self.server.clients() {
            self.watch(client, ops);
        }
        self.accept(ops);
    }
}

impl Clients<'_> {
    fn accept(&mut self, ops: &mut EventOps) {
        while let Some(client) = self.server.accept() {
            self.watch(client, ops);
        }
    }

    fn watch(&mut self, client: RawFd, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(client, self.interest(client))) {
            tracing::warn!(?error, "a client of the control socket is lost");
            self.server.forget(client);
        }
    }

    fn serve(&mut self, client: RawFd, ops: &mut EventOps) {
        if self.server.serve(client, &self.control) {
            self.look_for(client, ops);
        } else {
            let _ = ops.remove(Events::empty_raw(client));
            self.server.forget(client);
        }
    }

    fn tell(&mut self, ops: &mut EventOps) {
        for event in self.announcer.take() {
            for client in self.server.tell(&event) {
                self.look_for(client, ops);
            }
        }
    }

    /// Waits for what the client does next.
    fn look_for(&self, client: RawFd, ops: &mut EventOps) {
        if let Err(error) = ops.modify(Events::new_raw(client, self.interest(client))) {
            tracing::debug!(?error, "a client of the control socket is not heard");
        }
    }

    /// Whoever does not take the answers is not asked for more.
    fn interest(&self, client: RawFd) -> EventSet {
        if self.server.wants_room(client) {
            EventSet::OUT
        } else {
            EventSet::IN
        }
    }
}

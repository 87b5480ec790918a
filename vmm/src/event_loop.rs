//! The main thread's loop: disk completions, starts of DMA, console input, signals, and the end of the machine.

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::Context;
use devices::serial::Serial;
use disk::Engine;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{PollFd, PollFlags};

use crate::console::{Command, Console, Input, Output};
use crate::exit_code::Ending;
use crate::power::PowerSwitch;
use crate::qmp_clients::Clients;
use crate::signals::{Signals, Wish};
use crate::vm::RunningVm;

/// Runs until the machine is off. `report` is called whenever somebody asks for the metrics.
pub fn run(
    engine: &Engine,
    console: &mut Console,
    vm: &RunningVm,
    signals: &Signals,
    power: &PowerSwitch,
    report: &dyn Fn(),
    clients: Option<Clients<'_>>,
) -> anyhow::Result<()> {
    let mut manager: EventManager<Box<dyn MutEventSubscriber + '_>> =
        EventManager::new().context("Cannot make the event loop")?;
    manager.add_subscriber(Box::new(DiskEvents { engine, power }));
    manager.add_subscriber(Box::new(StartEvents { vm, engine, power }));
    manager.add_subscriber(Box::new(PauseEvents { vm, power }));
    manager.add_subscriber(Box::new(SignalEvents {
        signals,
        vm,
        power,
        report,
    }));
    manager.add_subscriber(Box::new(PowerEvents { power }));
    manager.add_subscriber(Box::new(InputEvents {
        input: &mut console.input,
        output: &console.output,
        serial: vm.serial(),
        vm,
        power,
        listening: Listening::No,
    }));
    if let Some(clients) = clients {
        manager.add_subscriber(Box::new(clients));
    }
    while !power.is_off() {
        manager.run().context("The event loop failed")?;
    }
    Ok(())
}

/// Runs the engine until `is_idle`, whatever a signal says: what is in flight belongs to a machine that is gone.
pub fn run_engine_until(engine: &Engine, is_idle: impl Fn() -> bool) -> anyhow::Result<()> {
    engine.poll();
    while !is_idle() {
        let mut wait = [PollFd::from_borrowed_fd(engine.event_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut wait, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => engine.poll(),
            Err(error) => return Err(error).context("Cannot wait for the disk engine"),
        }
    }
    Ok(())
}

/// Adds a descriptor. It only fails when a limit of the host is reached, and then the machine cannot run.
pub(crate) fn listen(ops: &mut EventOps, fd: &impl AsRawFd, power: &PowerSwitch) {
    if let Err(error) = ops.add(Events::new(fd, EventSet::IN)) {
        power.end(Ending::Failure(anyhow::anyhow!(
            "The event loop cannot wait on a descriptor: {error:?}"
        )));
    }
}

struct DiskEvents<'a> {
    engine: &'a Engine,
    power: &'a PowerSwitch,
}

/// A descriptor that event-manager can register.
struct Borrowed<'a>(BorrowedFd<'a>);

impl AsRawFd for Borrowed<'_> {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl MutEventSubscriber for DiskEvents<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.engine.poll();
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, &Borrowed(self.engine.event_fd()), self.power);
        // What was submitted before anyone listened.
        self.engine.poll();
    }
}

/// A guest started a bus master. The engine is polled at once, and not when it wakes the loop by the request.
struct StartEvents<'a> {
    vm: &'a RunningVm,
    engine: &'a Engine,
    power: &'a PowerSwitch,
}

impl MutEventSubscriber for StartEvents<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.engine.expect_requests();
        self.vm.ports().take_starts();
        self.engine.poll();
    }

    fn init(&mut self, ops: &mut EventOps) {
        for event in self.vm.ports().start_events() {
            listen(ops, event, self.power);
        }
    }
}

/// A drive pauses the machine.
struct PauseEvents<'a> {
    vm: &'a RunningVm,
    power: &'a PowerSwitch,
}

impl MutEventSubscriber for PauseEvents<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.vm.report_pause();
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, self.vm.stops().event(), self.power);
    }
}

struct SignalEvents<'a> {
    signals: &'a Signals,
    vm: &'a RunningVm,
    power: &'a PowerSwitch,
    report: &'a dyn Fn(),
}

impl MutEventSubscriber for SignalEvents<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        match self.signals.read() {
            Some(Wish::End(signal)) => self.power.end(Ending::Signal(signal)),
            Some(Wish::Continue) => self.vm.resume(),
            Some(Wish::Metrics) => (self.report)(),
            None => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, self.signals, self.power);
    }
}

/// Only wakes the loop, which then looks at the switch.
struct PowerEvents<'a> {
    power: &'a PowerSwitch,
}

impl MutEventSubscriber for PowerEvents<'_> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, self.power.event(), self.power);
    }
}

/// Whether the loop waits on the input's source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listening {
    /// Not now: the guest has to take what was read first, or input has ended.
    No,
    /// Yes.
    Yes,
    /// There is nothing to wait on: the source is a file, which is always readable.
    NeedNot,
}

struct InputEvents<'a> {
    input: &'a mut Input,
    output: &'a Output,
    serial: &'a Serial,
    vm: &'a RunningVm,
    power: &'a PowerSwitch,
    listening: Listening,
}

impl MutEventSubscriber for InputEvents<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.input.room().as_raw_fd() {
            // An empty counter means that somebody else has seen the room already.
            let _ = self.input.room().read();
            self.input.feed(self.serial);
        } else {
            self.read();
        }
        self.pump(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, &**self.input.room(), self.power);
        // What the machine before this one left.
        self.input.feed(self.serial);
        self.pump(ops);
    }
}

impl InputEvents<'_> {
    fn read(&mut self) {
        for command in self.input.read(self.output) {
            match command {
                Command::Quit => self.power.end(Ending::Quit),
                Command::Continue => self.vm.resume(),
                Command::Eject => self.output.push(self.vm.press_eject_button().as_bytes()),
                Command::Help => {}
            }
        }
        self.input.feed(self.serial);
    }

    /// Listens to the source exactly while nothing waits for the guest.
    fn pump(&mut self, ops: &mut EventOps) {
        while self.listening == Listening::NeedNot && self.input.wants_more() {
            self.read();
        }
        match (self.listening, self.input.wants_more()) {
            (Listening::No, true) => self.begin(ops),
            (Listening::Yes, false) => self.pause(ops),
            _ => {}
        }
    }

    fn begin(&mut self, ops: &mut EventOps) {
        let Some(source) = self.input.source() else { return };
        match ops.add(Events::new(source, EventSet::IN)) {
            Ok(()) => self.listening = Listening::Yes,
            // epoll takes no regular files (epoll_ctl(2), EPERM), nor does /dev/null poll.
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                self.listening = Listening::NeedNot;
                self.pump(ops);
            }
            Err(error) => tracing::warn!("No console input: {error:?}"),
        }
    }

    fn pause(&mut self, ops: &mut EventOps) {
        self.listening = Listening::No;
        if let Some(source) = self.input.source()
            && let Err(error) = ops.remove(Events::new(source, EventSet::IN))
        {
            tracing::debug!(?error, "console input not paused");
        }
    }
}

//! A host that stays up while programs in it come and go: what starts in seconds need not be started for each.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::direct;
use crate::nested::{END_OF_PROGRAM, Nested};
use crate::run::{End, Event, Input, Session};

/// Made by [`crate::Host::stand`]. One program runs in it at a time; shell commands run beside it.
pub struct StandingHost {
    place: Place,
    recorded: Option<PathBuf>,
    /// The program's last words on the console may come behind the report of its end.
    ended: Option<End>,
    console_ended: bool,
    /// What came and was not yet looked at.
    rest: VecDeque<Event>,
    stderr: Vec<u8>,
}

enum Place {
    Here {
        work: PathBuf,
        program: Option<(Box<dyn Session>, Receiver<Event>)>,
    },
    Nested {
        nested: Box<Nested>,
        events: Receiver<Event>,
        exchange: PathBuf,
    },
}

/// What a running program did.
#[derive(Debug)]
pub enum Happening {
    /// It printed this.
    Console(Vec<u8>),
    /// It has ended, and printed all that it will.
    Ended(End),
    /// Nothing, for as long as was to be waited.
    Nothing,
}

/// A shell command has this long.
const PATIENCE: Duration = Duration::from_secs(300);

impl StandingHost {
    /// The largest file that can be brought back.
    pub(crate) const EXCHANGE_BYTES: u64 = 1 << 30;

    /// What the nested host calls its fourth disk.
    const RECORDED: &str = "/dev/vdd";

    pub(crate) fn here(work: PathBuf, recorded: Option<&Path>) -> Self {
        Self::of(Place::Here { work, program: None }, recorded.map(Path::to_owned))
    }

    /// `recorded`: whether it has that disk.
    pub(crate) fn nested(nested: Nested, events: Receiver<Event>, exchange: PathBuf, recorded: bool) -> Self {
        let place = Place::Nested {
            nested: Box::new(nested),
            events,
            exchange,
        };
        Self::of(place, recorded.then(|| PathBuf::from(Self::RECORDED)))
    }

    fn of(place: Place, recorded: Option<PathBuf>) -> Self {
        Self {
            place,
            recorded,
            ended: None,
            console_ended: false,
            rest: VecDeque::new(),
            stderr: Vec::new(),
        }
    }

    /// Where programs find the file of [`crate::Host::stand_on`].
    pub fn recorded(&self) -> Option<&Path> {
        self.recorded.as_deref()
    }

    /// Starts a program in the work folder, without input. The one before has ended.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&mut self, command: &[String]) -> Result<()> {
        self.ended = None;
        self.stderr.clear();
        match &mut self.place {
            Place::Here { work, program } => {
                self.console_ended = false;
                *program = Some(direct::start(command, work, Input::Null)?);
                Ok(())
            }
            Place::Nested { nested, .. } => {
                self.console_ended = false;
                nested.launch_marked(command)
            }
        }
    }

    /// What the program does next, within `wait`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn next(&mut self, wait: Duration) -> Result<Happening> {
        let deadline = Instant::now() + wait;
        loop {
            let event = match self.rest.pop_front() {
                Some(event) => Some(event),
                None => match self.ended.filter(|_| self.console_ended) {
                    Some(end) => return Ok(Happening::Ended(end)),
                    None => self.event(deadline)?,
                },
            };
            match event {
                None => return Ok(Happening::Nothing),
                Some(Event::Console(mut bytes)) => {
                    if matches!(self.place, Place::Nested { .. }) && bytes.contains(&END_OF_PROGRAM) {
                        self.console_ended = true;
                        bytes.retain(|byte| *byte != END_OF_PROGRAM);
                    }
                    if !bytes.is_empty() {
                        return Ok(Happening::Console(bytes));
                    }
                }
                Some(Event::Ended(end)) => self.take_end(end)?,
                Some(Event::Stderr(bytes)) => self.stderr.extend(bytes),
                Some(Event::HostLost(why)) => bail!("The host is gone: {why}\n{}", self.stderr()),
                Some(Event::HostUp | Event::Started | Event::Said(_)) => {}
            }
        }
    }

    /// On this machine the readers have had everything when they are done, and not before.
    fn take_end(&mut self, end: End) -> Result<()> {
        self.ended = Some(end);
        if let Place::Here { program, .. } = &mut self.place
            && let Some((session, events)) = program.take()
        {
            session.finish()?;
            self.rest.extend(events.try_iter());
            self.console_ended = true;
        }
        Ok(())
    }

    fn event(&mut self, deadline: Instant) -> Result<Option<Event>> {
        let events = match &self.place {
            Place::Here { program, .. } => &program.as_ref().context("No program was started")?.1,
            Place::Nested { events, .. } => events,
        };
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("The host is gone\n{}", self.stderr()),
        }
    }

    /// Kills the program by SIGKILL.
    ///
    /// # Errors
    /// If the host takes no command.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Has a machine that a disk error has paused go on, by SIGCONT.
    ///
    /// # Errors
    /// If the host takes no command.
    pub fn go_on(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.place {
            Place::Here { program, .. } => program.as_mut().map_or(Ok(()), |(session, _)| session.signal(signal)),
            Place::Nested { nested, .. } => nested.signal(signal),
        }
    }

    /// What the program wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Runs a shell command in the work folder, and returns what it printed, with `|` for the ends of lines. A program that runs goes on.
    ///
    /// # Errors
    /// If the host takes no command.
    pub fn shell(&mut self, command: &str) -> Result<String> {
        if let Place::Here { work, .. } = &self.place {
            let output = Command::new("sh")
                .args(["-c", &format!("{{ {command}; }} 2>&1")])
                .current_dir(work)
                .output()
                .context("Cannot run sh")?;
            return Ok(String::from_utf8_lossy(&output.stdout).replace('\n', "|"));
        }
        if let Place::Nested { nested, .. } = &mut self.place {
            nested.shell(command)?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.event(deadline)? {
                None => bail!("\"{command}\" does not end within {} s", PATIENCE.as_secs()),
                Some(Event::Said(text)) => return Ok(text),
                Some(Event::HostLost(why)) => bail!("The host is gone: {why}"),
                Some(Event::Stderr(bytes)) => self.stderr.extend(bytes),
                Some(event) => self.rest.push_back(event),
            }
        }
    }

    /// Copies the file `name` of the work folder to `to` on this machine.
    ///
    /// # Errors
    /// If there is no such file, or it is larger than what fits.
    pub fn fetch(&mut self, name: &str, to: &Path) -> Result<()> {
        let exchange = match &self.place {
            Place::Here { work, .. } => {
                fs::copy(work.join(name), to).with_context(|| format!("Cannot copy {name}"))?;
                return Ok(());
            }
            Place::Nested { exchange, .. } => exchange.clone(),
        };
        let said = self.shell(&format!(
            "stat -c %s {name} && dd if={name} of=/dev/vdc bs=1M conv=fsync 2>/dev/null && echo copied"
        ))?;
        let parts: Vec<&str> = said.split('|').collect();
        let [length, "copied", ..] = parts[..] else {
            bail!("Cannot bring {name} back: {said}");
        };
        let length: u64 = length
            .parse()
            .with_context(|| format!("Cannot bring {name} back: {said}"))?;
        ensure!(
            length <= Self::EXCHANGE_BYTES,
            "{name} has {length} bytes, too many to be brought back"
        );
        let mut from = io::Read::take(fs::File::open(&exchange)?, length);
        io::copy(&mut from, &mut fs::File::create(to)?).with_context(|| format!("Cannot write {}", to.display()))?;
        Ok(())
    }

    /// Ends the host.
    ///
    /// # Errors
    /// If it does not end in an orderly way.
    pub fn finish(self) -> Result<()> {
        match self.place {
            Place::Here { program, .. } => program.map_or(Ok(()), |(session, _)| session.finish()),
            Place::Nested { nested, .. } => (nested as Box<dyn Session>).finish(),
        }
    }
}

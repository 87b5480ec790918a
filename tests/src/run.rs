//! One run of a program in a host: what to run, what to watch for, and how it ended.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Signal;

/// What the program gets on its standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    #[default]
    Null,
    /// What is typed on this terminal; the program's output goes there as well.
    Terminal,
}

/// Is shown the console, piece by piece.
pub type ConsoleObserver<'a> = Box<dyn FnMut(&[u8]) + 'a>;

/// A program to run in a host.
pub struct Run<'a> {
    /// The program and its arguments; relative paths start in the host's work folder.
    pub command: Vec<String>,
    /// Its standard input.
    pub input: Input,
    /// When to give up, counted from the program's start.
    pub timeout: Duration,
    /// Shown the console as it comes.
    pub on_console: ConsoleObserver<'a>,
}

impl Run<'_> {
    /// Runs `command` without input and with a limit of five minutes.
    pub fn new(command: Vec<String>) -> Self {
        Run {
            command,
            input: Input::Null,
            timeout: Duration::from_secs(300),
            on_console: Box::new(|_| {}),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// From the start of the nested host until it took commands; zero without one.
    pub nested_host: Duration,
    /// From the program's start to its first byte on the console.
    pub first_byte: Option<Duration>,
    /// From the program's start to the guest's shell or command.
    pub shell: Option<Duration>,
    /// From the program's start to its end.
    pub program: Duration,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How the program ended.
    pub end: End,
    /// Its standard output, which for `spindle --console stdio` is the guest's console. Empty with [`Input::Terminal`]
    /// on a host that is this machine: there the terminal had it.
    pub console: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
    /// Where the time went.
    pub times: Times,
}

impl Outcome {
    /// The console as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }
}

/// What a running program reports.
pub(crate) enum Event {
    /// The place where programs run takes commands.
    HostUp,
    /// The program is about to start.
    Started,
    Console(Vec<u8>),
    Stderr(Vec<u8>),
    /// What a shell command printed.
    Said(String),
    Ended(End),
    /// The place where it ran is gone, and why.
    HostLost(String),
}

/// A started program.
pub(crate) trait Session {
    /// Sends the program a signal.
    fn signal(&mut self, signal: Signal) -> Result<()>;
    /// Ends what surrounded the program. Whatever it had still to say is in the channel afterwards.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The guest's first line of its own: printed by the guest's init before a command, or by a shell's prompt.
const SHELL_MARKS: [&[u8]; 2] = [b"spindle-guest: begin", b"# "];

/// Follows a session to its end.
pub(crate) fn follow(
    run: &mut Run<'_>,
    mut session: Box<dyn Session>,
    events: &Receiver<Event>,
    nested_host: Duration,
) -> Result<Outcome> {
    let mut log = Log::new(nested_host);
    let end = loop {
        let deadline = log.started + run.timeout;
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Ended(end)) => break end,
            Ok(Event::HostLost(why)) => bail!("The host of the run is gone: {why}{}", log.tail()),
            Ok(event) => log.take(event, run),
            Err(_) => {
                session.signal(Signal::KILL)?;
                session.finish()?;
                bail!(
                    "No end after {} s: {:?}{}",
                    run.timeout.as_secs(),
                    run.command,
                    log.tail()
                );
            }
        }
    };
    log.times.program = log.started.elapsed();
    session.finish()?;
    for event in events.try_iter() {
        log.take(event, run);
    }
    Ok(Outcome {
        end,
        console: log.console,
        stderr: String::from_utf8_lossy(&log.stderr).into_owned(),
        times: log.times,
    })
}

/// What a program has said so far.
struct Log {
    started: Instant,
    console: Vec<u8>,
    stderr: Vec<u8>,
    times: Times,
}

impl Log {
    fn new(nested_host: Duration) -> Log {
        Log {
            started: Instant::now(),
            console: Vec::new(),
            stderr: Vec::new(),
            times: Times {
                nested_host,
                ..Times::default()
            },
        }
    }

    fn take(&mut self, event: Event, run: &mut Run<'_>) {
        match event {
            Event::Started => self.started = Instant::now(),
            Event::Console(bytes) => {
                (run.on_console)(&bytes);
                self.console.extend_from_slice(&bytes);
                self.times.first_byte.get_or_insert_with(|| self.started.elapsed());
                if self.times.shell.is_none() && SHELL_MARKS.iter().any(|mark| self.contains(mark)) {
                    self.times.shell = Some(self.started.elapsed());
                }
            }
            Event::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            Event::HostUp | Event::Said(_) | Event::Ended(_) | Event::HostLost(_) => {}
        }
    }

    fn contains(&self, text: &[u8]) -> bool {
        text.is_empty() || self.console.windows(text.len()).any(|window| window == text)
    }

    /// The last of the console and of the standard error, for an error message.
    fn tail(&self) -> String {
        let end = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
        format!("\nconsole: {}\nstderr: {}", end(&self.console), end(&self.stderr))
    }
}

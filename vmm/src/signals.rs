//! The signals that ask spindle for something, as a file descriptor for the event loop.
#![expect(unsafe_code, reason = "signalfd and sigaction have no safe wrapper here")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use anyhow::{Context, bail};
use vmm_sys_util::signal::{block_signal, create_sigset};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To end; by this signal.
    End(i32),
    /// To go on with a machine that is paused (SIGCONT).
    Continue,
    /// To tell what was counted (SIGUSR1).
    Metrics,
}

/// Signals, blocked and readable instead.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks SIGTERM, SIGINT, SIGHUP, SIGCONT and SIGUSR1 in this thread and all that it starts later. A signal that the parent
    /// process had told us to ignore (`nohup`) stays ignored. SIGXFSZ is ignored: a file that may not grow is an error
    /// of the write that would have grown it.
    pub fn block() -> anyhow::Result<Self> {
        ignore_file_size_signal()?;
        let signals: Vec<libc::c_int> = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCONT, libc::SIGUSR1]
            .into_iter()
            .filter(|signal| !is_ignored(*signal))
            .collect();
        for signal in &signals {
            match block_signal(*signal) {
                Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => bail!("Cannot block signal {signal}: {error}"),
            }
        }
        let set = create_sigset(&signals).context("Cannot make a set of signals")?;
        // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("Cannot make a signalfd");
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A signal that has arrived.
    pub fn read(&self) -> Option<Wish> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            // `ssi_signo` comes first.
            Ok(count) if count == info.len() => {
                info.first_chunk::<4>().map(|number| match i32::from_ne_bytes(*number) {
                    libc::SIGCONT => Wish::Continue,
                    libc::SIGUSR1 => Wish::Metrics,
                    signal => Wish::End(signal),
                })
            }
            _ => None,
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Without this, a write beyond RLIMIT_FSIZE would kill the process instead of failing with EFBIG (setrlimit(2)).
fn ignore_file_size_signal() -> anyhow::Result<()> {
    // SAFETY: a disposition without a handler.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error()).context("Cannot ignore SIGXFSZ");
    }
    Ok(())
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, sigaction only fills in `action`, which is large enough.
    let outcome = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zero bytes are a valid `sigaction`, and the call may have replaced them by another.
    outcome == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

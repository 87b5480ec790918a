//! The signals that ask spindle to end, as a file descriptor for the event loop.
#![expect(unsafe_code, reason = "signalfd and sigaction have no safe wrapper here")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use anyhow::{Context, bail};
use vmm_sys_util::signal::{block_signal, create_sigset};

/// Termination signals, blocked and readable instead.
pub struct TerminationSignals(OwnedFd);

impl TerminationSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and all that it starts later. A signal that the parent process had
    /// told us to ignore (`nohup`) stays ignored.
    pub fn block() -> anyhow::Result<Self> {
        let signals: Vec<libc::c_int> = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP]
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
    pub fn read(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            // `ssi_signo` comes first.
            Ok(count) if count == info.len() => info.first_chunk::<4>().map(|number| i32::from_ne_bytes(*number)),
            _ => None,
        }
    }
}

impl AsRawFd for TerminationSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A write beyond the limit of file sizes (`ulimit -f`) fails with EFBIG from now on, which the guest or the policy for errors deals
/// with; it does not kill the machine (setrlimit(2), RLIMIT_FSIZE).
pub fn survive_file_size_limit() {
    // SAFETY: to ignore a signal involves no code of ours.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        tracing::warn!(error = %io::Error::last_os_error(), "a file size limit will kill this process");
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, sigaction only fills in `action`, which is large enough.
    let outcome = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zero bytes are a valid `sigaction`, and the call may have replaced them by another.
    outcome == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

//! Getting a vCPU thread out of the guest.
//!
//! A signal ends KVM_RUN, but one that arrives just before KVM_RUN would be lost. So the handler, which runs on the vCPU's
//! own thread, sets `immediate_exit`: whatever KVM_RUN comes next returns at once (KVM API, 5 "immediate_exit").
#![expect(unsafe_code, reason = "a signal handler, and a byte shared with the kernel")]

use std::cell::Cell;
use std::ptr;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. Without a destructor, so that the handler may use it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// How long a thread is given to notice before it is kicked again: it may sit in a write to a slow console.
const PATIENCE: Duration = Duration::from_millis(2);

extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: `Kickable` keeps the pointer valid for as long as it is set, on this very thread.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

/// Installs the signal handler, once for the process.
pub fn install() -> anyhow::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).context("Cannot install the signal handler that stops vCPUs")
}

/// A thread that runs a vCPU, for others to kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuThread(libc::pid_t);

impl VcpuThread {
    /// The calling thread.
    pub fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Has its vCPU leave the guest, or not enter it, once.
    pub fn kick(&self) {
        // SAFETY: the call takes no pointers. A thread that is gone is no target: then it fails.
        let outcome = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, SIGRTMIN()) };
        if outcome != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "vCPU thread not signalled");
        }
    }
}

/// A vCPU on its own thread that can be kicked, for as long as this lives.
pub struct Kickable {
    /// Bound to the thread.
    _not_send: std::marker::PhantomData<*mut u8>,
}

impl Kickable {
    /// Makes the calling thread kickable out of `vcpu`, which must outlive the result.
    ///
    /// # Safety
    /// The vCPU must not be dropped before the result is.
    pub unsafe fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self {
            _not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// Kicks `thread` until it has ended, and joins it. The thread must have been told to end.
pub fn join(thread: JoinHandle<()>) -> std::thread::Result<()> {
    while !thread.is_finished() {
        if let Err(error) = thread.kill(SIGRTMIN()) {
            tracing::debug!(%error, "vCPU thread not signalled");
        }
        std::thread::sleep(PATIENCE);
    }
    thread.join()
}

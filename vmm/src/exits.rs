//! Why a vCPU left the guest, and what is done about it (KVM API, 5 "The kvm_run structure").
#![expect(
    unsafe_code,
    reason = "the kernel describes an exit in a union and in bytes behind it"
)]

use std::slice;
use std::str::FromStr;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::exit_code::Ending;
use crate::kernel_ports::KernelPorts;
use crate::metrics::{Direction, Metrics, OtherExit};
use crate::registers;

/// What the kernel serves by itself, where it can: `--exits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitOptions {
    /// Writes that only latch wait in the kernel's ring (KVM_CAP_COALESCED_PIO).
    pub coalesced: bool,
    /// The start of the bus master is an event (KVM_CAP_IOEVENTFD).
    pub ioeventfd: bool,
    /// Interrupts are events (KVM_CAP_IRQFD), and not calls.
    pub irqfd: bool,
}

impl Default for ExitOptions {
    fn default() -> Self {
        Self {
            coalesced: true,
            ioeventfd: true,
            irqfd: false,
        }
    }
}

/// A `--exits` that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not known; say coalesced=on|off, ioeventfd=on|off and irqfd=on|off, with commas in between")]
pub struct ExitOptionsError(String);

impl FromStr for ExitOptions {
    type Err = ExitOptionsError;

    fn from_str(text: &str) -> Result<Self, ExitOptionsError> {
        let mut options = Self::default();
        for word in text.split(',') {
            let unknown = || ExitOptionsError(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(unknown)?;
            let value = match value {
                "on" => true,
                "off" => false,
                _ => return Err(unknown()),
            };
            match name {
                "coalesced" => options.coalesced = value,
                "ioeventfd" => options.ioeventfd = value,
                "irqfd" => options.irqfd = value,
                _ => return Err(unknown()),
            }
        }
        Ok(options)
    }
}

/// What a vCPU does after an exit.
#[derive(Debug)]
pub enum Next {
    /// It goes on.
    Run,
    /// It goes on once the console has caught up: the exit was a port write, which may have been console output.
    RunAfterOutput,
    /// It is over.
    End(Ending),
}

/// Runs the guest until its next exit, and serves that exit.
pub fn run_once(vcpu: &mut VcpuFd, cpu: u8, ports: &KernelPorts, metrics: &Metrics) -> Next {
    let problem = match vcpu.run() {
        Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => return serve_port_access(vcpu, ports, metrics),
        Ok(VcpuExit::MmioRead(address, data)) => {
            metrics.other_exit(OtherExit::Mmio);
            // No device answers on the memory bus: it floats.
            tracing::trace!("read of {} bytes at {address:#x}, where nothing is", data.len());
            data.fill(0xff);
            return Next::Run;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            metrics.other_exit(OtherExit::Mmio);
            tracing::trace!("write of {} bytes at {address:#x}, where nothing is", data.len());
            return Next::Run;
        }
        Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {
            metrics.other_exit(OtherExit::Rest);
            return Next::Run;
        }
        Ok(VcpuExit::Shutdown) => return crash(vcpu, cpu),
        Ok(VcpuExit::SystemEvent(event, _)) => match event {
            KVM_SYSTEM_EVENT_SHUTDOWN => return Next::End(Ending::PowerOff),
            KVM_SYSTEM_EVENT_RESET => return Next::End(Ending::Reset),
            _ => return crash(vcpu, cpu),
        },
        Ok(VcpuExit::FailEntry(reason, _)) => {
            format!("the processor refuses the guest's state (hardware reason {reason:#x})")
        }
        Ok(VcpuExit::InternalError) => internal_error(vcpu),
        Ok(other) => format!("KVM reports an exit that spindle does not know: {other:?}"),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            metrics.other_exit(OtherExit::Interrupted);
            return Next::Run;
        }
        Err(error) => format!("KVM_RUN failed: {error}"),
    };
    tracing::debug!("CPU {cpu}: {problem}\n{}", registers::describe(vcpu));
    Next::End(Ending::Failure(anyhow::anyhow!(
        "CPU {cpu} of the guest cannot go on: {problem} (--log debug shows its registers)"
    )))
}

fn crash(vcpu: &VcpuFd, cpu: u8) -> Next {
    tracing::debug!("CPU {cpu} shut down\n{}", registers::describe(vcpu));
    Next::End(Ending::Crash { cpu })
}

/// The port access that a vCPU left the guest with.
struct PortAccess<'a> {
    port: u16,
    is_write: bool,
    /// Bytes of one element: 1, 2 or 4.
    size: usize,
    /// All elements, one unless it was a string instruction.
    data: &'a mut [u8],
}

fn serve_port_access(vcpu: &mut VcpuFd, ports: &KernelPorts, metrics: &Metrics) -> Next {
    let Some(access) = port_access(vcpu) else {
        return Next::Run;
    };
    if !access.is_write {
        metrics.port_exit(access.port, Direction::In);
        ports.read(access.port, access.size, access.data);
        return Next::Run;
    }
    metrics.port_exit(access.port, Direction::Out);
    if !ports.write(access.port, access.size, access.data) {
        tracing::trace!("write to port {:#x}, where nothing is", access.port);
    }
    Next::RunAfterOutput
}

/// kvm-ioctls hands over the bytes of a string instruction without the size of an element, so they are taken from the
/// kernel's structure.
fn port_access(vcpu: &mut VcpuFd) -> Option<PortAccess<'_>> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    let start = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: the exit reason says that `io` is the member of the union that the kernel filled in.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let length = size * io.count as usize;
    // SAFETY: the kernel puts `count` elements of `size` bytes at `data_offset` in the vCPU's mapping, which lives as
    // long as the vCPU; it touches them only in KVM_RUN, which needs the vCPU that is borrowed here.
    let data = unsafe { slice::from_raw_parts_mut(start.add(io.data_offset as usize), length) };
    (size > 0 && length > 0).then_some(PortAccess {
        port: io.port,
        is_write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
        size,
        data,
    })
}

/// What KVM says about an internal error of its own (KVM API, "KVM_EXIT_INTERNAL_ERROR").
fn internal_error(vcpu: &mut VcpuFd) -> String {
    const EMULATION: u32 = 1;
    const DELIVERY: u32 = 3;
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return "KVM reports an internal error".to_owned();
    }
    // SAFETY: the exit reason says that `internal` is the member of the union that the kernel filled in.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    match suberror {
        EMULATION => "KVM cannot emulate an instruction of the guest".to_owned(),
        DELIVERY => "KVM cannot deliver an event to the guest".to_owned(),
        other => format!("KVM reports an internal error, suberror {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_options_are_read_and_wrong_ones_named() {
        let off = "coalesced=off".parse::<ExitOptions>().expect("an option");
        assert!(!off.coalesced && off.ioeventfd);
        let both = "ioeventfd=off,coalesced=on".parse::<ExitOptions>().expect("options");
        assert!(both.coalesced && !both.ioeventfd);
        for wrong in ["", "coalesced", "coalesced=maybe", "msi=off"] {
            assert!(wrong.parse::<ExitOptions>().is_err(), "{wrong}");
        }
    }
}

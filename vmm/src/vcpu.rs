//! A virtual CPU and the thread that runs it.
#![expect(
    unsafe_code,
    reason = "the vCPU's thread promises to keep the vCPU while it can be kicked"
)]

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::boot::Entry;
use crate::console::Output;
use crate::exit_code::Ending;
use crate::exits::{self, Next};
use crate::kernel_ports::KernelPorts;
use crate::kick::{self, Kickable};
use crate::metrics::Metrics;
use crate::milestones::Milestones;
use crate::power::PowerSwitch;
use crate::registers;
use crate::stops::Stops;

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub struct Surroundings {
    /// Where port accesses go.
    pub ports: Arc<KernelPorts>,
    /// Tells when to stop, and is told why.
    pub power: Arc<PowerSwitch>,
    /// Holds a vCPU back that prints faster than the console takes it.
    pub output: Arc<Output>,
    /// Told when the guest begins to run.
    pub milestones: Arc<Milestones>,
    /// Counts exits.
    pub metrics: Arc<Metrics>,
    /// Holds all vCPUs back while the machine is paused.
    pub stops: Arc<Stops>,
}

/// A virtual CPU that does not run yet.
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
}

impl Vcpu {
    /// CPU `id` of `vm`, which sees `cpuid`. CPU 0 starts at an entry; the others wait for a start-up IPI, as KVM leaves them.
    pub fn new(vm: &VmFd, id: u8, cpuid: &kvm_bindings::CpuId) -> anyhow::Result<Self> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .with_context(|| format!("KVM refuses to make CPU {id}"))?;
        fd.set_cpuid2(cpuid).context("KVM refuses the CPUID")?;
        registers::set_defaults(&fd)?;
        registers::set_local_interrupts(&fd, id == 0)?;
        Ok(Self { fd, id })
    }

    /// The vCPU, for KVM.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Puts the CPU at its first instruction.
    pub fn set_entry(&self, entry: Entry) -> anyhow::Result<()> {
        registers::set_entry(&self.fd, entry)
    }

    /// Starts the thread.
    fn spawn(mut self, surroundings: Surroundings) -> anyhow::Result<JoinHandle<()>> {
        thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .spawn(move || {
                let _report = PanicReport {
                    power: surroundings.power.clone(),
                    cpu: self.id,
                };
                self.run(&surroundings);
            })
            .context("Cannot start a vCPU thread")
    }

    fn run(&mut self, surroundings: &Surroundings) {
        // SAFETY: `self.fd` outlives this function, and `_kickable` does not.
        let _kickable = unsafe { Kickable::new(&mut self.fd) };
        let _enlisted = Enlisted::new(&surroundings.stops);
        surroundings.milestones.guest_runs();
        loop {
            // What a kick asked for is looked at next; one that comes after this makes KVM_RUN return.
            self.fd.set_kvm_immediate_exit(0);
            if surroundings.power.is_off() {
                return;
            }
            if surroundings.stops.is_paused() {
                self.stand_still(surroundings);
                continue;
            }
            match exits::run_once(&mut self.fd, self.id, &surroundings.ports, &surroundings.metrics) {
                Next::Run => {}
                Next::RunAfterOutput => surroundings.output.wait_for_room(&surroundings.power),
                Next::End(ending) => surroundings.power.end(ending),
            }
        }
    }
}

impl Vcpu {
    /// Waits while the machine is paused. The guest finds its time-stamp counter as it was.
    fn stand_still(&mut self, surroundings: &Surroundings) {
        let counter = registers::time_stamp_counter(&self.fd);
        surroundings.stops.wait_until_resumed();
        if let Some(counter) = counter
            && !surroundings.power.is_off()
        {
            registers::set_time_stamp_counter(&self.fd, counter);
        }
    }
}

/// The thread of a vCPU is one that a pause reaches, for as long as this lives.
struct Enlisted<'a>(&'a Stops);

impl<'a> Enlisted<'a> {
    fn new(stops: &'a Stops) -> Self {
        stops.enlist();
        Self(stops)
    }
}

impl Drop for Enlisted<'_> {
    fn drop(&mut self) {
        self.0.dismiss();
    }
}

/// Ends the machine if its vCPU thread panics: a machine with a CPU missing is no machine.
struct PanicReport {
    power: Arc<PowerSwitch>,
    cpu: u8,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            let failure = anyhow::anyhow!("The thread of CPU {} panicked; this is a bug in spindle", self.cpu);
            self.power.end(Ending::Failure(failure));
        }
    }
}

/// Running vCPUs. Dropping them turns the machine off and waits until every thread has ended.
pub struct RunningVcpus {
    threads: Vec<JoinHandle<()>>,
    power: Arc<PowerSwitch>,
    stops: Arc<Stops>,
}

impl RunningVcpus {
    /// Starts all `vcpus`.
    pub fn start(vcpus: Vec<Vcpu>, surroundings: &Surroundings) -> anyhow::Result<Self> {
        let mut running = Self {
            threads: Vec::with_capacity(vcpus.len()),
            power: surroundings.power.clone(),
            stops: surroundings.stops.clone(),
        };
        for vcpu in vcpus {
            // If one does not start, dropping `running` stops the others.
            running.threads.push(vcpu.spawn(surroundings.clone())?);
        }
        Ok(running)
    }
}

impl Drop for RunningVcpus {
    fn drop(&mut self) {
        if !self.power.is_off() {
            self.power
                .end(Ending::Failure(anyhow::anyhow!("The machine was abandoned")));
        }
        // Those that stand still see that the machine is off.
        self.stops.resume();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = kick::join(thread);
        }
    }
}

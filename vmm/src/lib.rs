//! The virtual machine monitor: everything that knows KVM.
//!
//! # Architecture
//!
//! `spindle run` ([`cli::run`]) checks its arguments, opens the disks and the console, and then, once per boot, builds a
//! [`vm::Vm`] from them: guest memory, interrupt controllers, devices, boot structures, vCPUs. Its CPUs run on threads of
//! their own; disks, console input and signals are served by one [`event_loop`] on the main thread.
//!
//! ```text
//!  vCPU threads ── exits ──> devices::bus ──> devices ──> disk::Engine (submit)
//!       ^                                        │              │
//!       └── KVM <──── interrupts <───────────────┴── done <── event_loop (poll)
//! ```
//!
//! # Endings
//!
//! Whatever ends a machine turns the one [`power::PowerSwitch`]; the first [`exit_code::Ending`] counts. The way down is always the
//! same: stop and join the vCPUs, let requests in flight finish, close the engine, give the terminal back.
//!
//! # Error model
//!
//! `anyhow` with context: one line that names the thing. What can be checked is checked before the machine starts. A guest
//! cannot make this crate panic; what a guest does wrong is logged at level debug.

pub mod acpi;
pub mod announcer;
pub mod boot;
pub mod cli;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod drives;
pub mod event_loop;
pub mod exit_code;
pub mod exits;
pub mod host;
pub mod in_flight;
pub mod interrupts;
pub mod kernel_ports;
pub mod kick;
pub mod kvm_memory;
pub mod memory;
pub mod metrics;
pub mod milestones;
pub mod nbd;
pub mod power;
pub mod qmp;
pub mod qmp_clients;
pub mod registers;
pub mod signals;
pub mod stops;
pub mod vcpu;
pub mod vm;

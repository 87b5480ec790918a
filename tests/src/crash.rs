//! Kills of the real thing: spindle is ended by SIGKILL in the middle of a guest's work, and started again on the same disk.
//!
//! # Architecture
//!
//! A bare-metal guest ([`guest`]) carries out a [`script`]: port writes, waits, and stores into a log. Script, data and log lie in the
//! guest's memory, which is a memfd that the test has, too: so the log outlives the kill, and says exactly which sector was asked
//! for and which was acknowledged. A [`session`] is one process from its start to its kill; a [`life`] is one image with one
//! set of parameters and many sessions; a [`campaign`] is many lives from one seed. The [`oracle`] knows what each sector may hold.
//!
//! ```text
//!  open (recovers) ─> the guest reads the whole disk ─> compared with the oracle ─> qemu-img check ─> the guest writes ─> SIGKILL
//!         ^                                                                                                            │
//!         └────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The same under a stock Linux guest, which says on its console what it made durable: [`linux`] and [`acknowledged`].
//!
//! Power losses are made of recordings of the image: [`power_loss`] under the bare-metal guest, [`linux_power`] under Linux.
//!
//! Kills come at random, after a random number of acknowledgements in the log, or by a failpoint (`disk::failpoint`), at the N-th
//! time that the process passes a named place of the write path or of recovery.

mod acknowledged;
mod campaign;
mod guest;
mod life;
mod linux;
mod linux_power;
mod oracle;
mod power_loss;
mod script;
mod session;
mod tally;
mod workload;

pub use campaign::{BareMetalCampaign, run_bare_metal};
pub use linux::{LinuxCampaign, run_linux};
pub use linux_power::{LinuxPowerCampaign, run_linux_power};
pub use power_loss::{Column, PowerCampaign, can_record, run_power};
pub use tally::{Failure, Kills, Spread, Tally};

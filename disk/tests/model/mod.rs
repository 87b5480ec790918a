//! One model of everything that can be done to a disk, for the simulation: a [`Script`](script::Script) of operations, drawn
//! from a seed or written down, that a [`Machine`](machine::Machine) runs on the engine above a simulated disk, beside an
//! [`Oracle`](oracle::Oracle) that knows what each sector may hold at any time.
//!
//! ```text
//! seed -> generate -> Script -> Machine: engine and oracle side by side -> a Tally, or a Failure -> shrink -> a test to paste
//! ```
#![allow(dead_code, reason = "each test that shares this uses a part of it")]

pub mod campaign;
pub mod crash;
pub mod directed;
pub mod faults;
pub mod generate;
pub mod image;
pub mod machine;
pub mod oracle;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod script;
pub mod shrink;
pub mod stamp;

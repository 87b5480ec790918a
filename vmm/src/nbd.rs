//! The NBD server: a disk of the engine, offered to other programs on a socket.
//!
//! # Architecture
//!
//! One thread and one `event-manager` loop serve all clients, the listening socket and the engine. [`server`] is the loop's subscriber. Each
//! client is a [`connection`]: bytes that came and are not understood yet, bytes that are to be sent, and the state between them.
//! What a client asks for becomes a [`job`], which turns into commands for the disk one after the other (a write with FUA is a write
//! and then a flush) and ends as a reply. The protocol itself is the crate `nbd`, which does no I/O.
//!
//! ```text
//!  socket ──> connection ──> job ──> Disk::submit ──> engine
//!  socket <── connection <── job <── done <───────────┘
//! ```
//!
//! Payloads are read from the socket into the memory that the engine writes from, and sent from the memory that it read into.
//!
//! # Limits
//!
//! What a client can make this process hold is bounded: see [`connection::MAX_REQUESTS`] and its neighbours. A client that
//! reaches its limits is not read from until replies have left. One that does not finish its handshake in time is closed.
//!
//! # Several clients
//!
//! All connections share one engine, whose flush covers every write that completed before it, whoever wrote. That is what
//! NBD_FLAG_CAN_MULTI_CONN promises, so it is set.

pub mod connection;
mod finished;
#[doc(hidden)]
pub mod fuzzing;
pub mod job;
pub mod listener;
pub mod server;

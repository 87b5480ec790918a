//! The CD-ROM drive by its ports.

mod detection;
mod disc;
mod driver;
mod errors;
mod media;
mod mode;
mod protocol;
mod random;
mod reading;

//! What PIO moves at a time, between two interrupts.

use serde::{Deserialize, Serialize};

/// A block of data on its way through the data register.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DataBlock {
    bytes: Vec<u8>,
    at: usize,
}

impl DataBlock {
    /// A block for the host to read.
    pub(super) fn full(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    /// A block of `length` bytes for the host to fill.
    pub(super) fn empty(length: usize) -> Self {
        Self::full(vec![0; length])
    }

    /// Whether all of it has passed.
    pub(super) fn done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Bytes of the block, and how many of them have passed.
    pub(super) fn progress(&self) -> (usize, usize) {
        (self.bytes.len(), self.at)
    }

    /// Whether it is a block of at most this many bytes.
    pub(super) fn is_sound(&self, most: usize) -> bool {
        self.at <= self.bytes.len() && self.bytes.len() <= most
    }

    /// Bytes that have not passed.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The content.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The content, taken out.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The next bytes, as many as `data` takes and the block has.
    pub(super) fn read(&mut self, data: &mut [u8]) {
        let length = data.len().min(self.bytes.len() - self.at);
        data[..length].copy_from_slice(&self.bytes[self.at..self.at + length]);
        self.at += length;
    }

    /// The inverse of [`DataBlock::read`].
    pub(super) fn write(&mut self, data: &[u8]) {
        let length = data.len().min(self.bytes.len() - self.at);
        self.bytes[self.at..self.at + length].copy_from_slice(&data[..length]);
        self.at += length;
    }
}

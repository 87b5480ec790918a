//! Old clusters that would leak.

#![deny(unused_must_use)]

use disk::five_steps::{Filled, Image};

fn wrong<I: Image>(filled: Filled<I>) {
    filled.linked(Default::default());
}

fn main() {}

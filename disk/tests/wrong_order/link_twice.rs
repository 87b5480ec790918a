//! Two tables that point at one cluster whose refcount is one.

use disk::five_steps::{Filled, Image};

fn wrong<I: Image>(filled: Filled<I>) {
    filled.linked(Default::default()).release();
    filled.linked(Default::default()).release();
}

fn main() {}

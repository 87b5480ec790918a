//! Step 4 without steps 2 and 3: the table would point at whatever the clusters held.

use disk::five_steps::{Allocated, Image};

fn wrong<I: Image>(allocated: Allocated<I>) {
    allocated.linked(Default::default()).release();
}

fn main() {}

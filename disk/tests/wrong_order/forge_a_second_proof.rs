//! One allocation that pays for two.

use disk::five_steps::{Allocated, Image};

fn wrong<I: Image>(allocated: &Allocated<I>) -> Allocated<I> {
    allocated.clone()
}

fn main() {}

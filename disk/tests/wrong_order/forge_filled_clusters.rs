//! A proof of steps 2 and 3 that nobody has earned.

use disk::five_steps::{Allocated, Filled, Image};

fn wrong<I: Image>(allocated: Allocated<I>) -> Filled<I> {
    Filled { allocated }
}

fn main() {}

//! `spindle nbd`, with clients that others wrote as its testers.

mod documentation;
mod failures;
mod limits;
mod others;
mod served;

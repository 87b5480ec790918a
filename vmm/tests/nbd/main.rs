//! `spindle nbd`, with clients that others wrote as its testers.

mod corpus;
mod documentation;
mod failures;
mod limits;
mod others;
mod served;

//! What dlock reads from outside, under arbitrary bytes: see CONTRIBUTING.md.

pub mod properties;

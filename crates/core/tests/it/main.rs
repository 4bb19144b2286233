//! All integration tests of the core, in one binary.
//!
//! `scripts` runs the readable traces in `tests/scripts`; `twin` compares the core with a naive
//! model under random programs; `bytes` pins what is on disk; the rest take one promise each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bytes;
mod check;
mod codec;
mod counts;
mod golden;
mod pages;
mod restore;
mod scripts;
mod sessions;
mod store;
mod twin;

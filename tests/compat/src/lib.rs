//! podkv's etcd API, held against a real etcd.
//!
//! ```text
//!   generate ──► program ──► run on etcd ───┐
//!   scripts ──►     │        run on podkv ──┴─► compare ──► equal, or shrunk to a script
//!                   └── plant: a careless implementer between the run and a real etcd, who must be found
//! ```
//!
//! A [`run`](run::run) writes down every answer as text, made comparable by the one table in [`normalise`]. To look into
//! a failure: the message has the shrunk program; put it into `scripts/`, where it stays as a regression test.
//!
//! Never: a tolerance that is not in the table.

pub mod compare;
pub mod generate;
pub mod link;
pub mod normalise;
pub mod plant;
pub mod program;
pub mod run;
pub mod servers;
pub mod step;
pub mod streams;

//! The client against scripted nodes. Time is paused: a test that waits 5 s takes none.

mod endpoints;
mod fake;
mod fence;
mod leases;
mod reads;
mod restores;
mod watches;
mod writes;

//! Recipes: what people build on a key-value store, built once and tested.
//!
//! They need nothing but a [`Store`](crate::Store), so they run unchanged on an embedded node and
//! on a remote client. They run inside a tokio runtime with time enabled.
//!
//! | recipe | what it gives |
//! | --- | --- |
//! | [`Typed`] | values of one Rust type, and read-modify-write without lost updates |
//! | [`Mirror`] | a range of keys in local memory, always whole, read without waiting |
//! | [`Mutex`] | one holder at a time across processes, in order of arrival, with a fencing token |
//! | [`LargeValues`] | values that no request could carry, as streams |
//! | [`Election`] | one leader at a time, its value, and a stream of leaders to follow |
//!
//! Two rules hold for all of them:
//!
//! - A write whose outcome is unknown is passed up as it is (see
//!   [`Error::outcome_unknown`](crate::Error::outcome_unknown)). It is sent again only where a
//!   second copy can do no harm.
//! - No task outlives its owner by more than one lease, and nothing is queued without a bound.

mod backoff;
pub mod election;
mod kept_lease;
pub mod large;
pub mod mirror;
pub mod mutex;
mod queue;
pub mod typed;

pub use election::{Election, Leader, LeaderStream, Leadership};
pub use large::{LargeOptions, LargeValues, PutStreamResponse, ValueStream};
pub use mirror::{Mirror, Snapshot};
pub use mutex::{Mutex, MutexGuard};
pub use typed::{Change, ChangeStream, Entry, Typed};

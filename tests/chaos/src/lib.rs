//! Real crashes: three `podkv serve` processes on real RocksDB, clients that write down what they see, and a nemesis.
//!
//! ```text
//!   make chaos ─► rounds ─► one process a round, in namespaces of its own ─► round
//!                                                       ├─ clients   ─► Recorder ─┐
//!                                                       ├─ nemesis ─► nodes       ├─► History ─► podkv_sim::check
//!                                                       └─ harvest: every replica ┘
//! ```
//!
//! Read in this order: `podkv_sim::recorder` (what is noted, and when), `podkv_sim::clients` (who calls), [`nemesis`] (what is done to
//! the nodes), [`harvest`] (what every replica holds at the end), [`round`], [`rounds`].
//!
//! What is done, by whom and to which keys is drawn from the seed. Time is real, so a seed plays the same plan, not
//! the same moments: the history of a round that failed is kept, and can be checked again.
//!
//! Partitions and disks that fill up need root on Linux. Without it the rest is played on loopback, and that is said
//! loudly.

pub mod harvest;
pub mod nemesis;
pub mod nodes;
pub mod place;
pub mod round;
pub mod rounds;
pub mod sick;

/// Says what went wrong, for a person.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T, E = Failure> = std::result::Result<T, E>;

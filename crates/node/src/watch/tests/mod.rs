//! Tests of the watch hub. [`rig`] is the helper they talk to.

mod behaviour;
mod driver;
mod random;
mod rig;

//! Generated from `/proto`.

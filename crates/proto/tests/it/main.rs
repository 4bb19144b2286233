//! What crosses the wire comes out as it went in, and what is malformed is refused by name.

mod errors;
mod malformed;
mod round_trip;
mod strategies;

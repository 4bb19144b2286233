//! Keeps the membership as it should be: the leader looks, [`decide`](decide::decide) chooses one change,
//! the loop makes it and looks again.

pub(crate) mod decide;

#[cfg(test)]
mod scripts;

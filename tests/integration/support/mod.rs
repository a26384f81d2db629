//! Helpers that cases share, and the cases of the harness itself and of the documentation.

pub mod barrier;
pub mod batch;
pub mod catalog;
pub mod compare_with_client;
pub mod documentation;
pub mod harness;
pub mod idle_worker;
pub mod job_stage;
pub mod reference;
pub mod rng;

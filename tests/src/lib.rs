//! Private PostgreSQL clusters and plain client sessions for the integration tests.
//!
//! Everything that a run makes lives in one directory ([`mod@env`]) and ends with the test program, however that ends.
//! Nothing waits for a time: see [`wait`].

pub mod case;
pub mod cluster;
pub mod env;
pub mod installation;
pub mod reply;
pub mod server_log;
pub mod session;
pub mod wait;

pub use case::{Case, Db};
pub use cluster::{Cluster, Stop};
pub use installation::Installation;
pub use nix::sys::signal::Signal;
pub use pg_background_mgr_tests_macros::case;
pub use reply::{Column, Reply, ServerError, Statement};
pub use session::{literal, Client, Session};
pub use wait::{wait_for, wait_until, FOREVER, SLEEP_FOREVER};

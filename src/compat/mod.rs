//! The only place that names a version of PostgreSQL or of pgrx.
//!
//! Every function here has the newest server's shape. A `cfg` asks for "this server or newer" (`__geNN`), so a server
//! that is given up takes its branch with it.

pub mod abi;
pub mod area;
pub mod catalog;
pub mod errno;
pub mod exec;
pub mod guc;
pub mod process;
pub mod utility;
pub mod wire;

pub use crate::compat::abi::*;

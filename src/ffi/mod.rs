//! Thin safe wrappers over the server, one C concept a file. They know nothing of jobs.
//!
//! A server error inside a guarded call (`pg_sys::…`) becomes a Rust panic, so values of the frames above are
//! dropped. FATAL and `proc_exit` never come back: what must happen on death sits in [`exit_hooks`].
//!
//! What `Drop` does here:
//!
//! | type | owned by | on drop |
//! |---|---|---|
//! | [`memory::MemoryContextGuard`] | the frame | switches back, also while unwinding |
//! | [`interrupt::CancelHeld`] | the frame | lets cancels in again, also while unwinding |
//! | `parser::Quiet` | the frame | shows and logs messages again, also while unwinding |
//! | [`heap::Row`] | the value | frees the copy, unless unwinding |
//! | `own_sql`'s check of queries | the frame | looks at them no more, also while unwinding |
//! | [`temp_file::TempFileUnlimited`] | the frame | lets `temp_file_limit` bind again, also while unwinding |
//! | [`memory::Context`] | the value | deletes the context, unless unwinding |
//! | [`dsm::Segment`], [`shm_mq::Receiver`], [`shm_mq::Sender`] | the process | nothing; `close` releases, exit does
//! too |
//! | [`temp_file::File`] | the process | closes the file, unless unwinding |

pub mod alloc;
mod allocator;
pub mod area;
pub mod bgworker;
pub mod datum;
pub mod discard_all;
pub mod dsa_ref;
pub mod dsm;
pub mod exit_hooks;
pub mod file;
pub mod fmgr;
pub mod guc;
pub mod heap;
pub mod internal_sql;
pub mod interrupt;
pub mod interval;
pub mod invalidation;
pub mod json;
pub mod latch;
pub mod library;
pub mod lock;
pub mod login;
mod lwlock;
pub mod memory;
pub mod parser;
pub mod process;
pub mod process_local;
mod raise;
pub mod random;
pub mod remote_dest;
pub mod report;
pub mod role;
pub mod row_reader;
mod row_type;
pub mod row_writer;
pub mod session;
pub mod set_returning;
pub mod shm_mq;
pub mod spi;
pub mod spin;
pub mod statement;
mod sys;
pub mod temp_file;
pub mod transaction;
pub mod tuple;
pub mod wait_graph;

/// `#[pg_guard]` on foreign functions expands to this path.
pub use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

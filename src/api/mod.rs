//! SQL-callable functions: check arguments, call one thing, shape what comes back. `sql/functions.sql` declares them.

mod admin;
mod attached;
mod batch;
pub mod function;
mod inspect;
mod update;

//! Attached jobs, which a session launches one by one and whose results it reads: the functions of pg_background.

mod client_text;
mod column_lists;
mod copy;
mod deadlock;
mod encodings;
mod environment;
mod errors;
mod every_setting;
mod invalid_arguments;
mod nested_jobs;
mod notices;
mod observability;
mod result_limits;
mod result_reread;
mod results;
mod row_types;
mod settings;
mod standby;
mod timeouts;
mod transactions;
mod types;
mod unread_results;
mod usage_examples;
mod utility_commands;

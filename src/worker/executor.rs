//! Runs the text of a job as the server runs one that a client sends (postgres.c, `exec_simple_query`).

use super::bootstrap::located;
use super::outbox;
use crate::compat;
use crate::error::Error;
use crate::ffi::interrupt::{self, CancelHeld};
use crate::ffi::report::{self, Captured};
use crate::ffi::statement::{self, Text};
use crate::ffi::transaction;
use crate::protocol::{Done, Report};
use std::ffi::CStr;

/// Runs all statements; gives their command tags.
///
/// # Errors
/// [`Error::OpenBlock`] (25000) if a transaction block is open at the end.
pub fn run(sql: &CStr) -> Result<Done, Error> {
    let mut transaction = Transaction::default();
    transaction.start();
    let text = Text::parse(sql);
    let was_logged = text.statements().any(|statement| statement.is_to_be_logged());
    if was_logged {
        compat::process::log_line(&[b"statement: ", sql.to_bytes()].concat());
    }
    let mut tags = Vec::new();
    let count = text.statements().len();
    for (number, statement) in (1..).zip(text.statements()) {
        compat::exec::reset_query_id();
        compat::process::set_ps_display(statement.tag());
        transaction.start();
        if count > 1 {
            transaction::begin_implicit_block();
        }
        interrupt::check();
        let tag = outbox::with_statement(number == count, |sink| statement.run(sink))?;
        if number == count {
            if count > 1 {
                transaction::end_implicit_block();
            }
            transaction.finish();
        } else if statement.is_transaction_control() {
            transaction.finish();
        } else {
            transaction::command_counter_increment();
            transaction::stop_statement_timeout();
        }
        tags.push(tag);
    }
    transaction.finish();
    // What is committed is not to be reported as cancelled.
    let _held = CancelHeld::new();
    compat::exec::process_completed_notifies();
    if transaction::in_block() {
        return Err(Error::OpenBlock);
    }
    log_duration(sql, was_logged);
    Text::forget();
    Ok(Done { tags })
}

/// The transaction command that is open, if one is.
#[derive(Default)]
struct Transaction {
    is_started: bool,
}

impl Transaction {
    fn start(&mut self) {
        if !self.is_started {
            transaction::start_command();
            self.is_started = true;
        }
        transaction::start_statement_timeout();
    }

    fn finish(&mut self) {
        transaction::stop_statement_timeout();
        if self.is_started {
            transaction::finish_command();
            self.is_started = false;
        }
    }
}

fn log_duration(sql: &CStr, was_logged: bool) {
    match statement::duration_to_log(was_logged) {
        Some((milliseconds, false)) => compat::process::log_line(format!("duration: {milliseconds} ms").as_bytes()),
        Some((milliseconds, true)) => {
            let line = format!("duration: {milliseconds} ms  statement: ");
            compat::process::log_line(&[line.as_bytes(), sql.to_bytes()].concat());
        }
        None => {}
    }
}

/// Cleans up after the job and puts its outcome behind what it has sent already.
pub fn conclude(outcome: Result<Result<Done, Error>, Box<Captured>>) {
    let failure = match outcome {
        Ok(Ok(done)) => return outbox::done(&done),
        Ok(Err(error)) => Captured::from(Report::from(error)),
        Err(captured) => *captured,
    };
    report::log(&failure);
    transaction::recover();
    outbox::failed(&located(failure.report));
}

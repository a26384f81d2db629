//! Runs the text of a job as the server runs one that a client sends (postgres.c, `exec_simple_query`).

use crate::compat;
use crate::error::Error;
use crate::ffi::interrupt::CancelHeld;
use crate::ffi::statement::{ParsedSql, RowSink};
use crate::ffi::{alloc, interrupt, statement, transaction};
use crate::protocol::Done;
use std::ffi::CStr;
use std::time::Instant;

/// Takes what the statements of a job return.
pub trait StatementObserver {
    /// Runs a statement with a sink for its rows. Returns its command tag.
    ///
    /// # Errors
    /// An error that keeps the rows from being taken.
    fn statement(&mut self, is_last: bool, run: &mut dyn FnMut(&mut dyn RowSink) -> Vec<u8>) -> Result<Vec<u8>, Error>;

    /// Takes note that the open transaction will be committed next, and is the last.
    fn before_commit(&mut self, _tags: &[Vec<u8>]) {}
}

/// Runs all statements, at most until `deadline`. Returns their command tags.
///
/// # Errors
/// [`Error::OpenBlock`] (25000) if a transaction block is open at the end.
pub fn run(sql: &CStr, observer: &mut dyn StatementObserver, deadline: Option<Instant>) -> Result<Done, Error> {
    let mut transaction = Transaction { is_started: false, deadline };
    transaction.start();
    let text = ParsedSql::parse(sql);
    let was_logged = text.statements().any(|statement| statement.is_to_be_logged());
    if was_logged {
        log_text(b"statement: ", sql);
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
        let is_last = number == count;
        let commits = is_last && statement.is_plain_commit() && transaction::in_block();
        if commits {
            observer.before_commit(&[tags.as_slice(), &[b"COMMIT".to_vec()]].concat());
        }
        let tag = observer.statement(is_last, &mut |sink| statement.run(sink))?;
        if is_last {
            if count > 1 {
                transaction::end_implicit_block();
            }
            if !statement.is_transaction_control() && !transaction::in_block() {
                transaction::stop_statement_timeout();
                observer.before_commit(&[tags.as_slice(), std::slice::from_ref(&tag)].concat());
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
    // A job that is committed is not to be reported as cancelled.
    let _held = CancelHeld::new();
    compat::exec::process_completed_notifies();
    if transaction::in_block() {
        return Err(Error::OpenBlock);
    }
    log_duration(sql, was_logged);
    ParsedSql::forget();
    Ok(Done { tags })
}

/// Transaction command of a statement (postgres.c, `start_xact_command`).
struct Transaction {
    is_started: bool,
    /// Time at which the job's time is over.
    deadline: Option<Instant>,
}

impl Transaction {
    fn start(&mut self) {
        if !self.is_started {
            transaction::start_command();
            self.is_started = true;
        }
        transaction::start_statement_timeout(self.left());
    }

    /// Returns the milliseconds until the job's time is over.
    fn left(&self) -> Option<i64> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as i64)
    }

    fn finish(&mut self) {
        transaction::stop_statement_timeout();
        if self.is_started {
            // Work that is deferred to the commit is the job's, and no statement's.
            if let Some(left) = self.left() {
                transaction::limit_deferred_work(left);
            }
            transaction::finish_command();
            transaction::stop_statement_timeout();
            self.is_started = false;
        }
    }
}

fn log_duration(sql: &CStr, was_logged: bool) {
    match statement::duration_to_log(was_logged) {
        Some((milliseconds, false)) => compat::process::log_line(format!("duration: {milliseconds} ms").as_bytes()),
        Some((milliseconds, true)) => {
            let line = format!("duration: {milliseconds} ms  statement: ");
            log_text(line.as_bytes(), sql);
        }
        None => {}
    }
}

/// Writes a line with the job's text to the server log.
fn log_text(head: &[u8], sql: &CStr) {
    // Once here, and once as a C string.
    alloc::ensure(2 * (head.len() + sql.count_bytes()));
    compat::process::log_line(&[head, sql.to_bytes()].concat());
}

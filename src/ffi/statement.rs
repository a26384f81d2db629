//! One statement of a text: parse, plan, run (postgres.c, `exec_simple_query`; pquery.c).

use crate::compat::{callback, exec};
use crate::ffi::tuple::{TupleDesc, TupleSlot};
use pgrx::pg_sys;
use std::ffi::{c_char, c_int, CStr};
use std::ptr::null_mut;

/// Takes the rows of a statement.
pub trait RowSink {
    /// Rows with these columns follow; they may be none.
    fn start(&mut self, columns: TupleDesc);
    /// Takes the next row.
    fn row(&mut self, row: TupleSlot);
}

/// The text of a job, parsed. Lives until [`ParsedSql::forget`].
pub struct ParsedSql<'a> {
    sql: &'a CStr,
    statements: Vec<*mut pg_sys::RawStmt>,
}

/// Makes the memory that statements are parsed and run in. Called once, in a worker (postgres.c, `PostgresMain`).
pub fn init() {
    // SAFETY: variables of this process; the context is never deleted.
    unsafe {
        pg_sys::MessageContext = pg_sys::AllocSetContextCreateInternal(
            pg_sys::TopMemoryContext,
            c"MessageContext".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
    }
}

impl<'a> ParsedSql<'a> {
    /// Parses. A transaction command is open, for the parser may look up settings.
    pub fn parse(sql: &'a CStr) -> Self {
        // SAFETY: the list and its nodes live in MessageContext until `forget`.
        let statements = unsafe {
            let _context = crate::ffi::memory::MemoryContextGuard::to(pg_sys::MessageContext);
            let list = pg_sys::pg_parse_query(sql.as_ptr());
            exec::list_of_nodes(list)
        };
        ParsedSql { sql, statements }
    }

    /// Returns its statements.
    pub fn statements(&self) -> impl ExactSizeIterator<Item = Statement<'_>> {
        self.statements.iter().map(|raw| Statement { sql: self.sql, raw: *raw })
    }

    /// Frees what parsing and running took.
    pub fn forget() {
        // SAFETY: nothing of the job is used after this.
        unsafe { pg_sys::MemoryContextReset(pg_sys::MessageContext) };
    }
}

/// Frees what the last text took, also after an error.
pub fn forget() {
    ParsedSql::forget();
}

/// One statement of a text.
#[derive(Clone, Copy)]
pub struct Statement<'a> {
    sql: &'a CStr,
    raw: *mut pg_sys::RawStmt,
}

impl Statement<'_> {
    /// Returns whether the statement itself begins or ends a transaction.
    pub fn is_transaction_control(&self) -> bool {
        // SAFETY: a parsed statement has a node.
        unsafe { (*(*self.raw).stmt).type_ == pg_sys::NodeTag::T_TransactionStmt }
    }

    /// Returns whether the statement does nothing but commit the transaction block that is open.
    pub fn is_plain_commit(&self) -> bool {
        self.is_transaction_control() && {
            // SAFETY: the node is a TransactionStmt.
            let statement = unsafe { &*(*self.raw).stmt.cast::<pg_sys::TransactionStmt>() };
            statement.kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT && !statement.chain
        }
    }

    /// Returns whether `log_statement` wants the statement in the log (postgres.c, `check_log_statement`).
    pub fn is_to_be_logged(&self) -> bool {
        // SAFETY: a setting, and a look at the parsed statement.
        unsafe {
            let level = pg_sys::log_statement as u32;
            level != pg_sys::LogStmtLevel::LOGSTMT_NONE
                && (level == pg_sys::LogStmtLevel::LOGSTMT_ALL
                    || pg_sys::GetCommandLogLevel((*self.raw).stmt) as u32 <= level)
        }
    }

    /// Returns the name of the command.
    pub fn tag(&self) -> &'static CStr {
        // SAFETY: a parsed statement.
        exec::tag_name(unsafe { exec::command_tag(self.raw) })
    }

    /// Runs it as a top-level command; returns its command tag. A transaction command is open. Memory that it takes is
    /// freed with the transaction or by [`ParsedSql::forget`].
    pub fn run(&self, sink: &mut dyn RowSink) -> Vec<u8> {
        let mut receiver = Receiver::new(sink);
        let mut completion = exec::Completion::new();
        // SAFETY: the steps and their order are those of exec_simple_query; the receiver outlives the portal's run.
        unsafe {
            let _context = crate::ffi::memory::MemoryContextGuard::to(pg_sys::MessageContext);
            let own_memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::MessageContext,
                c"pg_background_mgr statement".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let _inner = crate::ffi::memory::MemoryContextGuard::to(own_memory);
            let sql = self.sql.as_ptr();
            let snapshot = pg_sys::analyze_requires_snapshot(self.raw);
            if snapshot {
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            let queries = exec::analyze_and_rewrite(self.raw, sql);
            let plans = exec::plan_queries(queries, sql);
            if snapshot {
                pg_sys::PopActiveSnapshot();
            }
            crate::ffi::interrupt::check();
            let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
            (*portal).visible = false;
            pg_sys::PortalDefineQuery(portal, std::ptr::null(), sql, exec::command_tag(self.raw), plans, null_mut());
            pg_sys::PortalStart(portal, null_mut(), 0, null_mut());
            exec::portal_run(portal, (&raw mut receiver).cast(), &mut completion);
            pg_sys::PortalDrop(portal, false);
            // The statement's own memory goes at once: a text may have thousands of them.
            pg_sys::CurrentMemoryContext = pg_sys::MessageContext;
            pg_sys::MemoryContextDelete(own_memory);
        }
        completion.text()
    }
}

/// The server's receiver with ours behind it.
#[repr(C)]
struct Receiver<'a> {
    callbacks: pg_sys::DestReceiver,
    sink: &'a mut dyn RowSink,
}

impl<'a> Receiver<'a> {
    fn new(sink: &'a mut dyn RowSink) -> Self {
        let callbacks = pg_sys::DestReceiver {
            receiveSlot: Some(receive_slot),
            rStartup: Some(startup),
            rShutdown: Some(ignore),
            rDestroy: Some(ignore),
            // No code treats rows for a tuplestore specially.
            mydest: pg_sys::CommandDest::DestTuplestore,
        };
        Receiver { callbacks, sink }
    }
}

callback! {
    fn startup(receiver: *mut pg_sys::DestReceiver, _operation: c_int, columns: pg_sys::TupleDesc) {
        // SAFETY: the server passes back the receiver that `run` gave it, and a descriptor valid for the call.
        unsafe { (*receiver.cast::<Receiver>()).sink.start(TupleDesc::from_raw(columns)) }
    }
}

callback! {
    fn receive_slot(slot: *mut pg_sys::TupleTableSlot, receiver: *mut pg_sys::DestReceiver) -> bool {
        // SAFETY: as above; the slot is valid for the call. "Go on" even when nobody reads: side effects must happen.
        unsafe { (*receiver.cast::<Receiver>()).sink.row(TupleSlot::from_raw(slot)) };
        true
    }
}

callback! {
    fn ignore(_receiver: *mut pg_sys::DestReceiver) {}
}

/// Tells everybody what this worker does now: `pg_stat_activity.query`, the log's STATEMENT, the statement's start.
pub fn announce(sql: &'static CStr) {
    // SAFETY: the text is never freed; the rest writes this process's own state.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::debug_query_string = sql.as_ptr();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, sql.as_ptr());
    }
}

/// Works as [`announce`], for a text that is freed later; [`announce_idle`] comes before that.
///
/// The text is kept until the next call.
pub fn announce_kept(sql: std::ffi::CString) -> &'static CStr {
    use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
    thread_local! {
        static KEPT: ProcessCell<Option<Box<CStr>>> = const { process_cell(None) };
    }
    // SAFETY: the text before is shown by nobody any more: announce_idle has taken it away.
    unsafe { pg_sys::debug_query_string = std::ptr::null() };
    KEPT.set(Some(sql.into_boxed_c_str()));
    let sql = KEPT.with_borrow(|kept| kept.as_deref().map_or(c"".as_ptr(), CStr::as_ptr));
    // SAFETY: kept until the next call.
    let sql = unsafe { CStr::from_ptr(sql) };
    announce(sql);
    sql
}

/// Tells everybody that this worker is about to do something.
pub fn announce_ready() {
    // SAFETY: writes this process's own state, outside of a transaction.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, std::ptr::null()) };
}

/// Tells everybody that this worker has nothing to do; as of an idle session, the last text stays shown.
pub fn announce_idle() {
    // SAFETY: writes this process's own state, outside of a transaction.
    unsafe {
        pg_sys::debug_query_string = std::ptr::null();
        exec::report_statistics();
        crate::compat::process::set_ps_display(c"idle");
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}

/// Returns how long the text took, if `log_min_duration_statement` and its kin want it in the log, and whether with the
/// text (postgres.c, `check_log_duration`).
pub fn duration_to_log(was_logged: bool) -> Option<(String, bool)> {
    let mut milliseconds = [0 as c_char; 32];
    // SAFETY: the server writes at most 32 characters, zero included.
    let (wanted, text) = unsafe {
        let wanted = pg_sys::check_log_duration(milliseconds.as_mut_ptr(), was_logged);
        (wanted, CStr::from_ptr(milliseconds.as_ptr()).to_string_lossy().into_owned())
    };
    (wanted > 0).then_some((text, wanted > 1))
}

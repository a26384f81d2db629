//! Parse, plan, run: the steps of a simple query (postgres.c, `exec_simple_query`).

use crate::compat::callback;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_char, c_int, CStr};
use std::ptr::null_mut;

/// Kind of command that a statement is. 12 has its name, later servers a number.
#[cfg(not(feature = "__ge13"))]
pub type Tag = *const c_char;
#[cfg(feature = "__ge13")]
pub type Tag = pg_sys::CommandTag::Type;

/// Returns the command tag of a parsed statement (utility.c, `CreateCommandTag`).
///
/// # Safety
/// `statement` is a valid `RawStmt`.
pub unsafe fn command_tag(statement: *mut pg_sys::RawStmt) -> Tag {
    // SAFETY: by contract.
    unsafe { pg_sys::CreateCommandTag((*statement).stmt) }
}

/// Returns the tag's name, as `ps` and the command tag show it.
pub fn tag_name(tag: Tag) -> &'static CStr {
    #[cfg(not(feature = "__ge13"))]
    let name = tag;
    #[cfg(feature = "__ge13")]
    // SAFETY: a lookup in a constant table.
    let name = unsafe { pg_sys::GetCommandTagName(tag) };
    // SAFETY: tag names are string constants of the server.
    unsafe { CStr::from_ptr(name) }
}

/// The outcome of a statement: its tag, and the number of rows.
#[cfg(not(feature = "__ge13"))]
pub struct Completion([c_char; pg_sys::COMPLETION_TAG_BUFSIZE as usize]);
#[cfg(feature = "__ge13")]
pub struct Completion(pg_sys::QueryCompletion);

impl Completion {
    pub fn new() -> Self {
        #[cfg(not(feature = "__ge13"))]
        return Completion([0; pg_sys::COMPLETION_TAG_BUFSIZE as usize]);
        #[cfg(feature = "__ge13")]
        return Completion(pg_sys::QueryCompletion { commandTag: pg_sys::CommandTag::CMDTAG_UNKNOWN, nprocessed: 0 });
    }

    /// Returns the tag as a client sees it: `INSERT 0 1`, `VACUUM` (dest.c, `EndCommand`).
    pub fn text(&self) -> Vec<u8> {
        #[cfg(not(feature = "__ge13"))]
        // SAFETY: the server ends what it writes here with a zero.
        return unsafe { CStr::from_ptr(self.0.as_ptr()) }.to_bytes().to_vec();
        #[cfg(feature = "__ge13")]
        {
            let tag = self.0.commandTag;
            let mut text = tag_name(tag).to_bytes().to_vec();
            // SAFETY: a lookup in a constant table.
            if unsafe { pg_sys::command_tag_display_rowcount(tag) } {
                let oid = if tag == pg_sys::CommandTag::CMDTAG_INSERT { " 0" } else { "" };
                text.extend_from_slice(format!("{oid} {}", self.0.nprocessed).as_bytes());
            }
            text
        }
    }
}

/// Parses a text (parser.c).
///
/// # Safety
/// `sql` is a C string.
pub unsafe fn raw_parse(sql: *const c_char) -> *mut pg_sys::List {
    #[cfg(not(feature = "__ge14"))]
    // SAFETY: by contract.
    return unsafe { pg_sys::raw_parser(sql) };
    #[cfg(feature = "__ge14")]
    // SAFETY: by contract.
    return unsafe { pg_sys::raw_parser(sql, pg_sys::RawParseMode::RAW_PARSE_DEFAULT) };
}

/// Returns where the values of a list are. 12 links them, later servers have an array.
///
/// # Safety
/// `list` is a list, or null for an empty one.
unsafe fn list_cells(list: *const pg_sys::List) -> Vec<*const pg_sys::ListCell> {
    if list.is_null() {
        return Vec::new();
    }
    #[cfg(not(feature = "__ge13"))]
    // SAFETY: a chain that ends with null.
    return unsafe {
        let mut cells = Vec::new();
        let mut cell = (*list).head;
        while !cell.is_null() {
            cells.push(cell.cast_const());
            cell = (*cell).next;
        }
        cells
    };
    #[cfg(feature = "__ge13")]
    // SAFETY: so many cells.
    return unsafe { (0..(*list).length as usize).map(|index| (*list).elements.add(index).cast_const()).collect() };
}

/// Returns the nodes of a list.
///
/// # Safety
/// `list` is a list of nodes that are `T`, or null for an empty one.
pub unsafe fn list_of_nodes<T>(list: *const pg_sys::List) -> Vec<*mut T> {
    // SAFETY: pointers to nodes; a cell begins with its value.
    unsafe { list_cells(list) }.into_iter().map(|cell| unsafe { cell.cast::<*mut T>().read() }).collect()
}

/// Returns the oids of a list.
///
/// # Safety
/// `list` is a list of oids, or null for an empty one.
pub unsafe fn list_of_oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    // SAFETY: by contract; a cell begins with its value.
    unsafe { list_cells(list) }.into_iter().map(|cell| unsafe { cell.cast::<pg_sys::Oid>().read() }).collect()
}

/// Analyzes and rewrites one statement into a list of queries.
///
/// # Safety
/// `statement` came from `pg_parse_query(sql)`; a transaction is open, with a snapshot if the statement wants one.
pub unsafe fn analyze_and_rewrite(statement: *mut pg_sys::RawStmt, sql: *const c_char) -> *mut pg_sys::List {
    #[cfg(not(feature = "__ge15"))]
    // SAFETY: by contract; no parameters.
    return unsafe { pg_sys::pg_analyze_and_rewrite(statement, sql, null_mut(), 0, null_mut()) };
    #[cfg(feature = "__ge15")]
    // SAFETY: by contract; no parameters.
    return unsafe { pg_sys::pg_analyze_and_rewrite_fixedparams(statement, sql, null_mut(), 0, null_mut()) };
}

/// Plans a list of queries; plans may be parallel, as a client's are.
///
/// # Safety
/// As [`analyze_and_rewrite`], which gave `queries`.
pub unsafe fn plan_queries(queries: *mut pg_sys::List, sql: *const c_char) -> *mut pg_sys::List {
    let options = pg_sys::CURSOR_OPT_PARALLEL_OK as c_int;
    #[cfg(not(feature = "__ge13"))]
    let _ = sql;
    #[cfg(not(feature = "__ge13"))]
    // SAFETY: by contract; no parameters.
    return unsafe { pg_sys::pg_plan_queries(queries, options, null_mut()) };
    #[cfg(feature = "__ge13")]
    // SAFETY: by contract; no parameters.
    return unsafe { pg_sys::pg_plan_queries(queries, sql, options, null_mut()) };
}

/// Runs a started portal to its end as a top-level command.
///
/// # Safety
/// `portal` is started; `destination` outlives the call.
pub unsafe fn portal_run(portal: pg_sys::Portal, destination: *mut pg_sys::DestReceiver, completion: &mut Completion) {
    let all = std::ffi::c_long::MAX; // FETCH_ALL
    #[cfg(not(feature = "__ge13"))]
    let completion = completion.0.as_mut_ptr();
    #[cfg(feature = "__ge13")]
    let completion = &raw mut completion.0;
    #[cfg(not(feature = "__ge18"))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::PortalRun(portal, all, true, true, destination, destination, completion)
    };
    #[cfg(feature = "__ge18")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::PortalRun(portal, all, true, destination, destination, completion)
    };
}

/// Forgets the query and plan identifiers of the statement before (backend_status.c).
pub fn reset_query_id() {
    #[cfg(feature = "__ge14")]
    // SAFETY: writes this backend's own status entry.
    unsafe {
        pg_sys::pgstat_report_query_id(0, true)
    };
    #[cfg(feature = "__ge18")]
    // SAFETY: as above.
    unsafe {
        pg_sys::pgstat_report_plan_id(0, true)
    };
}

/// Sends the notifications of the committed transaction. Servers from 15 on do it while they commit.
#[allow(non_snake_case, reason = "the server's name")]
pub fn process_completed_notifies() {
    #[cfg(not(feature = "__ge15"))]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn ProcessCompletedNotifies();
        }
        // SAFETY: called outside of a transaction, as postgres.c does before it waits for the next command.
        unsafe { ProcessCompletedNotifies() };
    }
}

/// Brings the statistics of this process up to date at once (pgstat.c).
pub fn report_statistics() {
    // SAFETY: called outside of a transaction. From 15 on it returns a time, which tells nothing here.
    unsafe { pg_sys::pgstat_report_stat(true) };
}

/// Looks at a query after its analysis.
type Look = unsafe fn(*mut pg_sys::Query);

thread_local! {
    static LOOK: Cell<(Option<Look>, pg_sys::post_parse_analyze_hook_type)> = const { Cell::new((None, None)) };
}

/// While this lives, each query that is analyzed is looked at first (analyze.c, `post_parse_analyze_hook`).
#[must_use = "queries are looked at only while the guard lives"]
pub struct QueryCheck((Option<Look>, pg_sys::post_parse_analyze_hook_type));

impl QueryCheck {
    pub fn begin(look: Look) -> Self {
        // SAFETY: a variable of this process; the hook that was there is called by ours.
        let previous = unsafe {
            if LOOK.get().0.is_none() {
                std::ptr::replace(&raw mut pg_sys::post_parse_analyze_hook, Some(on_analyzed))
            } else {
                LOOK.get().1 // ours is there already
            }
        };
        QueryCheck(LOOK.replace((Some(look), previous)))
    }
}

impl Drop for QueryCheck {
    fn drop(&mut self) {
        let (_, previous) = LOOK.replace(self.0);
        if self.0 .0.is_none() {
            // SAFETY: as above.
            unsafe { pg_sys::post_parse_analyze_hook = previous };
        }
    }
}

/// # Safety
/// Called by the server with a query that it has analyzed.
unsafe fn look_at(query: *mut pg_sys::Query) {
    if let (Some(look), _) = LOOK.get() {
        // SAFETY: by contract.
        unsafe { look(query) };
    }
}

#[cfg(not(feature = "__ge14"))]
callback! {
    fn on_analyzed(state: *mut pg_sys::ParseState, query: *mut pg_sys::Query) {
        // SAFETY: the server's own arguments.
        unsafe {
            look_at(query);
            if let (_, Some(previous)) = LOOK.get() {
                pg_sys::ffi::pg_guard_ffi_boundary(|| previous(state, query));
            }
        }
    }
}

#[cfg(feature = "__ge14")]
callback! {
    fn on_analyzed(state: *mut pg_sys::ParseState, query: *mut pg_sys::Query, jumble: *mut pg_sys::JumbleState) {
        // SAFETY: the server's own arguments.
        unsafe {
            look_at(query);
            if let (_, Some(previous)) = LOOK.get() {
                pg_sys::ffi::pg_guard_ffi_boundary(|| previous(state, query, jumble));
            }
        }
    }
}

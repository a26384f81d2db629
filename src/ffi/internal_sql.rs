//! Keeps the extension's own SQL from the relations of others.
//!
//! A name is looked up whenever a statement is planned, and again when its plan has become invalid. The owner of the
//! schema of the extension may rename it at any moment, and have a table of the same name in one of the old name: with
//! a trigger, a rule or a view that would run with the rights of whoever runs the statement. So each statement is
//! looked at after the names are resolved, before anything of it runs or is folded (analyze.c,
//! `parse_analyze_fixedparams`).

use crate::compat::exec::{list_of_nodes, QueryCheck};
use crate::compat::oid_to_u32;
use crate::error::Error;
use crate::ffi::report;
use crate::ffi::report::Log;
use crate::protocol::Report;
use pgrx::pg_sys;

/// Runs `body`. A statement in it that is about another relation than those of the server and of the extension is an
/// error, [`Error::ForeignRelation`] (55000); also one with a subquery in an expression, which is not looked into.
pub fn checked<T>(body: impl FnOnce() -> T) -> T {
    let _check = QueryCheck::begin(check);
    body()
}

/// # Safety
/// `query` is one that was just analyzed.
unsafe fn check(query: *mut pg_sys::Query) {
    // SAFETY: by contract; the lists are of the nodes that they are read as (parsenodes.h).
    unsafe {
        if (*query).hasSubLinks {
            refuse(0);
        }
        for entry in list_of_nodes::<pg_sys::RangeTblEntry>((*query).rtable) {
            match (*entry).rtekind {
                pg_sys::RTEKind::RTE_RELATION if !is_own((*entry).relid) => refuse(oid_to_u32((*entry).relid)),
                pg_sys::RTEKind::RTE_SUBQUERY => check((*entry).subquery),
                _ => {}
            }
        }
        for expression in list_of_nodes::<pg_sys::CommonTableExpr>((*query).cteList) {
            check((*expression).ctequery.cast());
        }
    }
}

/// Returns whether an object came with the server (transam.h).
pub(super) fn is_of_server(object: pg_sys::Oid) -> bool {
    oid_to_u32(object) < pg_sys::FirstNormalObjectId
}

/// Returns whether a relation belongs to the server or to the extension.
///
/// # Safety
/// Inside a transaction.
pub(super) unsafe fn is_own(relation: pg_sys::Oid) -> bool {
    // SAFETY: by contract.
    is_of_server(relation) || unsafe { is_member(pg_sys::RelationRelationId, relation) }
}

/// Returns whether an object of a catalog is a member of the extension.
///
/// # Safety
/// Inside a transaction.
unsafe fn is_member(catalog: pg_sys::Oid, object: pg_sys::Oid) -> bool {
    // SAFETY: catalog lookups; the name is a C string.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"pg_background_mgr".as_ptr(), true);
        extension != pg_sys::Oid::INVALID && pg_sys::getExtensionOfObject(catalog, object) == extension
    }
}

/// Returns whether a relation has a trigger whose function is not the extension's. Nobody can change that while the
/// caller holds a lock on it.
pub fn has_trigger_of_others(relation: u32) -> bool {
    // SAFETY: inside a transaction; the entry of the relation cache is valid until it is closed.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(relation.into());
        if relation.is_null() {
            return false;
        }
        let triggers = (*relation).trigdesc;
        let count = if triggers.is_null() { 0 } else { (*triggers).numtriggers as usize };
        let functions: Vec<_> = (0..count).map(|index| (*(*triggers).triggers.add(index)).tgfoid).collect();
        pg_sys::RelationClose(relation);
        functions.into_iter().any(|function| !is_member(pg_sys::ProcedureRelationId, function))
    }
}

fn refuse(relation: u32) {
    report::emit(&Report::from(Error::ForeignRelation(relation)), Log::Here);
}

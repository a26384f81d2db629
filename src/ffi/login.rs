//! The contents of the catalogs that a login depends on: the role, the database, their settings, the right to connect.

use crate::compat::catalog::may_connect;
use crate::compat::{role_of_oid, transaction_number};
use crate::ffi::{invalidation, sys};
use crate::ids::{DatabaseId, RoleId};
use pgrx::pg_sys;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A shared catalog, and its index whose first column is looked up (pg_authid.h, pg_database.h, pg_db_role_setting.h).
struct Catalog {
    relation: pg_sys::Oid,
    index: u32,
}
const ROLES: Catalog = Catalog { relation: pg_sys::AuthIdRelationId, index: pg_sys::AuthIdOidIndexId };
const DATABASES: Catalog = Catalog { relation: pg_sys::DatabaseRelationId, index: pg_sys::DatabaseOidIndexId };
const SETTINGS: Catalog =
    Catalog { relation: sys::DbRoleSettingRelationId, index: sys::DbRoleSettingDatidRolidIndexId };

/// A login as it would be now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// Changes when the session might be another one: the rows in pg_authid, pg_database and
    /// pg_db_role_setting, the right to connect.
    pub state: u64,
    /// The login would be refused.
    is_refused: bool,
    /// The number of such logins is limited, as the role or the database has a connection limit.
    pub is_limited: bool,
}

/// The login that was computed last: for whom, at which invalidation message.
#[derive(Clone, Copy)]
struct Known {
    database: DatabaseId,
    role: RoleId,
    messages: u64,
    login: Login,
}

thread_local! {
    static KNOWN: Cell<Option<Known>> = const { Cell::new(None) };
}

/// Returns the login of this role to this database; [`RoleId::NONE`] is the cluster's owner, whatever its name. A
/// transaction is open; what it has changed itself does not count, for no login sees it.
///
/// Costs next to nothing as long as no catalog changes.
pub fn look(database: DatabaseId, role: RoleId) -> Login {
    let messages = invalidation::changes();
    let known = KNOWN.get().filter(|known| (known.database, known.role, known.messages) == (database, role, messages));
    if let Some(known) = known {
        return known.login;
    }
    let login = compute(database, role);
    // SAFETY: as above.
    let has_changed_something = unsafe { transaction_number(pg_sys::GetTopTransactionIdIfAny()) != 0 };
    // The right to connect may be by memberships that this transaction has changed.
    KNOWN.set((!has_changed_something).then_some(Known { database, role, messages, login }));
    login
}

/// Returns [`Login::state`] as [`look`] does, or 0 if a login would be refused, or may be as its connections are
/// limited.
pub fn version(database: DatabaseId, role: RoleId) -> u64 {
    let login = look(database, role);
    if login.is_refused || login.is_limited {
        return 0;
    }
    login.state
}

fn compute(database: DatabaseId, role: RoleId) -> Login {
    let is_refused = role != RoleId::NONE && !may_connect(database, role);
    // Its keys are the same in all processes.
    let mut hasher = DefaultHasher::new();
    is_refused.hash(&mut hasher);
    // SAFETY: a row of a scan that is open.
    let mut add = |row: pg_sys::HeapTuple| unsafe { row_version(row) }.hash(&mut hasher);
    let (mut is_superuser, mut is_limited) = (role == RoleId::NONE, false);
    // SAFETY: a snapshot of our own, which is let go of at the end; rows of the catalogs begin with what their forms
    // have; setdatabase and setrole are the first two columns of pg_db_role_setting, and never null.
    unsafe {
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        // As if this transaction had not done anything yet.
        (*snapshot).curcid = 0;
        each(&ROLES, role.oid(), snapshot, &mut |row| {
            let form = &*form(row).cast::<pg_sys::FormData_pg_authid>();
            is_superuser = form.rolsuper;
            is_limited |= form.rolconnlimit >= 0;
            add(row);
        });
        each(&DATABASES, database.oid(), snapshot, &mut |row| {
            is_limited |= (*form(row).cast::<pg_sys::FormData_pg_database>()).datconnlimit >= 0;
            add(row);
        });
        // What a login applies (postinit.c, `process_settings`).
        for of_database in [DatabaseId::NONE, database] {
            each(&SETTINGS, of_database.oid(), snapshot, &mut |row| {
                if [RoleId::NONE, role].contains(&role_of_oid(*form(row).cast::<pg_sys::Oid>().add(1))) {
                    add(row);
                }
            });
        }
        pg_sys::UnregisterSnapshot(snapshot);
    }
    Login { state: hasher.finish() | 1, is_refused, is_limited: is_limited && !is_superuser }
}

/// Returns where the columns of a row begin.
///
/// # Safety
/// `tuple` is valid.
unsafe fn form(tuple: pg_sys::HeapTuple) -> *const u8 {
    // SAFETY: by contract.
    unsafe { (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff.into()) }
}

/// Returns where a row is, and which transaction has made it.
///
/// # Safety
/// `tuple` is valid.
unsafe fn row_version(tuple: pg_sys::HeapTuple) -> [u32; 4] {
    // SAFETY: by contract; a row of a catalog has a header with its transaction.
    unsafe {
        let ctid = (*tuple).t_self;
        let xmin = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
        [ctid.ip_blkid.bi_hi.into(), ctid.ip_blkid.bi_lo.into(), ctid.ip_posid.into(), transaction_number(xmin)]
    }
}

/// Visits the rows that have this number in the first column of the index.
///
/// # Safety
/// A transaction is open, and the snapshot is registered.
unsafe fn each(catalog: &Catalog, number: u32, snapshot: pg_sys::Snapshot, visit: &mut dyn FnMut(pg_sys::HeapTuple)) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: by contract; a scan as the server does it, whose rows are read while it is open.
    unsafe {
        let relation = pg_sys::table_open(catalog.relation, lock);
        let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
        pg_sys::ScanKeyInit(
            &mut key,
            1,
            pg_sys::BTEqualStrategyNumber as _,
            pg_sys::F_OIDEQ.into(),
            pg_sys::Datum::from(number),
        );
        let scan = pg_sys::systable_beginscan(relation, pg_sys::Oid::from(catalog.index), true, snapshot, 1, &mut key);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            visit(tuple);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
    }
}

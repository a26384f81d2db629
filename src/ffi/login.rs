//! What a login depends on in the catalogs: the role, the database, their settings, the right to connect.

use crate::compat::process::may_connect;
use crate::compat::{oid_to_u32, transaction_number};
use pg_sys::SysCacheIdentifier;
use pgrx::pg_sys;
use std::cell::Cell;

mod server {
    #![allow(non_snake_case, reason = "the server's names")]
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" {
        pub fn AcceptInvalidationMessages();
    }
    extern "C" {
        pub static SharedInvalidMessageCounter: u64;
    }
}

/// `pg_db_role_setting` and its index on database and role (pg_db_role_setting.h)
const SETTINGS: u32 = 2964;
const SETTINGS_INDEX: u32 = 2965;

/// What was computed last: for whom, at which invalidation message.
#[derive(Clone, Copy)]
struct Known {
    database: u32,
    login: u32,
    messages: u64,
    version: u64,
}

thread_local! {
    static KNOWN: Cell<Option<Known>> = const { Cell::new(None) };
}

/// A number that is another one when a login of this role to this database may now be another session than before: its
/// rows in pg_authid, pg_database and pg_db_role_setting, and the right to connect. A transaction is open.
///
/// Costs next to nothing as long as no catalog changes: each change sends invalidation messages (inval.c).
pub fn version(database: u32, login: u32) -> u64 {
    // SAFETY: the caller's transaction is open; a counter of this process.
    let (messages, has_changed_something) = unsafe {
        server::AcceptInvalidationMessages();
        let own = transaction_number(pg_sys::GetTopTransactionIdIfAny());
        (server::SharedInvalidMessageCounter, own != 0)
    };
    // What this transaction has changed itself comes without messages.
    let known = KNOWN.get().filter(|known| {
        !has_changed_something && (known.database, known.login, known.messages) == (database, login, messages)
    });
    if let Some(known) = known {
        return known.version;
    }
    let version = compute(database, login);
    KNOWN.set((!has_changed_something).then_some(Known { database, login, messages, version }));
    version
}

fn compute(database: u32, login: u32) -> u64 {
    // FNV-1a: short, and nobody gains anything from a collision that he had to make in the catalogs.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |number: u32| {
        for byte in number.to_ne_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (cache, key) in [(SysCacheIdentifier::AUTHOID, login), (SysCacheIdentifier::DATABASEOID, database)] {
        // SAFETY: a lookup by the cache's one key; the tuple is released after it was read.
        unsafe {
            let tuple = pg_sys::SearchSysCache1(cache as _, pg_sys::Datum::from(key));
            row_version(tuple).into_iter().for_each(&mut add);
            if !tuple.is_null() {
                pg_sys::ReleaseSysCache(tuple);
            }
        }
    }
    settings(database, login, &mut add);
    add(u32::from(may_connect(database, login)));
    hash | 1
}

/// Where a row is, and which transaction has made it; zeros if there is none.
///
/// # Safety
/// `tuple` is null or valid.
unsafe fn row_version(tuple: pg_sys::HeapTuple) -> [u32; 4] {
    if tuple.is_null() {
        return [0; 4];
    }
    // SAFETY: by contract; a row of a catalog has a header with its transaction.
    unsafe {
        let place = (*tuple).t_self;
        let xmin = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
        [place.ip_blkid.bi_hi.into(), place.ip_blkid.bi_lo.into(), place.ip_posid.into(), transaction_number(xmin)]
    }
}

/// The rows of pg_db_role_setting that a login applies (postinit.c, `process_settings`).
fn settings(database: u32, login: u32, add: &mut dyn FnMut(u32)) {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: a scan as the server does it; the rows are read while the scan is open.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::Oid::from(SETTINGS), lock);
        for of_database in [0, database] {
            let mut key = std::mem::zeroed::<pg_sys::ScanKeyData>();
            pg_sys::ScanKeyInit(
                &mut key,
                1,
                pg_sys::BTEqualStrategyNumber as _,
                pg_sys::F_OIDEQ.into(),
                pg_sys::Datum::from(of_database),
            );
            let index = pg_sys::Oid::from(SETTINGS_INDEX);
            let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), 1, &mut key);
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                // setdatabase and setrole are the first two columns, and never null.
                let data = (*tuple).t_data.cast::<u8>().add((*(*tuple).t_data).t_hoff.into()).cast::<pg_sys::Oid>();
                let role = oid_to_u32(*data.add(1));
                if role == 0 || role == login {
                    row_version(tuple).into_iter().for_each(&mut *add);
                }
            }
            pg_sys::systable_endscan(scan);
        }
        pg_sys::table_close(relation, lock);
    }
}

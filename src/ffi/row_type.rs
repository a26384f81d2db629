//! Fingerprints of row types, which tell whether a type still has the layout that its values in memory were made with.

use crate::compat::oid_to_u32;
use pgrx::pg_sys;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Returns whether there are values of a row type in values of this type, which exists: as elements of an array or
/// bounds of a range, in a domain, or as it is.
pub(super) fn is_over_row_type(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: a catalog lookup.
    unsafe { pg_sys::type_is_rowtype(innermost(type_oid)) }
}

/// Returns the type below domains, arrays and ranges.
pub(super) fn innermost(type_oid: pg_sys::Oid) -> pg_sys::Oid {
    let mut at = type_oid;
    while let Some(inner) = inner(at) {
        at = inner;
    }
    at
}

/// Returns the type that a domain, an array or a range is made of, or `None` for another type.
pub(super) fn inner(type_oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: catalog lookups.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        let inner = [
            base,
            pg_sys::get_element_type(base),
            pg_sys::get_range_subtype(base),
            crate::compat::catalog::range_of_multirange(base),
        ];
        inner.into_iter().find(|inner| *inner != type_oid && *inner != pg_sys::Oid::INVALID)
    }
}

/// Returns a fingerprint of the row types in a type, which `ALTER TABLE` and `ALTER TYPE` change: of their columns'
/// types, at any depth. Returns 0 if there are none.
pub(super) fn fingerprint(type_oid: pg_sys::Oid) -> u64 {
    if !is_over_row_type(type_oid) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    add(innermost(type_oid), &mut hasher);
    hasher.finish() | 1
}

/// Adds the columns of a row type; of any other type nothing.
fn add(type_oid: pg_sys::Oid, hasher: &mut DefaultHasher) {
    // SAFETY: row types of row types may be nested deeply, which the server bounds; the rest are catalog lookups. A
    // relation need not be locked for them: values that others' uncommitted changes would not fit are as they were.
    let relation = unsafe {
        pg_sys::check_stack_depth();
        pg_sys::get_typ_typrelid(type_oid)
    };
    if relation == pg_sys::Oid::INVALID {
        return;
    }
    let mut number = 1;
    while let Some(column) = Column::read(relation, number) {
        (column.type_oid, column.typmod, column.is_dropped, column.length).hash(hasher);
        if !column.is_dropped {
            add(innermost(column.type_oid.into()), hasher);
        }
        number += 1;
    }
    number.hash(hasher);
}

/// A column of a row type.
struct Column {
    type_oid: u32,
    typmod: i32,
    is_dropped: bool,
    length: i16,
}

impl Column {
    fn read(relation: pg_sys::Oid, number: i16) -> Option<Self> {
        let nothing = pg_sys::Datum::from(0_usize);
        let columns = pg_sys::SysCacheIdentifier::ATTNUM as i32;
        // SAFETY: the row is held while it is looked at; its fixed part is the struct (htup_details.h, GETSTRUCT).
        unsafe {
            let (relation, number) = (pg_sys::Datum::from(relation), pg_sys::Datum::from(number));
            let row = pg_sys::SearchSysCache(columns, relation, number, nothing, nothing);
            if row.is_null() {
                return None;
            }
            let data = (*row).t_data;
            let attribute = data.cast::<u8>().add((*data).t_hoff.into()).cast::<pg_sys::FormData_pg_attribute>();
            let column = Column {
                type_oid: oid_to_u32((*attribute).atttypid),
                typmod: (*attribute).atttypmod,
                is_dropped: (*attribute).attisdropped,
                length: (*attribute).attlen,
            };
            pg_sys::ReleaseSysCache(row);
            Some(column)
        }
    }
}

/// Returns whether there is a type of this oid whose row types are as they were.
pub(super) fn is_as_before(type_oid: u32, before: u64) -> bool {
    crate::ffi::invalidation::changes(); // what others have committed in the meantime is to be seen
    let nothing = pg_sys::Datum::from(0_usize);
    let types = pg_sys::SysCacheIdentifier::TYPEOID as i32;
    // SAFETY: a catalog lookup.
    let exists =
        unsafe { pg_sys::SearchSysCacheExists(types, pg_sys::Datum::from(type_oid), nothing, nothing, nothing) };
    exists && fingerprint(type_oid.into()) == before
}

//! Files that this server has reported as unreadable.

use crate::ffi::area::Memory;
use crate::ffi::dsa_ref::DsaPtr;
use crate::registry::layout::ReportedFile;
use crate::registry::lists;
use crate::registry::root::{get_or_create_root, root_mut};

/// Returns whether no process has reported the file with this hash of its name before; from then on one has.
pub fn is_first_report(memory: &mut Memory, name_hash: u64) -> bool {
    let first = get_or_create_root(memory).map_or(DsaPtr::NULL, |root| root.reported_files);
    if lists::chain(first, |file| memory.get(file).next).any(|file| memory.get(file).name_hash == name_hash) {
        return false;
    }
    // Without memory for it the file is reported again, which is better than not at all.
    if let Some(file) = memory.allocate::<ReportedFile>() {
        *memory.get_mut(file) = ReportedFile { next: first, name_hash };
        if let Some(root) = root_mut(memory) {
            root.reported_files = file;
        }
    }
    true
}

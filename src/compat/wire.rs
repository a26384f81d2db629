//! Queues, tuples, temporary files and the protocol's methods.

use pgrx::pg_sys;
use std::ffi::{c_char, c_int};

/// Sends one message into a queue. `flush` wakes the receiver at once; before 15 every message does.
///
/// # Safety
/// `queue` is attached as sender; after "would block" the next call repeats the same message.
pub unsafe fn shm_mq_send(
    queue: *mut pg_sys::shm_mq_handle,
    message: &[u8],
    nowait: bool,
    flush: bool,
) -> pg_sys::shm_mq_result::Type {
    #[cfg(not(feature = "__ge15"))]
    let _ = flush;
    #[cfg(not(feature = "__ge15"))]
    // SAFETY: by contract.
    return unsafe { pg_sys::shm_mq_send(queue, message.len(), message.as_ptr().cast(), nowait) };
    #[cfg(feature = "__ge15")]
    // SAFETY: by contract.
    return unsafe { pg_sys::shm_mq_send(queue, message.len(), message.as_ptr().cast(), nowait, flush) };
}

/// Forms a minimal tuple (heaptuple.c).
///
/// # Safety
/// `values` and `nulls` have an entry for each attribute of `desc`.
pub unsafe fn heap_form_minimal_tuple(
    desc: pg_sys::TupleDesc,
    values: &mut [pg_sys::Datum],
    nulls: &mut [bool],
) -> pg_sys::MinimalTuple {
    #[cfg(not(feature = "__ge18"))]
    // SAFETY: by contract.
    return unsafe { pg_sys::heap_form_minimal_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr()) };
    #[cfg(feature = "__ge18")]
    // SAFETY: by contract.
    return unsafe { pg_sys::heap_form_minimal_tuple(desc, values.as_ptr(), nulls.as_ptr(), 0) };
}

/// Forms a tuple (heaptuple.c).
///
/// # Safety
/// `values` and `nulls` have an entry for each attribute of `desc`.
pub unsafe fn heap_form_tuple(
    desc: pg_sys::TupleDesc,
    values: &mut [pg_sys::Datum],
    nulls: &mut [bool],
) -> pg_sys::HeapTuple {
    #[cfg(not(feature = "__ge18"))]
    // SAFETY: by contract.
    return unsafe { pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr()) };
    #[cfg(feature = "__ge18")]
    // SAFETY: by contract.
    return unsafe { pg_sys::heap_form_tuple(desc, values.as_ptr(), nulls.as_ptr()) };
}

/// Brings a value that lies elsewhere into memory; a compressed one stays compressed (detoast.c).
///
/// # Safety
/// `value` is a varlena with an external header.
pub unsafe fn detoast_external(value: *mut pg_sys::varlena) -> *mut pg_sys::varlena {
    #[cfg(not(feature = "__ge13"))]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn heap_tuple_fetch_attr(value: *mut pg_sys::varlena) -> *mut pg_sys::varlena;
        }
        // SAFETY: by contract.
        unsafe { heap_tuple_fetch_attr(value) }
    }
    #[cfg(feature = "__ge13")]
    // SAFETY: by contract.
    return unsafe { pg_sys::detoast_external_attr(value) };
}

/// Returns how many bytes a varlena takes when it is neither compressed nor elsewhere, its length word included
/// (detoast.c).
///
/// # Safety
/// `value` is a varlena.
pub unsafe fn raw_datum_size(value: pg_sys::Datum) -> usize {
    #[cfg(not(feature = "__ge13"))]
    {
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" {
            fn toast_raw_datum_size(value: pg_sys::Datum) -> usize;
        }
        // SAFETY: by contract.
        unsafe { toast_raw_datum_size(value) }
    }
    #[cfg(feature = "__ge13")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::toast_raw_datum_size(value) as usize
    }
}

/// Writes to a temporary file. Returns `false` if the disk took less; from 14 on that is an error of the server's.
///
/// # Safety
/// `file` is open.
pub unsafe fn buffile_write(file: *mut pg_sys::BufFile, bytes: &[u8]) -> bool {
    #[cfg(not(feature = "__ge14"))]
    // SAFETY: by contract; the bytes are only read.
    return unsafe {
        pg_sys::BufFileWrite(file, bytes.as_ptr().cast_mut().cast(), bytes.len()) as usize == bytes.len()
    };
    #[cfg(feature = "__ge14")]
    // SAFETY: by contract; the bytes are only read.
    unsafe {
        pg_sys::BufFileWrite(file, bytes.as_ptr().cast_mut().cast(), bytes.len());
        true
    }
}

/// Adds bytes to the WAL record that is being built (xloginsert.c).
///
/// # Safety
/// Between `XLogBeginInsert` and `XLogInsert`, which reads the bytes.
pub unsafe fn xlog_register_data(bytes: &'static [u8]) {
    let length = bytes.len() as _;
    // SAFETY: by contract; the bytes are only read.
    unsafe { pg_sys::XLogRegisterData(bytes.as_ptr().cast_mut().cast(), length) };
}

/// Functions that the server calls in place of a client's socket (libpq.h, `PQcommMethods`).
#[repr(C)]
pub struct CommMethods {
    pub comm_reset: extern "C-unwind" fn(),
    pub flush: extern "C-unwind" fn() -> c_int,
    pub flush_if_writable: extern "C-unwind" fn() -> c_int,
    pub is_send_pending: extern "C-unwind" fn() -> bool,
    pub putmessage: unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int,
    pub putmessage_noblock: unsafe extern "C-unwind" fn(c_char, *const c_char, usize),
    #[cfg(not(feature = "__ge14"))]
    pub startcopyout: extern "C-unwind" fn(),
    #[cfg(not(feature = "__ge14"))]
    pub endcopyout: extern "C-unwind" fn(bool),
}

impl CommMethods {
    /// Methods that hand messages to `putmessage` and do nothing else.
    pub const fn new(
        putmessage: unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int,
        putmessage_noblock: unsafe extern "C-unwind" fn(c_char, *const c_char, usize),
    ) -> Self {
        extern "C-unwind" fn nothing() {}
        extern "C-unwind" fn zero() -> c_int {
            0
        }
        extern "C-unwind" fn no() -> bool {
            false
        }
        #[cfg(not(feature = "__ge14"))]
        extern "C-unwind" fn ignore(_: bool) {}
        CommMethods {
            comm_reset: nothing,
            flush: zero,
            flush_if_writable: zero,
            is_send_pending: no,
            putmessage,
            putmessage_noblock,
            #[cfg(not(feature = "__ge14"))]
            startcopyout: nothing,
            #[cfg(not(feature = "__ge14"))]
            endcopyout: ignore,
        }
    }
}

/// Makes the server speak to `methods` as to a client of protocol 3.
///
/// # Safety
/// Called once, in a process that has no client.
pub unsafe fn set_comm_methods(methods: &'static CommMethods) {
    extern "C" {
        static mut PqCommMethods: *const CommMethods;
        static mut FrontendProtocol: u32;
    }
    // SAFETY: variables of this process (pqcomm.c, globals.c), set as pqmq.c does for parallel workers.
    unsafe {
        PqCommMethods = methods;
        FrontendProtocol = 3 << 16;
        pg_sys::whereToSendOutput = pg_sys::CommandDest::DestRemote;
    }
}

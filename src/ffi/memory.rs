//! Memory contexts (mcxt.c).

use crate::compat::callback;
use crate::ffi::process_local::{process_cell, ProcessCell, ProcessLocal};
use pgrx::pg_sys;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::ffi::{c_void, CStr};

/// A memory context of our own that lives until it is dropped or the process ends.
pub struct Context(pg_sys::MemoryContext);

impl Context {
    /// Creates a context that lives as long as the process, unless it is dropped.
    pub fn new(name: &'static CStr) -> Self {
        // SAFETY: a variable of this process.
        Context::under(unsafe { pg_sys::TopMemoryContext }, name)
    }

    /// Creates a context under the current one, for a value that is dropped before that one is deleted; should an error
    /// keep it from being dropped, the current one takes it along.
    pub fn in_current(name: &'static CStr) -> Self {
        // SAFETY: a variable of this process.
        Context::under(unsafe { pg_sys::CurrentMemoryContext }, name)
    }

    /// Creates a context under that of the text that this worker runs.
    pub fn of_text(name: &'static CStr) -> Self {
        // SAFETY: a variable of this process, which `statement::init` has set.
        Context::under(unsafe { pg_sys::MessageContext }, name)
    }

    fn under(parent: pg_sys::MemoryContext, name: &'static CStr) -> Self {
        // SAFETY: the parent is valid; the name is a constant, as the server wants it.
        let context = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                parent,
                name.as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        };
        Context(context)
    }

    /// Makes this the current context until the guard is dropped.
    pub fn enter(&self) -> MemoryContextGuard {
        MemoryContextGuard::to(self.0)
    }

    /// Frees everything in it.
    pub fn reset(&self) {
        // SAFETY: the context is ours, and our callers keep no pointer into it across a reset.
        unsafe { pg_sys::MemoryContextReset(self.0) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A server call that raises while a panic unwinds would abort the process.
        if !std::thread::panicking() {
            // SAFETY: the context is ours and nothing refers to it any more.
            unsafe { pg_sys::MemoryContextDelete(self.0) };
        }
    }
}

/// Another context is current until this is dropped.
#[must_use = "the context is current only while the guard lives"]
pub struct MemoryContextGuard(pg_sys::MemoryContext);

impl MemoryContextGuard {
    pub(super) fn to(context: pg_sys::MemoryContext) -> Self {
        // SAFETY: a variable of this process; the caller's context is valid.
        unsafe {
            let previous = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = context;
            MemoryContextGuard(previous)
        }
    }

    /// Makes `TopMemoryContext` current: what is allocated lives as long as the process.
    pub fn to_process_lifetime() -> Self {
        // SAFETY: a variable of this process.
        MemoryContextGuard::to(unsafe { pg_sys::TopMemoryContext })
    }
}

impl Drop for MemoryContextGuard {
    fn drop(&mut self) {
        // SAFETY: a variable of this process; the context was current before, so it outlives this frame.
        unsafe { pg_sys::CurrentMemoryContext = self.0 };
    }
}

callback! {
    /// Drops what [`keep_in`] has kept.
    fn discard(kept: *mut std::ffi::c_void) {
        // SAFETY: made by `keep_in`, and called once.
        drop(unsafe { Box::from_raw(kept.cast::<Box<dyn Any>>()) });
    }
}

/// Keeps a value that is dropped with a context.
///
/// # Safety
/// The context is valid; the value is not used any more when the context goes.
pub(super) unsafe fn keep_in<T: 'static>(context: pg_sys::MemoryContext, value: T) -> *mut T {
    // SAFETY: by contract; the callback lives in the context that calls it.
    unsafe {
        let size = size_of::<pg_sys::MemoryContextCallback>();
        let callback = pg_sys::MemoryContextAllocZero(context, size).cast::<pg_sys::MemoryContextCallback>();
        let kept = Box::into_raw(Box::new(Box::new(value) as Box<dyn Any>));
        (*callback).func = Some(discard);
        (*callback).arg = kept.cast();
        pg_sys::MemoryContextRegisterResetCallback(context, callback);
        (&raw mut **kept).cast()
    }
}

/// A value that belongs to a memory context, and is found by it.
struct Kept<T: 'static> {
    context: usize,
    value: RefCell<T>,
}

thread_local! {
    /// Addresses of the values of contexts, by context and type.
    static FOUND: ProcessCell<Vec<((usize, TypeId), *mut c_void)>> = const { process_cell(Vec::new()) };
}

impl<T: 'static> Drop for Kept<T> {
    fn drop(&mut self) {
        let key = (self.context, TypeId::of::<T>());
        FOUND.with_borrow_mut(|found| found.retain(|(at, _)| *at != key));
    }
}

/// Returns the value of this type that a context has; at the first call, a new one. It goes with the context.
///
/// # Safety
/// The context is valid; the value is not used any more when the context goes.
pub(super) unsafe fn value_of<T: Default + 'static>(context: pg_sys::MemoryContext) -> *const RefCell<T> {
    let key = (context as usize, TypeId::of::<T>());
    let found = FOUND.with_borrow(|found| found.iter().find(|(at, _)| *at == key).map(|(_, value)| *value));
    if let Some(value) = found {
        return value.cast();
    }
    // SAFETY: by contract; the drop of what is kept, with its context, removes it from where it is found.
    let kept = unsafe { keep_in(context, Kept { context: key.0, value: RefCell::new(T::default()) }) };
    // SAFETY: a valid place.
    let value = unsafe { &raw const (*kept).value };
    FOUND.with_borrow_mut(|found| found.push((key, value.cast_mut().cast())));
    value
}

/// Copies bytes into the current context and ends them with a zero.
pub(super) fn c_string(bytes: &[u8]) -> *mut std::ffi::c_char {
    // SAFETY: the allocation has room for the bytes and the zero.
    unsafe {
        let copy = pg_sys::MemoryContextAllocHuge(pg_sys::CurrentMemoryContext, bytes.len() + 1).cast::<u8>();
        copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        copy.add(bytes.len()).write(0);
        copy.cast()
    }
}

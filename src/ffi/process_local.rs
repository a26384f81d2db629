//! Variables of this process.
//!
//! The server runs on one thread, so they are thread-local. They are never dropped: thread-locals are destroyed in
//! `exit()`, after the server has taken down what they may hold, and before its own `atexit` callback, which may still
//! need them.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::thread::LocalKey;

/// The value that a `thread_local!` of this kind holds.
pub type ProcessCell<T> = ManuallyDrop<RefCell<T>>;

/// Makes a slot.
pub const fn process_cell<T>(value: T) -> ProcessCell<T> {
    ManuallyDrop::new(RefCell::new(value))
}

/// Works with a variable of this process, as the standard library does with a `LocalKey<RefCell<T>>`.
pub trait ProcessLocal<T: 'static> {
    fn with_borrow<R>(&'static self, work: impl FnOnce(&T) -> R) -> R;
    fn with_borrow_mut<R>(&'static self, work: impl FnOnce(&mut T) -> R) -> R;
    fn set(&'static self, value: T);
}

impl<T: 'static> ProcessLocal<T> for LocalKey<ProcessCell<T>> {
    fn with_borrow<R>(&'static self, work: impl FnOnce(&T) -> R) -> R {
        self.with(|process_cell| work(&process_cell.borrow()))
    }

    fn with_borrow_mut<R>(&'static self, work: impl FnOnce(&mut T) -> R) -> R {
        self.with(|process_cell| work(&mut process_cell.borrow_mut()))
    }

    fn set(&'static self, value: T) {
        self.with_borrow_mut(|process_cell| *process_cell = value);
    }
}

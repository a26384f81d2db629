//! References to records in a DSA area (dsa.h): offsets that have a type, and are made by allocations alone.

use bytemuck::{Pod, Zeroable};
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// Reference to a record in the area; zeros are none.
#[repr(transparent)]
pub struct DsaPtr<T>(u64, PhantomData<fn() -> T>);

impl<T> DsaPtr<T> {
    pub const NULL: Self = DsaPtr(0, PhantomData);

    /// Returns the reference to what is at an offset in the area.
    pub(super) fn new(offset: u64) -> Self {
        DsaPtr(offset, PhantomData)
    }

    /// Returns the offset in the area.
    pub(super) fn offset(self) -> u64 {
        self.0
    }

    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// Returns the reference, or `None` if it refers to nothing.
    pub fn some(self) -> Option<Self> {
        (!self.is_null()).then_some(self)
    }
}

impl<T> Clone for DsaPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DsaPtr<T> {}

impl<T> PartialEq for DsaPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for DsaPtr<T> {}

impl<T> Hash for DsaPtr<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<T> std::fmt::Debug for DsaPtr<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

// SAFETY: one integer, of which zero is a valid value.
unsafe impl<T> Zeroable for DsaPtr<T> {}
// SAFETY: one integer without padding; references live in records of the area themselves.
unsafe impl<T: 'static> Pod for DsaPtr<T> {}

/// Reference to records of one type in a row, and their number; zeros are none.
#[repr(C)]
pub struct DsaArray<T> {
    start: DsaPtr<T>,
    length: u64,
}

impl<T> DsaArray<T> {
    /// Returns the reference to so many records from an offset in the area on.
    pub(super) fn new(offset: u64, length: usize) -> Self {
        DsaArray { start: DsaPtr::new(offset), length: length as u64 }
    }

    /// Returns the offset of the first record in the area.
    pub(super) fn offset(self) -> u64 {
        self.start.0
    }

    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    /// Returns the number of records.
    pub fn len(self) -> u64 {
        self.length
    }
}

impl<T> Clone for DsaArray<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DsaArray<T> {}

impl<T> std::fmt::Debug for DsaArray<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]", self.start, self.length)
    }
}

// SAFETY: two integers, of which zeros are valid values.
unsafe impl<T> Zeroable for DsaArray<T> {}
// SAFETY: two integers of eight bytes, without padding.
unsafe impl<T: 'static> Pod for DsaArray<T> {}

//! Randomness (pg_strong_random.c).

use pgrx::pg_sys;

/// Returns bytes that cannot be guessed.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    // SAFETY: writes that many bytes; without a source of randomness the server would not have started.
    unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) };
    bytes
}

/// Returns a number that cannot be guessed.
pub fn random_u64() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

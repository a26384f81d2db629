//! Random choices that a seed repeats.

use std::time::{SystemTime, UNIX_EPOCH};

const SEED: &str = "PGBM_SEED";

/// A generator that is random enough for moments. A failure names the seed.
pub struct Rng {
    state: u64,
    seed: u64,
}

impl Drop for Rng {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{SEED}={}", self.seed);
        }
    }
}

impl Rng {
    /// Takes the seed from `PGBM_SEED`, or another one each time.
    pub fn new() -> Self {
        let seed = number(SEED).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
            now.as_secs() ^ u64::from(now.subsec_nanos())
        });
        Rng { state: seed, seed }
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX; the low bits are poor.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % limit
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// Returns how often a case does what it does `usually` times: `make soak` multiplies it by `PGBM_SOAK_ROUNDS`.
pub fn rounds(usually: u64) -> u64 {
    usually * number("PGBM_SOAK_ROUNDS").unwrap_or(1)
}

/// Returns a number of the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

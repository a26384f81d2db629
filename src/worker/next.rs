//! Outcome of a step of a worker: it goes on, or must end.

use std::ops::ControlFlow;

/// The worker must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit;

/// Tells a worker whether it goes on.
pub type Next = ControlFlow<Exit>;

/// The worker goes on.
pub const CONTINUE: Next = ControlFlow::Continue(());
/// The worker must end.
pub const EXIT: Next = ControlFlow::Break(Exit);

/// Returns [`EXIT`] if this holds.
pub fn exit_if(is_over: bool) -> Next {
    if is_over {
        EXIT
    } else {
        CONTINUE
    }
}

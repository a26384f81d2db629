//! The outcome of a job, as the log has it.

use super::Report;
use serde::{Deserialize, Serialize};

/// The columns of a final row that the job itself decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Rows of the job as a JSON array, or its command tags.
    pub result: Option<Vec<u8>>,
    /// Rows returned or affected by the last statement.
    pub row_count: Option<i64>,
    /// The result, or a text of the error, is not whole.
    pub is_truncated: bool,
    /// Tag of the last statement.
    pub command_tag: Option<Vec<u8>>,
    /// SQLSTATE of the failure, packed; 0 if the job did not fail.
    pub sqlstate: i32,
    pub message: Option<Vec<u8>>,
    pub detail: Option<Vec<u8>>,
    pub hint: Option<Vec<u8>>,
    pub context: Option<Vec<u8>>,
}

impl Outcome {
    /// Returns the outcome of a job that failed.
    pub fn failed(report: &Report) -> Self {
        Outcome {
            sqlstate: report.sqlstate,
            message: Some(report.message.clone()),
            detail: report.detail.clone(),
            hint: report.hint.clone(),
            context: report.context.clone(),
            ..Outcome::default()
        }
    }

    /// Returns the SQLSTATE as five characters, or `None` if the job did not fail.
    pub fn sqlstate_text(&self) -> Option<Vec<u8>> {
        (self.sqlstate != 0).then(|| super::sqlstate_text(self.sqlstate))
    }
}

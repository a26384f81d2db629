//! Every error that the extension itself raises, with its SQLSTATE, detail and hint.

use crate::protocol::{sqlstate, Malformed, Report, MAX_NESTING, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use crate::sql_split::MAX_PIECES;

/// An error of the extension. Texts that come from the server are [`DbText`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{0} must not be null")]
    NullArgument(&'static str),
    #[error("SQL text must not be empty")]
    EmptySql,
    #[error("SQL text is too long")]
    SqlTooLong(usize),
    #[error("there is no query to run")]
    NoQuery,
    #[error("SQL text of {0} must not be null")]
    NullQuery(ArgLocation),
    /// An object without the key of the text.
    #[error("{0} has no key \"query\"")]
    MissingQuery(ArgLocation),
    #[error("SQL text of {0} must not be empty")]
    EmptyQuery(ArgLocation),
    #[error("SQL text of {place} is too long")]
    QueryTooLong { place: ArgLocation, length: usize },
    #[error("{place} must be {wanted}")]
    Shape { place: ArgLocation, wanted: &'static str },
    #[error("unrecognized key \"{key}\" in {place}")]
    UnknownKey { place: ArgLocation, key: DbText, keys: &'static [&'static str] },
    #[error("invalid value for key \"{key}\" in {place}")]
    BadValue { place: ArgLocation, key: &'static str, wanted: DbText },
    #[error("the text has too many queries")]
    TooManyQueries,
    /// A text that cannot be cut into queries, as the parser sees it.
    #[error("the text is no list of queries")]
    NoCut(Box<Report>),
    #[error("queue size must be at least {0} bytes")]
    QueueTooSmall(usize),
    #[error("queue size must not exceed {MAX_QUEUE_BYTES} bytes")]
    QueueTooLarge,
    #[error("cannot launch a background job within a security-restricted operation")]
    RestrictedOperation,
    /// In a worker of a subscription, as the owner of the table.
    #[error("cannot launch a background job within a security-restricted operation")]
    RestrictedApply,
    #[error("cannot read or give up the result of a background job within a security-restricted operation")]
    RestrictedRead,
    #[error("cannot launch a background job from {0}")]
    ForbiddenProcess(&'static str),
    #[error("background jobs are nested too deeply")]
    TooDeep,
    /// `own`: how many of them are this session's.
    #[error("too many dynamic shared memory segments")]
    SegmentsExhausted { own: usize },
    #[error("too many unread results of background jobs in this session")]
    TooManyUnread { unread: usize, limit: usize },
    /// Bytes.
    #[error("results of background jobs exceed pg_background_mgr.max_result_memory ({}kB)", limit / 1024)]
    ResultMemory { wanted: usize, held: usize, limit: usize },
    #[error("could not register background process")]
    SlotsExhausted,
    #[error("could not start background process")]
    NotStarted,
    #[error("PID {0} is not attached to this session")]
    NotAttached(i32),
    #[error("result of the job with PID {0} has already been read")]
    AlreadyRead(i32),
    #[error("result of the job with PID {0} has been given up")]
    GivenUp(i32),
    #[error("result of the job with PID {0} is being read")]
    BeingRead(i32),
    #[error("lost connection to the background worker with PID {0}")]
    WorkerLost(i32),
    #[error("could not make the background worker ready for the job")]
    NotRun,
    #[error("terminating background worker \"pg_background\" due to administrator command")]
    Terminated,
    #[error("set-valued function called in context that cannot accept a set")]
    SetNotAccepted,
    #[error("the function is declared otherwise than the library of pg_background_mgr expects")]
    Declaration,
    #[error("result has {}, but the column list has {listed}", counted(*result, "column"))]
    ColumnCount { result: usize, listed: usize },
    #[error("result column {number} (\"{name}\") has type {result}, but the column list says {listed}")]
    ColumnType { number: usize, name: DbText, result: DbText, listed: DbText },
    #[error("a row type of the result was altered while the result was read")]
    RowTypeAltered,
    #[error("deadlock detected")]
    Deadlock { detail: DbText },
    #[error("job ended inside a transaction block")]
    OpenBlock,
    #[error("COPY FROM STDIN is not possible in a background job")]
    CopyIn,
    #[error("COPY TO STDOUT in binary format is not possible in a background job")]
    BinaryCopyOut,
    #[error("COPY TO STDOUT gave a line that is not valid in the database's encoding")]
    CopyEncoding,
    #[error("too many connections for role \"{0}\"")]
    RoleConnections(DbText),
    #[error("too many connections for database \"{0}\"")]
    DatabaseConnections(DbText),
    #[error("could not use a temporary file for the result of a background job")]
    Spill,
    #[error("temporary file size exceeds temp_file_limit ({0}kB)")]
    TempFileLimit(usize),
    #[error("role with OID {0} does not exist")]
    RoleGone(u32),
    #[error("role \"{0}\" does not exist")]
    NoRole(DbText),
    #[error("permission denied to change who may use pg_background_mgr")]
    NotOwner,
    #[error("background job queue is full")]
    QueueFull { wanted: u64, free: u64, limit: u64 },
    /// Counts the bytes that could not be had.
    #[error("out of memory")]
    OutOfMemory(usize),
    #[error("value of parameter \"{0}\" that was given for this session is refused")]
    SettingRefused(DbText),
    #[error("cannot launch background jobs in single-user mode")]
    SingleUser,
    #[error("out of shared memory")]
    SharedMemory,
    #[error("could not start {} at once", counted(*wanted, "background job"))]
    TooFewWorkers { wanted: usize, free: usize },
    #[error("could not start {} at once", counted(*wanted, "background job"))]
    FewerAllowed { wanted: usize, allowed: usize },
    #[error("no background workers are available to pg_background_mgr")]
    NoWorkers,
    #[error("cannot launch background jobs during recovery")]
    InRecovery,
    #[error("cannot stop background jobs during recovery")]
    StopInRecovery,
    #[error("permission denied to stop or retry background jobs of a superuser")]
    OfSuperuser,
    #[error("the log of pg_background_mgr is not visible to background jobs yet")]
    NotCommitted,
    #[error("could not write file of accepted jobs: {0}")]
    Spooled(std::io::Error),
    #[error("the log of pg_background_mgr is locked")]
    LogLocked,
    #[error("the log of pg_background_mgr was altered")]
    LogAltered,
    #[error("extension \"pg_background_mgr\" is older than its library")]
    LogMissing,
    #[error("the function can only be called by the trigger of log_background")]
    NotOwnTrigger,
    #[error("view \"log_background\" has a trigger that is not part of extension \"pg_background_mgr\"")]
    ForeignTrigger,
    #[error("the log of pg_background_mgr cannot be refreshed")]
    LogRefresh,
    /// Oid of the relation.
    #[error("relation with OID {0} is not part of extension \"pg_background_mgr\"")]
    ForeignRelation(u32),
    #[error("background job or batch \"{0}\" does not exist")]
    NoSuchJob(DbText),
    #[error("no job of \"{0}\" can be run again")]
    NothingToRetry(DbText),
    #[error("the end of background job \"{0}\" is not in the log yet")]
    NotLogged(DbText),
    #[error("canceling job due to timeout")]
    JobTimeout,
    #[error("execution type must be \"async\" or \"sync\", not \"{0}\"")]
    ExecType(DbText),
    #[error("no worker is left for the jobs that this job waits for")]
    Stuck,
    #[error("a job cannot follow itself, or jobs that begin only after its end")]
    FollowsItself,
    #[error("age must not be negative")]
    NegativeAge,
    #[error("progress must be between 0 and 100 percent")]
    Progress,
    #[error("invalid input syntax for type uuid: \"{0}\"")]
    Uuid(DbText),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Names what cannot be.
    #[error("internal error of pg_background_mgr: {0}")]
    Internal(&'static str),
    /// An error of the job itself, or one that the server raised in the worker.
    #[error("the background job failed")]
    Job(Box<Report>),
}

/// A place in what a caller gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgLocation {
    /// The argument `p_options`.
    Options,
    /// The argument `p_jobs`.
    Jobs,
    /// A job by its number, from 1.
    Job(usize),
}

impl std::fmt::Display for ArgLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ArgLocation::Options => f.write_str("p_options"),
            ArgLocation::Jobs => f.write_str("p_jobs"),
            ArgLocation::Job(number) => write!(f, "job {number}"),
        }
    }
}

/// A text in the database's encoding, a character for each byte: so it can stand in a format string, and comes out of
/// it as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbText(String);

impl DbText {
    pub fn new(bytes: &[u8]) -> Self {
        DbText(bytes.iter().map(|byte| char::from(*byte)).collect())
    }

    /// Lines that were formatted from texts.
    pub fn join(lines: &[String]) -> Self {
        DbText(lines.join("\n"))
    }
}

impl std::fmt::Display for DbText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns a number with its noun, in singular or plural.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Turns a text back into the bytes of the database's encoding.
fn bytes(text: String) -> Vec<u8> {
    text.chars().map(|character| character as u8).collect()
}

/// Hint that tells where the server's dynamic shared memory comes from.
pub const SHARED_MEMORY_HINT: &str =
    "The server has no room for more dynamic shared memory, which is in /dev/shm on Linux. \
                                      In a container you may need to make that larger (Docker: --shm-size).";

impl Error {
    /// The SQLSTATE, packed.
    pub fn sqlstate(&self) -> i32 {
        use Error::*;
        sqlstate(match self {
            QueueFull { .. } | ResultMemory { .. } => b"53400",
            SettingRefused(_) => b"55P02",
            SharedMemory | OutOfMemory(_) => b"53200",
            TooFewWorkers { .. } | FewerAllowed { .. } | NoWorkers | Stuck | SingleUser => b"53000",
            InRecovery | StopInRecovery => b"25006",
            NotCommitted | NothingToRetry(_) | NotLogged(_) | FollowsItself | ForeignRelation(_) | LogAltered
            | LogMissing | LogRefresh | ForeignTrigger => b"55000",
            Spooled(_) => b"58030",
            LogLocked => b"55P03",
            NoSuchJob(_) => b"42704",
            JobTimeout => b"57014",
            Uuid(_) => b"22P02",
            Progress | NegativeAge | ExecType(_) => b"22023",
            NullArgument(_) | NullQuery(_) => b"22004",
            EmptySql | NoQuery | EmptyQuery(_) | QueueTooSmall(_) | QueueTooLarge => b"22023",
            Shape { .. } | MissingQuery(_) | UnknownKey { .. } | BadValue { .. } => b"22023",
            SqlTooLong(_) | QueryTooLong { .. } | TooManyQueries | TooDeep => b"54000",
            RestrictedOperation | RestrictedApply | RestrictedRead | ForbiddenProcess(_) | NotOwner | OfSuperuser => {
                b"42501"
            }
            SegmentsExhausted { .. } | TooManyUnread { .. } | SlotsExhausted | NotStarted | NotRun => b"53000",
            NotAttached(_) | AlreadyRead(_) | GivenUp(_) | RoleGone(_) | NoRole(_) => b"42704",
            BeingRead(_) => b"55000",
            WorkerLost(_) => b"08006",
            Terminated => b"57P01",
            SetNotAccepted | CopyIn | BinaryCopyOut => b"0A000",
            Declaration => b"42P13",
            NotOwnTrigger => b"39P01",
            ColumnCount { .. } | ColumnType { .. } | RowTypeAltered => b"42804",
            Deadlock { .. } => b"40P01",
            OpenBlock => b"25000",
            CopyEncoding => b"22021",
            RoleConnections(_) | DatabaseConnections(_) => b"53300",
            Spill => b"58030",
            TempFileLimit(_) => b"53400",
            Malformed(_) | Internal(_) => b"XX000",
            Job(report) | NoCut(report) => return report.sqlstate,
        })
    }

    fn detail(&self) -> Option<String> {
        Some(match self {
            Error::SqlTooLong(length) | Error::QueryTooLong { length, .. } => {
                format!("It has {length} bytes; a background job may have {MAX_SQL_BYTES}.")
            }
            Error::QueueFull { wanted, free, limit } => {
                format!("The jobs need {wanted} bytes, and {free} of {limit} are free.")
            }
            Error::SegmentsExhausted { own } => {
                format!("This session has {own} of them, for its results or its next job.")
            }
            Error::TooManyUnread { unread, limit } => {
                format!("It has {unread} in shared memory, and pg_background_mgr.max_unread_results allows {limit}.")
            }
            Error::ResultMemory { wanted, held, .. } => {
                format!("The job wants {wanted} bytes, and unread results of this session have {held}.")
            }
            Error::TooFewWorkers { free: 1, .. } => "1 worker is free.".into(),
            Error::TooFewWorkers { free, .. } => format!("{free} workers are free."),
            Error::FewerAllowed { allowed, .. } => {
                format!("The options allow the batch {}.", counted(*allowed, "worker"))
            }
            Error::SettingRefused(_) => {
                "pg_background_mgr does not know the value of the server's configuration in this session.".into()
            }
            Error::OutOfMemory(bytes) => format!("Failed on request of size {bytes}."),
            Error::TooManyQueries => format!("It may have {MAX_PIECES}."),
            Error::BadValue { wanted, .. } => wanted.to_string(),
            Error::TooDeep => format!("{MAX_NESTING} jobs that have launched each other still run."),
            Error::Deadlock { detail } => detail.to_string(),
            Error::OfSuperuser => {
                "Only roles with the SUPERUSER attribute may stop or retry jobs of roles with the SUPERUSER attribute."
                    .into()
            }
            Error::OpenBlock => "Its work was rolled back, as when a client disconnects.".into(),
            Error::WorkerLost(_) => "The worker ended before it reported how the job ended.".into(),
            _ => return None,
        })
    }

    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Error::QueueFull { wanted, limit, .. } if wanted > limit => {
                    "Launch fewer or shorter jobs in a call, or increase pg_background_mgr.queue_memory_limit."
                }
                Error::QueueFull { .. } => {
                    "Wait until jobs have ended, or increase pg_background_mgr.queue_memory_limit."
                }
                Error::SharedMemory => return Some(SHARED_MEMORY_HINT.into()),
                Error::TooFewWorkers { .. } | Error::FewerAllowed { .. } => {
                    "With p_monitor true, jobs wait in a queue until workers are free."
                }
                Error::NoWorkers => {
                    "Increase max_worker_processes or pg_background_mgr.max_workers, or decrease \
                     pg_background_mgr.reserved_workers."
                }
                Error::NotCommitted => "Commit the transaction that created the extension first.",
                Error::NothingToRetry(_) => "Jobs can be run again that have failed, were stopped, or are lost.",
                Error::NotLogged(_) => {
                    "Somebody has the log locked, or it cannot be written: the server log may tell why. Try again then."
                }
                Error::LogAltered => {
                    "Drop its indexes that have expressions, predicates or operator classes of others, and set its \
                     access method to heap."
                }
                Error::LogMissing => "You may need to run ALTER EXTENSION pg_background_mgr UPDATE.",
                Error::ForeignTrigger => {
                    "It would run with your rights. Drop it, or delete old rows with pg_background_prune."
                }
                Error::LogRefresh => "Delete rows with DELETE FROM log_background or with pg_background_prune.",
                Error::FollowsItself => "Follow them from outside of their batch, or say for how long: p_timeout.",
                Error::Stuck => {
                    "All workers run jobs that wait for other jobs. Increase pg_background_mgr.max_workers, or launch \
                     without waiting."
                }
                Error::NoRole(_) => "Create a role for those who are to use it, and grant that to them.",
                Error::RestrictedApply => {
                    "Changes are applied as the owner of the table. Create or alter the subscription WITH \
                     (run_as_owner = true) to let triggers launch jobs as its owner."
                }
                Error::UnknownKey { keys, .. } => return Some(format!("Known keys are {}.", keys.join(", "))),
                Error::SqlTooLong(_) | Error::QueryTooLong { .. } => {
                    "Put the data into a table and let the job read it."
                }
                Error::QueueTooLarge => "What does not fit in the queue is kept in memory and in a temporary file.",
                Error::SegmentsExhausted { own: 0 } => {
                    "Other sessions have them, for parallel queries, or for results that they have not read. \
                     The server has more of them with a larger max_connections."
                }
                Error::SegmentsExhausted { .. } => "Read or detach the results of jobs that have ended.",
                Error::TooManyUnread { .. } => {
                    "Read them with pg_background_result, or give them up with pg_background_detach. DISCARD ALL gives \
                     all of them up. Or increase pg_background_mgr.max_unread_results."
                }
                Error::ResultMemory { .. } => {
                    "Read or detach the results of jobs that have ended, or launch with a smaller queue_size: what \
                     does not fit there is kept in memory and in a temporary file."
                }
                Error::SlotsExhausted => "You may need to increase max_worker_processes.",
                Error::QueueTooSmall(_) => "With 0, or without it, the queue has its default size.",
                Error::MissingQuery(_) => "The text of the job is its key \"query\".",

                Error::SingleUser => "Start the server in multi-user mode: only then it has background workers.",
                Error::SettingRefused(_) => {
                    "Connect without it in the options of the connection, and RESET it with ALTER ROLE and ALTER \
                     DATABASE."
                }
                Error::NotStarted => "The server log may tell why.",
                Error::NotRun => "The job has not begun. Launch it again.",
                Error::NotAttached(_) => {
                    "A result can be read only in the session that launched the job, and by the role that did. Jobs of \
                     pg_background_launch_num have theirs in log_background."
                }
                Error::AlreadyRead(_) | Error::GivenUp(_) => "Launch the job again to have its result again.",
                Error::SetNotAccepted => "Call it in FROM with a column list, or in a select list.",
                Error::Declaration => "You may need to run ALTER EXTENSION pg_background_mgr UPDATE.",
                Error::ColumnCount { .. } => "The result is still there to be read with another column list.",
                Error::ColumnType { .. } => {
                    "The result is still there to be read with another column list. Any column can be read as text."
                }
                Error::RowTypeAltered => "The result is still there. Read it again, or its row types as text.",
                Error::Deadlock { .. } => {
                    "The job goes on when this transaction ends: read its result, or look at log_background, then. Do \
                     not launch it again."
                }
                Error::OpenBlock => "End the text with COMMIT or ROLLBACK.",
                Error::CopyIn => "COPY from a file or a program on the server, or INSERT.",
                Error::BinaryCopyOut => "COPY in text or csv format.",
                Error::CopyEncoding => "COPY without the ENCODING option.",
                _ => return None,
            }
            .into(),
        )
    }

    /// Returns what the server is told: a report at this level that was made at this place.
    pub fn into_report(self, level: i32, place: &std::panic::Location) -> Report {
        let file = place.file().rsplit('/').next().unwrap_or_default();
        let (sqlstate, detail, hint) = (self.sqlstate(), self.detail(), self.hint());
        if let Error::Job(report) | Error::NoCut(report) = self {
            return *report;
        }
        Report {
            level,
            sqlstate,
            message: bytes(self.to_string()),
            detail: detail.map(bytes),
            hint: hint.map(bytes),
            file: Some(file.as_bytes().to_vec()),
            line: place.line() as i32,
            ..Report::default()
        }
    }
}

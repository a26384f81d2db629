//! Every error that the extension itself raises: one table of messages, SQLSTATEs, details and hints.

use crate::ids::RoleId;
use crate::protocol::{sqlstate, Malformed, Report, MAX_NESTING, MAX_QUEUE_BYTES, MAX_SQL_BYTES};
use crate::sql_split::MAX_PIECES;

/// Formats the message of a row of the table.
macro_rules! message {
    (($($format:tt)*)) => {
        format!($($format)*)
    };
    ($format:literal) => {
        format!($format)
    };
}

/// Defines [`Error`] as a table. A row is a variant, whose fields have names in the rest of the row, its SQLSTATE, its
/// message, and a detail and a hint if it has them.
macro_rules! errors {
    ($(
        $(#[$doc:meta])*
        $variant:ident $(($($item:ident: $item_type:ty),+))? $({ $($field:ident: $field_type:ty),+ })?
            => $sqlstate:expr, $message:tt $(, detail: $detail:expr)? $(, hint: $hint:expr)?;
    )+) => {
        /// An error of the extension. Texts that come from the server are [`DbText`].
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum Error {
            $($(#[$doc])* $variant $(($($item_type),+))? $({ $($field: $field_type),+ })?,)+
        }

        impl Error {
            #[allow(unused_variables, reason = "a row need not tell all that it has")]
            fn texts(&self) -> Texts {
                match self {
                    $(Error::$variant $(($($item),+))? $({ $($field),+ })? => Texts {
                        sqlstate: Sqlstate::packed($sqlstate),
                        message: message!($message),
                        detail: None$(.or(Some(($detail).to_string())))?,
                        hint: None$(.or(Some(($hint).to_string())))?,
                    },)+
                }
            }

            /// Returns an error of each variant.
            #[cfg(any(test, feature = "pg_test"))]
            pub fn samples() -> Vec<Error> {
                vec![$(
                    Error::$variant
                        $(($(<$item_type as sample::Sample>::sample()),+))?
                        $({ $($field: <$field_type as sample::Sample>::sample()),+ })?
                ),+]
            }
        }
    };
}

/// The row of an error, filled in.
struct Texts {
    sqlstate: i32,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// A SQLSTATE as a row of the table has it: five characters, or packed if the error is another's.
trait Sqlstate {
    fn packed(self) -> i32;
}

impl Sqlstate for &[u8; 5] {
    fn packed(self) -> i32 {
        sqlstate(self)
    }
}

impl Sqlstate for i32 {
    fn packed(self) -> i32 {
        self
    }
}

errors! {
    // Arguments.
    NullArgument(argument: &'static str) => b"22004", "{argument} must not be null";
    EmptySql => b"22023", "SQL text must not be empty";
    SqlTooLong(length: usize) => b"54000", "SQL text is too long",
        detail: format!("It has {length} bytes; a background job may have {MAX_SQL_BYTES}."),
        hint: TOO_LONG_HINT;
    NoQuery => b"22023", "there is no query to run";
    NullQuery(location: ArgLocation) => b"22004", "SQL text of {location} must not be null";
    /// An object without the key of the text.
    MissingQuery(location: ArgLocation) => b"22023", "{location} has no key \"query\"",
        hint: "The text of the job is its key \"query\".";
    EmptyQuery(location: ArgLocation) => b"22023", "SQL text of {location} must not be empty";
    QueryTooLong { location: ArgLocation, length: usize } => b"54000", "SQL text of {location} is too long",
        detail: format!("It has {length} bytes; a background job may have {MAX_SQL_BYTES}."),
        hint: TOO_LONG_HINT;
    Shape { location: ArgLocation, wanted: &'static str } => b"22023", "{location} must be {wanted}";
    UnknownKey { location: ArgLocation, key: DbText, keys: &'static [&'static str] }
        => b"22023", "unrecognized key \"{key}\" in {location}",
        hint: format!("Known keys are {}.", keys.join(", "));
    BadValue { location: ArgLocation, key: &'static str, wanted: DbText }
        => b"22023", "invalid value for key \"{key}\" in {location}",
        detail: wanted;
    TooManyQueries => b"54000", "the text has too many queries",
        detail: format!("It may have {MAX_PIECES}.");
    /// A text that cannot be cut into queries, as the parser sees it.
    NoCut(report: Box<Report>) => report.sqlstate, "the text is no list of queries";
    QueueTooSmall(bytes: usize) => b"22023", "queue size must be at least {bytes} bytes",
        hint: "With 0, or without it, the queue has its default size.";
    QueueTooLarge => b"22023", "queue size must not exceed {MAX_QUEUE_BYTES} bytes",
        hint: "What does not fit in the queue is kept in memory and in a temporary file.";
    ExecType(text: DbText) => b"22023", "execution type must be \"async\" or \"sync\", not \"{text}\"";
    NegativeAge => b"22023", "age must not be negative";
    Progress => b"22023", "progress must be between 0 and 100 percent";
    Uuid(text: DbText) => b"22P02", "invalid input syntax for type uuid: \"{text}\"";

    // Where and by whom a function is called.
    RestrictedOperation => b"42501", "cannot launch a background job within a security-restricted operation";
    /// In a worker of a subscription, as the owner of the table.
    RestrictedApply => b"42501", "cannot launch a background job within a security-restricted operation",
        hint: "Changes are applied as the owner of the table. Create or alter the subscription WITH \
               (run_as_owner = true) to let triggers launch jobs as its owner.";
    RestrictedRead
        => b"42501", "cannot read or give up the result of a background job within a security-restricted operation";
    ForbiddenProcess(process: &'static str) => b"42501", "cannot launch a background job from {process}";
    SingleUser => b"53000", "cannot launch background jobs in single-user mode",
        hint: "Start the server in multi-user mode: only then it has background workers.";
    InRecovery => b"25006", "cannot launch background jobs during recovery";
    StopInRecovery => b"25006", "cannot stop background jobs during recovery";
    TooDeep => b"54000", "background jobs are nested too deeply",
        detail: format!("{MAX_NESTING} jobs that have launched each other still run.");
    SettingRefused(name: DbText)
        => b"55P02", "value of parameter \"{name}\" that was given for this session is refused",
        detail: "pg_background_mgr does not know the value of the server's configuration in this session.",
        hint: "Connect without it in the options of the connection, and RESET it with ALTER ROLE and ALTER DATABASE.";
    RoleGone(role: RoleId) => b"42704", "role with OID {role} does not exist";
    NoRole(name: DbText) => b"42704", "role \"{name}\" does not exist",
        hint: "Create a role for those who are to use it, and grant that to them.";
    NotOwner => b"42501", "permission denied to change who may use pg_background_mgr";
    OfSuperuser => b"42501", "permission denied to stop or retry background jobs of a superuser",
        detail: "Only roles with the SUPERUSER attribute may stop or retry jobs of roles with the SUPERUSER attribute.";
    SetNotAccepted => b"0A000", "set-valued function called in context that cannot accept a set",
        hint: "Call it in FROM with a column list, or in a select list.";
    Declaration => b"42P13", "the function is declared otherwise than the library of pg_background_mgr expects",
        hint: UPDATE_HINT;

    // Resources of the server.
    /// `own`: how many of them are this session's.
    SegmentsExhausted { own: usize } => b"53000", "too many dynamic shared memory segments",
        detail: format!("This session has {own} of them, for its results or its next job."),
        hint: if *own == 0 {
            "Other sessions have them, for parallel queries, or for results that they have not read. \
             The server has more of them with a larger max_connections."
        } else {
            "Read or detach the results of jobs that have ended."
        };
    TooManyUnread { unread: usize, limit: usize }
        => b"53000", "too many unread results of background jobs in this session",
        detail: format!("It has {unread} in shared memory, and pg_background_mgr.max_unread_results allows {limit}."),
        hint: "Read them with pg_background_result, or give them up with pg_background_detach. DISCARD ALL gives \
               all of them up. Or increase pg_background_mgr.max_unread_results.";
    /// Bytes.
    ResultMemory { wanted: usize, held: usize, limit: usize }
        => b"53400", ("results of background jobs exceed pg_background_mgr.max_result_memory ({}kB)", limit / 1024),
        detail: format!("The job wants {wanted} bytes, and unread results of this session have {held}."),
        hint: "Read or detach the results of jobs that have ended, or launch with a smaller queue_size: what \
               does not fit there is kept in memory and in a temporary file.";
    /// Bytes.
    QueueFull { wanted: u64, free: u64, limit: u64 } => b"53400", "background job queue is full",
        detail: format!("The jobs need {wanted} bytes, and {free} of {limit} are free."),
        hint: if wanted > limit {
            "Launch fewer or shorter jobs in a call, or increase pg_background_mgr.queue_memory_limit."
        } else {
            "Wait until jobs have ended, or increase pg_background_mgr.queue_memory_limit."
        };
    SlotsExhausted => b"53000", "could not register background process",
        hint: "You may need to increase max_worker_processes.";
    NotStarted => b"53000", "could not start background process",
        hint: "The server log may tell why.";
    TooFewWorkers { wanted: usize, free: usize }
        => b"53000", ("could not start {} at once", counted(*wanted, "background job")),
        detail: if *free == 1 { "1 worker is free.".into() } else { format!("{free} workers are free.") },
        hint: MONITOR_HINT;
    FewerAllowed { wanted: usize, allowed: usize }
        => b"53000", ("could not start {} at once", counted(*wanted, "background job")),
        detail: format!("The options allow the batch {}.", counted(*allowed, "worker")),
        hint: MONITOR_HINT;
    NoWorkers => b"53000", "no background workers are available to pg_background_mgr",
        hint: "Increase max_worker_processes or pg_background_mgr.max_workers, or decrease \
               pg_background_mgr.reserved_workers.";
    Stuck => b"53000", "no worker is left for the jobs that this job waits for",
        hint: "All workers run jobs that wait for other jobs. Increase pg_background_mgr.max_workers, or launch \
               without waiting.";
    RoleConnections(role: DbText) => b"53300", "too many connections for role \"{role}\"";
    DatabaseConnections(database: DbText) => b"53300", "too many connections for database \"{database}\"";
    Spill => b"58030", "could not use a temporary file for the result of a background job";
    /// kB.
    TempFileLimit(limit: usize) => b"53400", "temporary file size exceeds temp_file_limit ({limit}kB)";
    /// Counts the bytes that could not be had.
    OutOfMemory(bytes: usize) => b"53200", "out of memory",
        detail: format!("Failed on request of size {bytes}.");
    SharedMemory => b"53200", "out of shared memory",
        hint: SHARED_MEMORY_HINT;

    // Attached jobs and their results.
    NotAttached(pid: i32) => b"42704", "PID {pid} is not attached to this session",
        hint: "A result can be read only in the session that launched the job, and by the role that did. Jobs of \
               pg_background_launch_num have theirs in log_background.";
    AlreadyRead(pid: i32) => b"42704", "result of the job with PID {pid} has already been read",
        hint: LAUNCH_AGAIN_HINT;
    GivenUp(pid: i32) => b"42704", "result of the job with PID {pid} has been given up",
        hint: LAUNCH_AGAIN_HINT;
    BeingRead(pid: i32) => b"55000", "result of the job with PID {pid} is being read";
    WorkerLost(pid: i32) => b"08006", "lost connection to the background worker with PID {pid}",
        detail: "The worker ended before it reported how the job ended.";
    NotRun => b"53000", "could not make the background worker ready for the job",
        hint: "The job has not begun. Launch it again.";
    ColumnCount { result: usize, listed: usize }
        => b"42804", ("result has {}, but the column list has {listed}", counted(*result, "column")),
        hint: "The result is still there to be read with another column list.";
    ColumnType { number: usize, name: DbText, result: DbText, listed: DbText }
        => b"42804", "result column {number} (\"{name}\") has type {result}, but the column list says {listed}",
        hint: "The result is still there to be read with another column list. Any column can be read as text.";
    RowTypeAltered => b"42804", "a row type of the result was altered while the result was read",
        hint: "The result is still there. Read it again, or its row types as text.";
    Deadlock { detail: DbText } => b"40P01", "deadlock detected",
        detail: detail,
        hint: "The job goes on when this transaction ends: read its result, or look at log_background, then. Do \
               not launch it again.";

    // The run of a job.
    Terminated => b"57P01", "terminating background worker \"pg_background\" due to administrator command";
    JobTimeout => b"57014", "canceling job due to timeout";
    OpenBlock => b"25000", "job ended inside a transaction block",
        detail: "Its work was rolled back, as when a client disconnects.",
        hint: "End the text with COMMIT or ROLLBACK.";
    CopyIn => b"0A000", "COPY FROM STDIN is not possible in a background job",
        hint: "COPY from a file or a program on the server, or INSERT.";
    BinaryCopyOut => b"0A000", "COPY TO STDOUT in binary format is not possible in a background job",
        hint: "COPY in text or csv format.";
    CopyEncoding => b"22021", "COPY TO STDOUT gave a line that is not valid in the database's encoding",
        hint: "COPY without the ENCODING option.";
    /// An error of the job itself, or one that the server raised in the worker.
    Job(report: Box<Report>) => report.sqlstate, "the background job failed";

    // Queued jobs and the log.
    NoSuchJob(uuid: DbText) => b"42704", "background job or batch \"{uuid}\" does not exist";
    NothingToRetry(uuid: DbText) => b"55000", "no job of \"{uuid}\" can be run again",
        hint: "Jobs can be run again that have failed, were stopped, or are lost.";
    NotLogged(uuid: DbText) => b"55000", "the end of background job \"{uuid}\" is not in the log yet",
        hint: "Somebody has the log locked, or it cannot be written: the server log may tell why. Try again then.";
    FollowsItself => b"55000", "a job cannot follow itself, or jobs that begin only after its end",
        hint: "Follow them from outside of their batch, or say for how long: p_timeout.";
    Spooled(error: std::io::Error) => b"58030", "could not write file of accepted jobs: {error}";
    NotCommitted => b"55000", "the log of pg_background_mgr is not visible to background jobs yet",
        hint: "Commit the transaction that created the extension first.";
    LogLocked => b"55P03", "the log of pg_background_mgr is locked";
    LogAltered => b"55000", "the log of pg_background_mgr was altered",
        hint: "Drop its indexes that have expressions, predicates or operator classes of others, and set its \
               access method to heap.";
    LogMissing => b"55000", "extension \"pg_background_mgr\" is older than its library",
        hint: UPDATE_HINT;
    LogRefresh => b"55000", "the log of pg_background_mgr cannot be refreshed",
        hint: "Delete rows with DELETE FROM log_background or with pg_background_prune.";
    NotOwnTrigger => b"39P01", "the function can only be called by the trigger of log_background";
    ForeignTrigger
        => b"55000", "view \"log_background\" has a trigger that is not part of extension \"pg_background_mgr\"",
        hint: "It would run with your rights. Drop it, or delete old rows with pg_background_prune.";
    /// Oid of the relation.
    ForeignRelation(oid: u32) => b"55000", "relation with OID {oid} is not part of extension \"pg_background_mgr\"";

    // Faults of the extension itself.
    Malformed(cause: Malformed) => b"XX000", "{cause}";
    /// Names what cannot be.
    Internal(what: &'static str) => b"XX000", "internal error of pg_background_mgr: {what}";
}

const TOO_LONG_HINT: &str = "Put the data into a table and let the job read it.";
const UPDATE_HINT: &str = "You may need to run ALTER EXTENSION pg_background_mgr UPDATE.";
const MONITOR_HINT: &str = "With p_monitor true, jobs wait in a queue until workers are free.";
const LAUNCH_AGAIN_HINT: &str = "Launch the job again to have its result again.";
/// Hint that tells where the server's dynamic shared memory comes from.
pub const SHARED_MEMORY_HINT: &str = "The server has no room for more dynamic shared memory, which is in /dev/shm on \
                                      Linux. In a container you may need to make that larger (Docker: --shm-size).";

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.texts().message)
    }
}

impl std::error::Error for Error {}

impl From<Malformed> for Error {
    fn from(cause: Malformed) -> Self {
        Error::Malformed(cause)
    }
}

impl Error {
    /// Returns what the server is told: a report at this level that was made at this place.
    pub fn into_report(self, level: i32, caller: &std::panic::Location) -> Report {
        if let Error::Job(report) | Error::NoCut(report) = self {
            return *report;
        }
        let texts = self.texts();
        let file = caller.file().rsplit('/').next().unwrap_or(caller.file());
        Report {
            level,
            sqlstate: texts.sqlstate,
            message: bytes(texts.message),
            detail: texts.detail.map(bytes),
            hint: texts.hint.map(bytes),
            file: Some(file.as_bytes().to_vec()),
            line: caller.line() as i32,
            ..Report::default()
        }
    }
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

/// Values of every type that an error has in it.
#[cfg(any(test, feature = "pg_test"))]
mod sample {
    use super::{sqlstate, ArgLocation, DbText, Malformed, Report};

    pub trait Sample {
        fn sample() -> Self;
    }

    macro_rules! sample {
        ($($type:ty => $value:expr;)+) => {
            $(impl Sample for $type {
                fn sample() -> Self {
                    $value
                }
            })+
        };
    }
    sample! {
        i32 => 1;
        u32 => 1;
        u64 => 1;
        usize => 1;
        &'static str => "x";
        &'static [&'static str] => &["x"];
        ArgLocation => ArgLocation::Job(1);
        DbText => DbText::new(b"x");
        Malformed => Malformed;
        crate::ids::RoleId => crate::ids::RoleId::of_oid(1);
        std::io::Error => std::io::ErrorKind::NotFound.into();
        Box<Report> => Box::new(Report { sqlstate: sqlstate(b"22012"), message: b"x".to_vec(), ..Report::default() });
    }
}

//! A client of the simple query protocol.
//!
//! Not a driver crate: a job must behave like a client's text, so a test has to see what a client sees, byte for byte
//! (tags, every error field, COPY lines, other encodings), send without waiting, and fail when an answer does not come.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::reply::{Column, Reply, ServerError, Statement};
use crate::wait::{wait_until, PATIENCE};

/// Quotes `text` as an SQL literal, whatever standard_conforming_strings is.
pub fn literal(text: &str) -> String {
    let prefix = if text.contains('\\') { "E" } else { "" };
    format!("{prefix}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Way to connect: made by [`crate::Cluster::client`], changed by the methods, used by `connect`.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    parameters: Vec<(String, String)>,
}

impl Client {
    pub(crate) fn new(socket: &Path, database: &str) -> Self {
        Client { socket: socket.to_owned(), parameters: Vec::new() }
            .parameter("user", "postgres")
            .parameter("database", database)
            .parameter("application_name", "test")
            .parameter("client_encoding", "UTF8")
    }

    pub fn user(self, name: &str) -> Self {
        self.parameter("user", name)
    }

    pub fn application_name(self, name: &str) -> Self {
        self.parameter("application_name", name)
    }

    /// Sets any parameter of the startup message: settings, or `options`.
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.retain(|(known, _)| known != name);
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connects.
    ///
    /// # Panics
    /// Panics when the server refuses.
    #[track_caller]
    pub fn connect(&self) -> Session {
        match self.try_connect() {
            Ok(session) => session,
            Err(error) => panic!("cannot connect with {:?}: {error}", self.parameters),
        }
    }

    /// Connects, or gives the server's reason; a server that is not there is SQLSTATE 08001.
    pub fn try_connect(&self) -> Result<Session, ServerError> {
        let unreachable = |error: io::Error| {
            let mut refusal = ServerError::default();
            refusal.fields.insert('C', b"08001".to_vec());
            refusal.fields.insert('M', error.to_string().into_bytes());
            refusal
        };
        let stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        let mut session = Session {
            socket: self.socket.clone(),
            stream,
            received: Vec::new(),
            taken: 0,
            key: [0; 8],
            notices: Vec::new(),
            notifications: VecDeque::new(),
            passed: VecDeque::new(),
            closed: false,
        };
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        for (name, value) in &self.parameters {
            startup.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        startup.push(0);
        session.stream.write_all(&framed(None, &startup)).map_err(unreachable)?;
        match session.finish_within(PATIENCE, "the startup message") {
            Reply { error: Some(error), .. } => Err(error),
            Reply { closed: true, .. } => Err(unreachable(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(session),
        }
    }
}

/// A NOTIFY that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub pid: i32,
    pub channel: String,
    pub payload: String,
}

/// Asks the server to cancel what a session runs, from any thread.
#[derive(Debug, Clone)]
pub struct Canceller {
    socket: PathBuf,
    key: [u8; 8],
}

impl Canceller {
    /// Sends the request; the server acts on it soon afterwards.
    pub fn cancel(&self) {
        let mut stream = UnixStream::connect(&self.socket).expect("a connection for a cancel request");
        let mut request = 80_877_102_u32.to_be_bytes().to_vec();
        request.extend_from_slice(&self.key);
        stream.write_all(&framed(None, &request)).expect("a cancel request");
        // The server hangs up once it has passed the request on.
        let _ = stream.read(&mut [0]);
    }
}

/// One connection. Dropping it ends the session as a client does that leaves.
#[derive(Debug)]
pub struct Session {
    socket: PathBuf,
    stream: UnixStream,
    received: Vec<u8>,
    /// Count of bytes of `received` that have been taken.
    taken: usize,
    key: [u8; 8],
    notices: Vec<ServerError>,
    notifications: VecDeque<Notification>,
    /// Parts of an answer that were passed over in search of a notice.
    passed: VecDeque<(u8, Vec<u8>)>,
    closed: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.stream.write_all(&framed(Some(b'X'), &[]));
    }
}

fn framed(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a message below 4 GB");
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(body);
    message
}

impl Session {
    /// The process that serves this session.
    pub fn pid(&self) -> i32 {
        i32::from_be_bytes([self.key[0], self.key[1], self.key[2], self.key[3]])
    }

    pub fn canceller(&self) -> Canceller {
        Canceller { socket: self.socket.clone(), key: self.key }
    }

    /// Runs `sql` and gives the whole answer, an error included.
    #[track_caller]
    pub fn ask(&mut self, sql: &str) -> Reply {
        self.send(sql);
        self.finish(sql)
    }

    /// The same for a text that is not UTF-8.
    #[track_caller]
    pub fn ask_bytes(&mut self, sql: &[u8]) -> Reply {
        self.send_bytes(sql);
        self.finish("a text in bytes")
    }

    /// Sends `sql` without waiting; [`Session::finish`] waits.
    #[track_caller]
    pub fn send(&mut self, sql: &str) {
        self.send_bytes(sql.as_bytes());
    }

    fn send_bytes(&mut self, sql: &[u8]) {
        let mut body = sql.to_vec();
        body.push(0);
        // A server that has gone shows when the answer is read.
        let _ = self.stream.write_all(&framed(Some(b'Q'), &body));
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Panics
    /// Panics when it does not come within the usual patience.
    #[track_caller]
    pub fn finish(&mut self, sent: &str) -> Reply {
        self.finish_within(PATIENCE, sent)
    }

    /// Runs `sql`, which must succeed.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> Reply {
        let reply = self.ask(sql);
        if reply.closed || reply.error.is_some() {
            panic!("{}\n  ... was the answer to: {sql}", describe_failure(&reply));
        }
        reply
    }

    /// The rows of the last result set, in the form of [`Statement::text_rows`].
    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> Vec<String> {
        match self.run(sql).last_rows() {
            Some(statement) => statement.text_rows(),
            None => panic!("no result set from: {sql}"),
        }
    }

    /// The one value of the last result set.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let mut rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "one row expected from: {sql}");
        rows.remove(0)
    }

    #[track_caller]
    pub fn number(&mut self, sql: &str) -> i64 {
        let value = self.value(sql);
        value.parse().unwrap_or_else(|_| panic!("not a number: {value}, from: {sql}"))
    }

    /// Returns whether the one value is true.
    #[track_caller]
    pub fn holds(&mut self, sql: &str) -> bool {
        match self.value(sql).as_str() {
            "t" => true,
            "f" => false,
            other => panic!("not a boolean: {other}, from: {sql}"),
        }
    }

    /// The error that `sql` must end with.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> ServerError {
        let reply = self.ask(sql);
        match reply.error {
            Some(error) => error,
            None => panic!("an error was expected from: {sql}\n  got: {:?}", reply.statements),
        }
    }

    /// Takes the notices since the last call.
    pub fn notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// Takes the notices as `SEVERITY: message`.
    pub fn notice_texts(&mut self) -> Vec<String> {
        self.notices().iter().map(|notice| format!("{}: {}", notice.severity(), notice.message())).collect()
    }

    /// Waits until a notice has arrived, also in the middle of an answer that [`Session::finish`] then goes on reading.
    ///
    /// # Panics
    /// Panics when none does within the usual patience, or when the answer ends before.
    #[track_caller]
    pub fn next_notice(&mut self) -> ServerError {
        let deadline = Instant::now() + PATIENCE;
        while self.notices.is_empty() {
            match self.receive_from_server(deadline) {
                Ok((kind @ (b'N' | b'A' | b'S'), body)) => self.asynchronous(kind, &body),
                Ok((b'Z', _)) => panic!("the answer has ended without a notice"),
                Ok(message) => self.passed.push_back(message),
                Err(error) => panic!("no notice: {error}"),
            }
        }
        self.notices.remove(0)
    }

    /// Waits until a NOTIFY has arrived.
    ///
    /// # Panics
    /// Panics when none does within the usual patience.
    #[track_caller]
    pub fn notification(&mut self) -> Notification {
        let deadline = Instant::now() + PATIENCE;
        while self.notifications.is_empty() {
            match self.receive(deadline) {
                Ok((kind, body)) => self.asynchronous(kind, &body),
                Err(error) => panic!("no notification: {error}"),
            }
        }
        self.notifications.pop_front().expect("not empty")
    }

    /// Starts `sql` as a background job; its process id.
    #[track_caller]
    pub fn launch(&mut self, sql: &str) -> i32 {
        let pid = self.value(&format!("select public.pg_background_launch({})", literal(sql)));
        pid.parse().unwrap_or_else(|_| panic!("not a process id: {pid}"))
    }

    /// The rows of a job read with a column list, for example `result text`.
    #[track_caller]
    pub fn result(&mut self, pid: i32, columns: &str) -> Vec<String> {
        self.rows(&format!("select * from public.pg_background_result({pid}) as ({columns})"))
    }

    /// The error that a job ended with.
    #[track_caller]
    pub fn result_error(&mut self, pid: i32) -> ServerError {
        self.error(&format!("select * from public.pg_background_result({pid}) as (result text)"))
    }

    /// Runs `sql` as a job and reads it.
    #[track_caller]
    pub fn job(&mut self, sql: &str, columns: &str) -> Vec<String> {
        let pid = self.launch(sql);
        self.result(pid, columns)
    }

    /// Runs `sql` as a job that must fail.
    #[track_caller]
    pub fn job_error(&mut self, sql: &str) -> ServerError {
        let pid = self.launch(sql);
        self.result_error(pid)
    }

    /// Waits until another session, or a job, is in `pg_sleep`.
    #[track_caller]
    pub fn wait_asleep(&mut self, pid: i32) {
        let query = format!("select wait_event from pg_stat_activity where pid = {pid}");
        wait_until("a process that sleeps", || self.rows(&query) == ["PgSleep"]);
    }

    /// Returns whether the server has ended this session; looks without waiting for more than what has arrived.
    pub fn is_closed(&mut self) -> bool {
        while !self.closed {
            match self.receive(Instant::now() + Duration::from_millis(1)) {
                Ok((kind, body)) => self.asynchronous(kind, &body),
                Err(error) if is_timeout(&error) => return false,
                Err(_) => self.closed = true,
            }
        }
        true
    }

    #[track_caller]
    fn finish_within(&mut self, patience: Duration, sent: &str) -> Reply {
        let deadline = Instant::now() + patience;
        let mut reply = Reply::default();
        let mut current = Statement::default();
        loop {
            let (kind, body) = match self.receive(deadline) {
                Ok(message) => message,
                Err(error) if is_timeout(&error) => panic!("no answer within {patience:?} to: {sent}"),
                Err(_) => {
                    self.closed = true;
                    reply.closed = true;
                    return reply;
                }
            };
            match kind {
                b'T' => current.columns = Some(columns(&body)),
                b'D' => current.rows.push(row(&body)),
                b'd' => current.copied.extend_from_slice(&body),
                b'C' => {
                    current.tag = Some(String::from_utf8_lossy(&body[..body.len() - 1]).into_owned());
                    reply.statements.push(std::mem::take(&mut current));
                }
                b'I' => reply.statements.push(std::mem::take(&mut current)),
                // No test feeds COPY FROM STDIN; the server has to go on all the same.
                b'G' => self.stream.write_all(&framed(Some(b'f'), b"no data\0")).expect("a refusal of COPY"),
                b'E' => {
                    if current.columns.is_some() || !current.copied.is_empty() {
                        reply.statements.push(std::mem::take(&mut current));
                    }
                    reply.error = Some(fields(&body));
                }
                b'Z' => return reply,
                b'K' => self.key.copy_from_slice(&body[..8]),
                other => self.asynchronous(other, &body),
            }
        }
    }

    /// Messages that may come at any time, and those that say nothing to a test.
    fn asynchronous(&mut self, kind: u8, body: &[u8]) {
        match kind {
            b'N' => self.notices.push(fields(body)),
            b'A' => {
                let mut rest = &body[4..];
                let (channel, payload) = (take_text(&mut rest), take_text(&mut rest));
                let pid = i32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                self.notifications.push_back(Notification { pid, channel, payload });
            }
            b'E' => self.closed = true,
            _ => {}
        }
    }

    /// The next message, waiting for it until `deadline`.
    fn receive(&mut self, deadline: Instant) -> io::Result<(u8, Vec<u8>)> {
        match self.passed.pop_front() {
            Some(message) => Ok(message),
            None => self.receive_from_server(deadline),
        }
    }

    fn receive_from_server(&mut self, deadline: Instant) -> io::Result<(u8, Vec<u8>)> {
        loop {
            let rest = &self.received[self.taken..];
            if rest.len() >= 5 {
                let end = 1 + u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
                if rest.len() >= end {
                    let message = (rest[0], rest[5..end].to_vec());
                    self.taken += end;
                    return Ok(message);
                }
            }
            self.received.drain(..std::mem::take(&mut self.taken));
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn describe_failure(reply: &Reply) -> String {
    match &reply.error {
        Some(error) => error.to_string(),
        None => "the server closed the connection".to_owned(),
    }
}

fn take_text(rest: &mut &[u8]) -> String {
    String::from_utf8_lossy(&take_bytes(rest)).into_owned()
}

fn take_bytes(rest: &mut &[u8]) -> Vec<u8> {
    let end = rest.iter().position(|byte| *byte == 0).expect("a terminated string");
    let bytes = rest[..end].to_vec();
    *rest = &rest[end + 1..];
    bytes
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_at(N);
    *rest = tail;
    head.try_into().expect("as long as asked for")
}

fn fields(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    let mut rest = body;
    while rest.first().is_some_and(|letter| *letter != 0) {
        let letter = char::from(rest[0]);
        rest = &rest[1..];
        error.fields.insert(letter, take_bytes(&mut rest));
    }
    error
}

fn columns(body: &[u8]) -> Vec<Column> {
    let mut rest = body;
    let count = u16::from_be_bytes(take(&mut rest));
    let column = |rest: &mut &[u8]| {
        let name = take_text(rest);
        let _: [u8; 6] = take(rest);
        let type_oid = u32::from_be_bytes(take(rest));
        let _: [u8; 2] = take(rest);
        let type_modifier = i32::from_be_bytes(take(rest));
        let _: [u8; 2] = take(rest);
        Column { name, type_oid, type_modifier }
    };
    (0..count).map(|_| column(&mut rest)).collect()
}

fn row(body: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut rest = body;
    let count = u16::from_be_bytes(take(&mut rest));
    let cell = |rest: &mut &[u8]| {
        let length = usize::try_from(i32::from_be_bytes(take(rest))).ok()?;
        let (value, tail) = rest.split_at(length);
        *rest = tail;
        Some(value.to_vec())
    };
    (0..count).map(|_| cell(&mut rest)).collect()
}

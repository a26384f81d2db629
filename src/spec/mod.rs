//! Specification of a batch: its jobs, checked, from each form in which a caller can write them.

pub mod options;
pub mod sql_text;

use crate::error::{ArgLocation, DbText, Error};
use crate::ffi::{alloc, interval, session};
use crate::protocol::MAX_SQL_BYTES;
use crate::spec::options::CONFINED;
use serde_json::{Map, Value};

/// Specification of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    pub query: Vec<u8>,
    pub name: Option<Vec<u8>>,
    /// Time that an attempt may take, in milliseconds; `None` if there is no limit.
    pub timeout: Option<i64>,
    /// Number of attempts at most, the first one included.
    pub max_attempts: u32,
    /// Time that it waits after a failed attempt, in milliseconds.
    pub retry_delay: i64,
}

/// Specification of the jobs of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSpec {
    pub name: Option<Vec<u8>>,
    /// One job after the other, in their order.
    pub sequential: bool,
    /// Number of its jobs that may run at once.
    pub max_workers: Option<u32>,
    /// The jobs that wait are not started when one has failed for good.
    pub stop_on_error: bool,
    /// Its jobs must not set a role, whoever launches them.
    pub is_confined: bool,
    pub jobs: Vec<JobSpec>,
}

impl BatchSpec {
    /// Returns the jobs of a text with a delimiter between them; without one, or with an empty one, the text is one
    /// job. `options` is the text of a jsonb object.
    ///
    /// # Errors
    /// [`Error::EmptySql`] (22023), [`Error::NoCut`] (42601), [`Error::SqlTooLong`], [`Error::QueryTooLong`] (54000),
    /// those of the options (22023).
    pub fn from_text(text: &[u8], delimiter: Option<&[u8]>, options: Option<&[u8]>) -> Result<Self, Error> {
        let (batch, defaults) = from_options(options)?;
        let pieces = sql_text::cut(text, delimiter.unwrap_or_default())?;
        alloc::ensure(pieces.len() * size_of::<JobSpec>());
        let queries = pieces.into_iter().map(|piece| alloc::copy(text.get(piece).unwrap_or_default()));
        batch.with_jobs(queries.map(|query| JobSpec { query, ..defaults.clone() }).collect())
    }

    /// Returns the batch without jobs, and how each of its jobs is run, as
    /// [`RunOptions::to_options`](crate::spec::options::RunOptions::to_options) has kept them.
    ///
    /// # Errors
    /// Those of the options (22023): somebody has changed them.
    pub fn from_stored_options(options: Option<&[u8]>) -> Result<(Self, JobSpec), Error> {
        let mut map = object(options)?;
        let is_confined = map.remove(CONFINED) == Some(Value::Bool(true));
        let (batch, job) = from_object(map)?;
        Ok((BatchSpec { is_confined, ..batch }, job))
    }

    /// Returns the jobs of an array of texts.
    ///
    /// # Errors
    /// [`Error::NoQuery`], [`Error::EmptyQuery`] (22023), [`Error::NullQuery`] (22004), [`Error::QueryTooLong`]
    /// (54000), those of the options (22023).
    pub fn from_array(queries: Vec<Option<Vec<u8>>>, options: Option<&[u8]>) -> Result<Self, Error> {
        let (batch, defaults) = from_options(options)?;
        alloc::ensure(GROWTH * queries.len() * size_of::<JobSpec>());
        let job = |(number, query): (usize, Option<Vec<u8>>)| {
            let query = query.ok_or(Error::NullQuery(ArgLocation::Job(number)))?;
            Ok(JobSpec { query, ..defaults.clone() })
        };
        batch.with_jobs((1..).zip(queries).map(job).collect::<Result<_, Error>>()?)
    }

    /// Returns the jobs of a JSON array of texts and objects, in its order. `jobs` is the text of a jsonb value.
    ///
    /// # Errors
    /// As [`BatchSpec::from_array`], and those of a job's own keys (22023).
    pub fn from_json(jobs: &[u8], options: Option<&[u8]>) -> Result<Self, Error> {
        let (batch, defaults) = from_options(options)?;
        let Ok(Value::Array(items)) = parse(jobs) else {
            return Err(Error::Shape { location: ArgLocation::Jobs, wanted: "a JSON array" });
        };
        let job = |(number, item)| from_item(ArgLocation::Job(number), item, &defaults);
        batch.with_jobs((1..).zip(items).map(job).collect::<Result<_, Error>>()?)
    }

    fn with_jobs(mut self, jobs: Vec<JobSpec>) -> Result<Self, Error> {
        if jobs.is_empty() {
            return Err(Error::NoQuery);
        }
        for (number, job) in (1..).zip(&jobs) {
            let (location, length) = (ArgLocation::Job(number), job.query.len());
            if job.query.iter().all(u8::is_ascii_whitespace) {
                return Err(Error::EmptyQuery(location));
            }
            if length > MAX_SQL_BYTES {
                return Err(Error::QueryTooLong { location, length });
            }
        }
        self.jobs = jobs;
        Ok(self)
    }
}

const NAME: &str = "name";
const MODE: &str = "mode";
const MAX_WORKERS: &str = "max_workers";
const ON_ERROR: &str = "on_error";
const TIMEOUT: &str = "timeout";
const MAX_ATTEMPTS: &str = "max_attempts";
const RETRY_DELAY: &str = "retry_delay";
const QUERY: &str = "query";

/// Returns the batch without jobs, and what its jobs have when they do not say.
fn from_options(options: Option<&[u8]>) -> Result<(BatchSpec, JobSpec), Error> {
    from_object(object(options)?)
}

/// Returns the options, unchecked.
fn object(options: Option<&[u8]>) -> Result<Map<String, Value>, Error> {
    match options.map(parse) {
        None | Some(Ok(Value::Null)) => Ok(Map::new()),
        Some(Ok(Value::Object(map))) => Ok(map),
        Some(_) => Err(Error::Shape { location: ArgLocation::Options, wanted: "a JSON object" }),
    }
}

fn from_object(map: Map<String, Value>) -> Result<(BatchSpec, JobSpec), Error> {
    const KEYS: &[&str] = &[NAME, MODE, MAX_WORKERS, ON_ERROR, TIMEOUT, MAX_ATTEMPTS, RETRY_DELAY];
    let mut keys = Keys::new(ArgLocation::Options, map, KEYS)?;
    let batch = BatchSpec {
        name: keys.text(NAME)?,
        sequential: keys.choice(MODE, ["parallel", "sequential"], "It must be \"parallel\" or \"sequential\".")?,
        max_workers: keys.count(MAX_WORKERS)?,
        stop_on_error: keys.choice(ON_ERROR, ["continue", "stop"], "It must be \"continue\" or \"stop\".")?,
        is_confined: false,
        jobs: Vec::new(),
    };
    let plain = JobSpec { query: Vec::new(), name: None, timeout: None, max_attempts: 1, retry_delay: 0 };
    Ok((batch, keys.run_options(&plain)?))
}

/// Returns a job of the JSON array.
fn from_item(location: ArgLocation, item: Value, defaults: &JobSpec) -> Result<JobSpec, Error> {
    const KEYS: &[&str] = &[QUERY, NAME, TIMEOUT, MAX_ATTEMPTS, RETRY_DELAY];
    match item {
        Value::String(query) => Ok(JobSpec { query: to_database(&query), ..defaults.clone() }),
        Value::Object(map) => {
            let mut keys = Keys::new(location, map, KEYS)?;
            if !keys.map.contains_key(QUERY) {
                return Err(Error::MissingQuery(location));
            }
            let (query, name) = (keys.text(QUERY)?, keys.text(NAME)?);
            let query = query.ok_or(Error::NullQuery(location))?;
            Ok(JobSpec { query, name, ..keys.run_options(defaults)? })
        }
        Value::Null => Err(Error::NullQuery(location)),
        _ => Err(Error::Shape { location, wanted: "a text or a JSON object" }),
    }
}

/// Parses a JSON text in the database's encoding. Every such encoding has ASCII, which is all that JSON itself is made
/// of; each other byte becomes a character of its own, and is what it was after [`to_database`].
fn parse(json: &[u8]) -> serde_json::Result<Value> {
    alloc::ensure(parsed_bytes(json));
    let text: String = json.iter().copied().map(char::from).collect();
    serde_json::from_str(&text)
}

/// Memory that a list takes that grows, as a multiple of its contents.
const GROWTH: usize = 3;

/// Returns how many bytes a JSON text takes until there are jobs, at most: texts several times, and each value and each
/// object.
fn parsed_bytes(json: &[u8]) -> usize {
    /// Room for the keys and values of one object.
    const OBJECT_BYTES: usize = 1024;
    let (mut values, mut objects, mut in_text, mut is_escaped) = (1, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b',' | b'[' if !in_text => values += 1,
            b'{' if !in_text => objects += 1,
            _ => {}
        }
    }
    6 * json.len() + GROWTH * values * (size_of::<Value>() + size_of::<JobSpec>()) + objects * OBJECT_BYTES
}

fn to_database(text: &str) -> Vec<u8> {
    text.chars().map(|character| character as u8).collect()
}

/// The keys of an object, all known.
struct Keys {
    location: ArgLocation,
    map: Map<String, Value>,
}

impl Keys {
    fn new(location: ArgLocation, map: Map<String, Value>, keys: &'static [&'static str]) -> Result<Self, Error> {
        match map.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(Error::UnknownKey { location, key: session::shown(&to_database(key)), keys }),
            None => Ok(Keys { location, map }),
        }
    }

    /// Takes the value of a key out, or `None` if it is not given or JSON null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &'static str, wanted: &[u8]) -> Error {
        Error::BadValue { location: self.location, key, wanted: DbText::new(wanted) }
    }

    fn text(&mut self, key: &'static str) -> Result<Option<Vec<u8>>, Error> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(to_database(&text))),
            Some(_) => Err(self.bad(key, b"It must be a text.")),
        }
    }

    /// Returns whether it is the second of two words. Not given is the first.
    fn choice(&mut self, key: &'static str, words: [&str; 2], wanted: &str) -> Result<bool, Error> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::String(word)) if word == words[0] => Ok(false),
            Some(Value::String(word)) if word == words[1] => Ok(true),
            Some(_) => Err(self.bad(key, wanted.as_bytes())),
        }
    }

    /// Returns a whole number from 1 on that an `int4` can hold.
    fn count(&mut self, key: &'static str) -> Result<Option<u32>, Error> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        match count.filter(|count| (1..=i32::MAX as u32).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(self.bad(key, b"It must be a whole number from 1 to 2147483647.")),
        }
    }

    /// Returns a span of time in milliseconds: a number of seconds, or an interval.
    fn milliseconds(&mut self, key: &'static str) -> Result<Option<i64>, Error> {
        const WANTED: &[u8] = b"It must be a number of seconds, or an interval, and not negative.";
        let milliseconds = match self.take(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => {
                let seconds = number.as_f64().filter(|seconds| (0.0..1e12).contains(seconds));
                (seconds.ok_or_else(|| self.bad(key, WANTED))? * 1000.0).ceil() as i64
            }
            Some(Value::String(text)) => {
                let microseconds = interval::parse(&to_database(&text));
                let microseconds = microseconds.map_err(|captured| self.bad(key, &captured.report.message))?;
                // Rounded up, so that a moment does not become "no limit".
                microseconds / 1000 + i64::from(microseconds % 1000 > 0)
            }
            Some(_) => return Err(self.bad(key, WANTED)),
        };
        if milliseconds < 0 {
            return Err(self.bad(key, WANTED));
        }
        Ok(Some(milliseconds))
    }

    /// Returns how a job is run, with what `defaults` says where this object does not.
    fn run_options(&mut self, defaults: &JobSpec) -> Result<JobSpec, Error> {
        // A timeout of 0 is none, as in the server's settings.
        let timeout = self.milliseconds(TIMEOUT)?.map(|timeout| (timeout > 0).then_some(timeout));
        Ok(JobSpec {
            timeout: timeout.unwrap_or(defaults.timeout),
            max_attempts: self.count(MAX_ATTEMPTS)?.unwrap_or(defaults.max_attempts),
            retry_delay: self.milliseconds(RETRY_DELAY)?.unwrap_or(defaults.retry_delay),
            ..defaults.clone()
        })
    }
}

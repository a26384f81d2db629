//! Settings (guc.c).

pub use crate::compat::guc::reserve_prefix;
use crate::compat::guc::{restore_setting, SERIALIZED_WITH_ROLE};
use crate::ids::RoleId;
use crate::protocol::Setting;
use crate::time::Timestamp;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Not settings of the session: its identity, and its transaction.
const NOT_CARRIED: [&[u8]; 7] = [
    b"session_authorization",
    b"role",
    b"is_superuser",
    b"transaction_isolation",
    b"transaction_read_only",
    b"transaction_deferrable",
    b"seed",
];

/// Prefix of the names of this library's settings.
const OWN_PREFIX: &[u8] = b"pg_background_mgr.";

/// Returns what this session, its client when it connected, or a function's SET clause has set; not what comes from
/// the configuration, the database or the role, which a worker reads itself.
pub fn session_settings() -> Vec<Setting> {
    let bytes = serialized();
    let mut rest = bytes.as_slice();
    let mut settings = Vec::new();
    while let Some(setting) = next_setting(&mut rest) {
        if is_of_session(setting.source as u32) && !NOT_CARRIED.contains(&setting.name) {
            let Serialized { name, value, source, context, role } = setting;
            settings.push(Setting {
                name: name.to_vec(),
                value: crate::ffi::alloc::copy(value),
                source,
                context,
                role,
            });
        }
    }
    settings
}

/// Returns the names of this library's settings that a client gave when it connected, or that its role or its database
/// has: what hides the value of the configuration. To be called also before the library has told the server of them.
pub fn own_settings_given() -> Vec<Vec<u8>> {
    // SAFETY: variables of this process.
    if unsafe { !pg_sys::IsUnderPostmaster || pg_sys::ParallelWorkerNumber >= 0 } {
        return Vec::new();
    }
    let own = |wanted: fn(u32) -> bool| {
        let (bytes, mut names) = (serialized(), Vec::new());
        let mut rest = bytes.as_slice();
        while let Some(setting) = next_setting(&mut rest) {
            if setting.name.starts_with(OWN_PREFIX) && wanted(setting.source as u32) {
                names.push(setting.name.to_vec());
            }
        }
        names
    };
    let set = own(is_set);
    if set.is_empty() {
        return own(is_given);
    }
    // What has been set in the session since hides them in turn.
    let level = nest();
    for name in set {
        if let Ok(name) = CString::new(name) {
            set_within(&name, None, pg_sys::GucContext::PGC_SUSET);
        }
    }
    let names = own(is_given);
    unnest(level, false);
    names
}

/// Returns whether another library has defined the setting; false for one that the session has made up (guc.c,
/// `add_placeholder_variable`), which any process takes as it is.
pub fn is_of_library(setting: &Setting) -> bool {
    let Ok(name) = CString::new(setting.name.as_slice()) else { return false };
    // SAFETY: a C string; "missing is ok" gives no flags.
    setting.name.contains(&b'.')
        && !setting.name.starts_with(OWN_PREFIX)
        && unsafe { pg_sys::GetConfigOptionFlags(name.as_ptr(), true) } & pg_sys::GUC_CUSTOM_PLACEHOLDER as i32 == 0
}

/// A setting as the server writes it down.
struct Serialized<'a> {
    name: &'a [u8],
    value: &'a [u8],
    source: i32,
    context: i32,
    role: RoleId,
}

/// Returns all settings that are not at their default, as the server writes them down for parallel workers.
fn serialized() -> Vec<u8> {
    // SAFETY: the server writes at most as many bytes as it estimated, and begins with how many (guc.c,
    // SerializeGUCState).
    unsafe {
        let size = pg_sys::EstimateGUCStateSpace();
        crate::ffi::alloc::ensure(2 * size + 8);
        let mut bytes = vec![0_u64; size.div_ceil(8)];
        pg_sys::SerializeGUCState(size, bytes.as_mut_ptr().cast());
        let length = bytes.first().map_or(0, |length| *length as usize);
        let start = bytes.as_ptr().cast::<u8>().add(size_of::<usize>());
        crate::ffi::alloc::copy(std::slice::from_raw_parts(start, length.min(size.saturating_sub(size_of::<usize>()))))
    }
}

/// Takes the next setting off (guc.c, `serialize_variable`): name, value, file, line if there is a file, source,
/// context, role.
fn next_setting<'a>(rest: &mut &'a [u8]) -> Option<Serialized<'a>> {
    let name = take_text(rest)?;
    let value = take_text(rest)?;
    if !take_text(rest)?.is_empty() {
        take_int(rest)?;
    }
    let source = take_int(rest)?;
    let context = take_int(rest)?;
    let role = if SERIALIZED_WITH_ROLE { RoleId::of_oid(take_int(rest)? as u32) } else { RoleId::NONE };
    Some(Serialized { name, value, source, context, role })
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = rest.get(..end)?;
    *rest = rest.get(end + 1..)?;
    Some(text)
}

fn take_int(rest: &mut &[u8]) -> Option<i32> {
    let (int, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(i32::from_ne_bytes(*int))
}

/// Makes a setting in a worker as the launcher had it. A transaction is open. A value that cannot be set is the
/// server's own error; if it belongs to an extension, only a warning, as it is when the server loads the extension and
/// finds that whoever set it was not allowed to.
pub fn restore(setting: &Setting) {
    let level = if setting.name.contains(&b'.') { pg_sys::WARNING } else { pg_sys::PGERROR };
    let (Ok(name), Ok(value)) = (CString::new(setting.name.as_slice()), CString::new(setting.value.as_slice())) else {
        return; // cannot be: both came from C strings
    };
    // SAFETY: both are C strings; the caller has opened a transaction.
    unsafe { restore_setting(name.as_ptr(), value.as_ptr(), setting, level as i32) };
}

/// Returns whether the setting was set when a client connected: then it is what RESET goes back to.
pub fn is_of_client(setting: &Setting) -> bool {
    setting.source as u32 == pg_sys::GucSource::PGC_S_CLIENT
}

/// Returns the value of a setting, or `None` if there is no such setting.
pub fn value(name: &[u8]) -> Option<Vec<u8>> {
    let name = CString::new(name).ok()?;
    // SAFETY: a C string; what comes back is null or one, which is copied.
    unsafe { crate::ffi::alloc::copy_c_string(pg_sys::GetConfigOption(name.as_ptr(), true, false)) }
}

/// `SET ROLE`: checked against the rights of the session's user, now.
pub fn set_role(name: &[u8]) {
    let Ok(name) = CString::new(name) else { return };
    use pg_sys::{GucContext::PGC_USERSET, GucSource::PGC_S_SESSION};
    // SAFETY: C strings; the caller has opened a transaction.
    unsafe { pg_sys::SetConfigOption(c"role".as_ptr(), name.as_ptr(), PGC_USERSET, PGC_S_SESSION) };
}

/// Runs `body` with nothing but `pg_catalog` in the search path, as a SET clause of a function would (fmgr.c,
/// `fmgr_security_definer`). After an error it is so until the transaction, or the subtransaction, is aborted.
pub fn with_pinned_search_path<T>(body: impl FnOnce() -> T) -> T {
    let level = nest();
    // Named, the schema of temporary objects is no longer the first.
    set_within(c"search_path", Some(c"pg_catalog, pg_temp"), pg_sys::GucContext::PGC_USERSET);
    let value = body();
    unnest(level, true);
    value
}

/// Enters a level of settings, which is left by [`unnest`], or when the transaction or subtransaction is aborted.
fn nest() -> i32 {
    // SAFETY: counts.
    unsafe { pg_sys::NewGUCNestLevel() }
}

/// Sets a setting, with `None` to what it is at RESET, until the level is left.
fn set_within(name: &CStr, value: Option<&CStr>, context: u32) {
    use pg_sys::{GucAction::GUC_ACTION_SAVE, GucSource::PGC_S_SESSION};
    let value = value.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: C strings, or null for the value; a level was entered.
    unsafe { pg_sys::set_config_option(name.as_ptr(), value, context, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false) };
}

/// Leaves a level that [`nest`] has entered. All that were entered in it have been left.
fn unnest(level: i32, is_commit: bool) {
    // SAFETY: by contract; what was set in the level with GUC_ACTION_SAVE is put back in either case.
    unsafe { pg_sys::AtEOXact_GUC(is_commit, level) };
}

/// Returns the libraries that this process has loaded, for [`load_libraries`] (dfmgr.c).
pub fn loaded_libraries() -> Vec<u8> {
    // SAFETY: the server writes at most as many bytes as it estimated.
    unsafe {
        let size = pg_sys::EstimateLibraryStateSpace();
        let mut bytes = crate::ffi::alloc::zeroed(size);
        pg_sys::SerializeLibraryState(size, bytes.as_mut_ptr().cast());
        bytes
    }
}

/// Loads the libraries that another process had loaded.
pub fn load_libraries(mut libraries: Vec<u8>) {
    libraries.push(0); // the list ends with an empty name; never read past the end
                       // SAFETY: a list as `loaded_libraries` makes it.
    unsafe { pg_sys::RestoreLibraryState(libraries.as_mut_ptr().cast()) };
}

fn is_of_session(source: u32) -> bool {
    is_set(source) || source == pg_sys::GucSource::PGC_S_CLIENT
}

/// Returns whether it has been set since the session began.
fn is_set(source: u32) -> bool {
    use pg_sys::GucSource::{PGC_S_INTERACTIVE, PGC_S_SESSION};
    [PGC_S_INTERACTIVE, PGC_S_SESSION].contains(&source)
}

/// Returns whether it was given for the session when that began.
fn is_given(source: u32) -> bool {
    use pg_sys::GucSource::{PGC_S_CLIENT, PGC_S_DATABASE, PGC_S_DATABASE_USER, PGC_S_GLOBAL, PGC_S_USER};
    [PGC_S_GLOBAL, PGC_S_DATABASE, PGC_S_USER, PGC_S_DATABASE_USER, PGC_S_CLIENT].contains(&source)
}

/// Reads the configuration again (guc-file.l).
pub fn reload() {
    // SAFETY: called between two jobs, outside of a transaction.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
}

/// Returns when this process, or the server before it, read the configuration last (guc-file.l).
pub fn configured() -> Timestamp {
    // SAFETY: a variable of this process.
    Timestamp::of_micros(unsafe { pg_sys::PgReloadTime })
}

/// Returns whether a process that read the configuration at that time may know a newer one. A new process has what the
/// server knew when it started it.
pub fn is_outdated(configured: Timestamp) -> bool {
    // SAFETY: a variable of this process.
    let started = Timestamp::of_micros(unsafe { pg_sys::MyStartTimestamp });
    configured > started.max(self::configured())
}

/// A setting of this library: the server writes it, we read it.
pub struct IntSetting(std::sync::atomic::AtomicI32);

impl IntSetting {
    /// Makes a setting with its default.
    pub const fn new(value: i32) -> Self {
        IntSetting(std::sync::atomic::AtomicI32::new(value))
    }

    pub fn get(&self) -> i32 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Tells who may change a setting, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In the configuration of the server: the same for all sessions.
    Server,
    /// Superusers, also for one session, role or database.
    Superuser,
}

/// Tells what a setting counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    None,
    Kilobytes,
    Milliseconds,
    Seconds,
}

/// Definition of an integer setting.
pub struct IntDefinition {
    pub name: &'static CStr,
    /// Purpose of the setting, in a sentence.
    pub short: &'static CStr,
    /// Everything else to be known; may be empty.
    pub long: &'static CStr,
    /// Its value; at first its default.
    pub setting: &'static IntSetting,
    /// The least and the greatest value.
    pub bounds: (i32, i32),
    pub scope: Scope,
    pub unit: Unit,
}

/// Defines a setting (guc.c, `DefineCustomIntVariable`).
pub fn define_int(definition: &IntDefinition) {
    let IntDefinition { name, short, long, setting, bounds, scope, unit } = definition;
    use pg_sys::GucContext::{PGC_SIGHUP, PGC_SUSET};
    let context = if *scope == Scope::Server { PGC_SIGHUP } else { PGC_SUSET };
    let flags = match unit {
        Unit::None => 0,
        Unit::Kilobytes => pg_sys::GUC_UNIT_KB,
        Unit::Milliseconds => pg_sys::GUC_UNIT_MS,
        Unit::Seconds => pg_sys::GUC_UNIT_S,
    };
    // SAFETY: the texts and the variable live as long as the library, which is never unloaded; an atomic has the layout
    // of its number.
    unsafe {
        pg_sys::DefineCustomIntVariable(
            name.as_ptr(),
            short.as_ptr(),
            if long.is_empty() { std::ptr::null() } else { long.as_ptr() },
            setting.0.as_ptr(),
            setting.get(),
            bounds.0,
            bounds.1,
            context,
            flags as i32,
            None,
            None,
            None,
        );
    }
}

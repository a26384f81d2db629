//! Steps that make every worker a session like the launcher's.

use crate::error::Error;
use crate::ffi::{alloc, discard_all, guc, library, remote_dest, report, role, session, statement, transaction};
use crate::protocol::{Report, Request, Setting};
use crate::worker::state::state;

/// Prepares what every worker needs before it runs its first text.
pub fn prepare_session(on_message: fn(remote_dest::Message)) {
    statement::init();
    remote_dest::install(on_message);
    session::load_session_libraries();
    library::remember();
}

/// Makes the session as it was after the login, whatever a job has left in it. Returns `false` if that failed.
pub fn reset_session() -> bool {
    role::release();
    let outcome = report::catch(|| {
        transaction::start_command();
        discard_all::session();
        transaction::finish_command();
        remote_dest::speak_database_encoding();
    });
    if outcome.is_err() {
        transaction::recover();
    }
    outcome.is_ok()
}

/// Reads the configuration that the launcher had read, if the server has not told this process of it yet. To be called
/// between two jobs. Returns `false` if this process cannot follow it any more in all settings.
pub fn reload_if_behind(request: &Request) -> bool {
    let is_behind = guc::is_outdated(request.configured);
    if is_behind {
        guc::reload();
    }
    !(is_behind && has_been_client())
}

/// Takes over what the launcher's session has set, in a transaction of its own.
///
/// # Errors
/// [`Error::RoleGone`] (42704)
pub fn assume_identity(request: &Request) -> Result<(), Error> {
    transaction::start_command();
    apply_settings(request)?;
    transaction::finish_command();
    if request.is_confined {
        role::confine();
    }
    remote_dest::speak_database_encoding();
    Ok(())
}

fn apply_settings(request: &Request) -> Result<(), Error> {
    if let Some(libraries) = &request.libraries {
        guc::load_libraries(libraries.clone());
    }
    let (of_client, of_session): (Vec<&Setting>, Vec<&Setting>) =
        request.settings.iter().partition(|setting| guc::is_of_client(setting));
    become_client(&of_client);
    of_session.into_iter().for_each(guc::restore);
    match request.role {
        Some(role) => {
            // It may have another name than at the launch, and another role its name.
            guc::set_role(&session::role_name(role).ok_or(Error::RoleGone(role))?);
            if role::set_role() != role {
                return Err(Error::RoleGone(role));
            }
        }
        // ALTER ROLE and ALTER DATABASE can set one at login, which is not in effect where the job was launched.
        None if role::is_set() => guc::set_role(b"none"),
        None => {}
    }
    Ok(())
}

/// Sets what the launcher's client had set when it connected. RESET goes back to that, so it stays when a session is
/// reset between two jobs. It is the same from job to job as long as they come from one session; else it is taken back.
fn become_client(settings: &[&Setting]) {
    let is_same = |now: &[(Setting, Vec<u8>)]| {
        now.len() == settings.len() && now.iter().zip(settings).all(|((now, _), setting)| now == *setting)
    };
    let client_settings = &state().client_settings;
    if is_same(&client_settings.borrow()) {
        return;
    }
    // Should one raise, those that are left are still to be taken back.
    loop {
        let last = client_settings.borrow().last().cloned();
        let Some((setting, before)) = last else { break };
        guc::restore(&Setting { value: before, ..setting });
        client_settings.borrow_mut().pop();
    }
    for setting in settings {
        state().has_been_client.set(true);
        // One that is not there before is a setting of a library: empty, as the server makes it.
        let before = guc::value(&setting.name).unwrap_or_default();
        client_settings.borrow_mut().push(((*setting).clone(), before));
        guc::restore(setting);
    }
}

/// Returns whether there are settings that the configuration cannot change any more in this process, as a client has
/// set them once. Then a new configuration takes a new process.
pub fn has_been_client() -> bool {
    state().has_been_client.get()
}

/// Sets the text that positions of errors point into.
pub fn set_job_text(sql: &[u8]) {
    state().job_text.replace(alloc::copy(sql));
}

/// Returns the report with its position in the job's text.
pub fn located(report: Report) -> Report {
    report.locate_in(&state().job_text.borrow())
}

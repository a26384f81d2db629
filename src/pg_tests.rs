//! Tests inside one backend: what the wrappers make of the server's structures. Everything with several sessions is in
//! `tests/`.

mod cut;
mod rows;
mod spec;

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use crate::channel::overflow_queue::OverflowQueue;
    use crate::error::{DbText, Error};
    use crate::ffi::{guc, report, role, session, spi};
    use crate::protocol::{sqlstate, Report, ERRCODE_INTERNAL_ERROR};
    use pgrx::prelude::*;

    fn job(sql: &str) -> Option<String> {
        let call = "SELECT r FROM pg_background_result(pg_background_launch($job$";
        Spi::get_one::<String>(&format!("{call}{sql}$job$)) AS (r text)")).unwrap()
    }

    #[pg_test]
    fn a_job_gives_its_row() {
        assert_eq!(job("select 'caf' || chr(233)").as_deref(), Some("caf\u{e9}"));
    }

    #[pg_test]
    fn a_job_without_rows_gives_its_tag() {
        assert_eq!(job("create temp table t as select 1").as_deref(), Some("SELECT 1"));
    }

    #[pg_test]
    fn a_job_does_not_see_what_the_caller_has_not_committed() {
        Spi::run("create table uncommitted()").unwrap();
        assert_eq!(job("select to_regclass('uncommitted')::text"), None);
    }

    #[pg_test(error = "division by zero")]
    fn a_job_raises_its_error() {
        job("select 1/0");
    }

    #[pg_test(error = "SQL text must not be empty")]
    fn an_empty_text_is_refused() {
        Spi::run("select pg_background_launch(E' \\n')").unwrap();
    }

    #[pg_test]
    fn only_what_the_session_set_is_carried() {
        Spi::run("set work_mem = '9MB'; set local my.own = 'x y'; reset maintenance_work_mem").unwrap();
        let settings = guc::session_settings();
        let value = |name: &str| {
            let setting = settings.iter().find(|setting| setting.name == name.as_bytes());
            setting.map(|setting| String::from_utf8_lossy(&setting.value).into_owned())
        };
        assert_eq!(value("work_mem").as_deref(), Some("9216"));
        assert_eq!(value("my.own").as_deref(), Some("x y"));
        for not_carried in ["maintenance_work_mem", "session_authorization", "transaction_isolation", "shared_buffers"]
        {
            assert_eq!(value(not_carried), None, "{not_carried}");
        }
    }

    #[pg_test]
    fn the_identity_is_that_of_the_session_and_its_role() {
        let plain = role::effective();
        assert_eq!(plain.role, None);
        Spi::run("create role another; set role another").unwrap();
        let identity = role::effective();
        assert_eq!(identity.login, plain.login);
        assert_eq!(identity.role.and_then(session::role_name).as_deref(), Some(&b"another"[..]));
    }

    #[pg_test]
    fn frames_come_back_in_order_from_memory_and_file() {
        let frames: Vec<Vec<u8>> = (0..100_u8).map(|fill| vec![fill; 1 + usize::from(fill) * 300]).collect();
        let mut overflow = OverflowQueue::new(10_000);
        let (first, second) = frames.split_at(70);
        first.iter().for_each(|frame| overflow.push(frame.clone()).unwrap());
        for frame in first.iter().take(50) {
            assert_eq!(overflow.pop().unwrap().as_ref(), Some(frame));
        }
        second.iter().for_each(|frame| overflow.push(frame.clone()).unwrap());
        for frame in frames.iter().skip(50) {
            assert_eq!(overflow.pop().unwrap().as_ref(), Some(frame));
        }
        assert_eq!(overflow.pop().unwrap(), None);
        overflow.push(b"again".to_vec()).unwrap();
        assert_eq!(overflow.pop().unwrap().as_deref(), Some(&b"again"[..]));
    }

    #[pg_test]
    fn a_caught_error_is_complete_enough_without_a_watch() {
        let caught = report::catch(|| spi::select("SELECT 1/0")).unwrap_err();
        assert_eq!(caught.report.sqlstate, sqlstate(b"22012"));
        assert_eq!(caught.report.message, b"division by zero");
    }

    #[pg_test]
    fn texts_of_any_encoding_go_through_messages() {
        let error = Error::RoleConnections(DbText::new(b"caf\xe9"));
        assert_eq!(Report::from(error).message, b"too many connections for role \"caf\xe9\"");
    }

    #[pg_test]
    fn every_error_has_a_sqlstate_of_its_own() {
        let is_fault = |error: &Error| matches!(error, Error::Malformed(_) | Error::Internal(_));
        for error in Error::samples() {
            let (is_fault, shown) = (is_fault(&error), format!("{error:?}"));
            let message = error.to_string();
            let report = Report::from(error);
            assert_eq!(report.sqlstate == ERRCODE_INTERNAL_ERROR, is_fault, "{shown}");
            assert_ne!(report.sqlstate, sqlstate(b"22000"), "{shown}");
            let is_name = ["SQL", "PID", "COPY"].iter().any(|name| message.starts_with(name));
            assert!(!message.ends_with('.') && (is_name || !message.starts_with(char::is_uppercase)), "{message}");
            for sentence in [report.detail, report.hint].into_iter().flatten() {
                assert!(sentence.ends_with(b".") || sentence == b"x", "{shown}");
            }
        }
    }
}

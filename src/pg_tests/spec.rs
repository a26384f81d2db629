//! Jobs and options of a batch, from each form.

#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use crate::error::Error;
    use crate::protocol::{sqlstate, Report, MAX_SQL_BYTES};
    use crate::spec::{BatchSpec, JobSpec};
    use pgrx::prelude::*;

    fn batch(options: &str) -> Result<BatchSpec, Error> {
        BatchSpec::from_text(b"select 1, select 2", Some(b","), Some(options.as_bytes()))
    }

    fn jobs(json: &str, options: &str) -> Result<Vec<JobSpec>, Error> {
        BatchSpec::from_json(json.as_bytes(), Some(options.as_bytes())).map(|batch| batch.jobs)
    }

    fn plain(query: &str) -> JobSpec {
        JobSpec { query: query.into(), name: None, timeout: None, max_attempts: 1, retry_delay: 0 }
    }

    /// SQLSTATE, message, detail.
    fn refusal<T>(outcome: Result<T, Error>) -> (i32, String, String) {
        let report = Report::from(outcome.err().unwrap());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (report.sqlstate, text(report.message), text(report.detail.unwrap_or_default()))
    }

    const INVALID: i32 = sqlstate(b"22023");
    const NULL: i32 = sqlstate(b"22004");

    #[pg_test]
    fn nothing_said_is_the_default() {
        for options in ["{}", "null", r#"{"name": null, "mode": null, "timeout": null}"#] {
            let batch = batch(options).unwrap();
            assert_eq!(
                (batch.name, batch.sequential, batch.max_workers, batch.stop_on_error),
                (None, false, None, false)
            );
            assert_eq!(batch.jobs, [plain("select 1"), plain("select 2")]);
        }
        let batch = BatchSpec::from_text(b" select 1, select 2 ", None, None).unwrap();
        assert_eq!(batch.jobs, [plain(" select 1, select 2 ")]);
        let batch = BatchSpec::from_array(vec![Some(b"selec 1".to_vec()), Some(b"b".to_vec())], None).unwrap();
        assert_eq!(batch.jobs, [plain("selec 1"), plain("b")]);
    }

    #[pg_test]
    fn every_option_arrives() {
        let batch = batch(
            r#"{"name": "n\"é", "mode": "sequential", "max_workers": 3, "on_error": "stop", "timeout": 1.5,
                "max_attempts": 4, "retry_delay": "1 min 2s"}"#,
        )
        .unwrap();
        assert_eq!(batch.name.as_deref(), Some("n\"é".as_bytes()));
        assert_eq!((batch.sequential, batch.max_workers, batch.stop_on_error), (true, Some(3), true));
        for job in batch.jobs {
            assert_eq!((job.name, job.timeout, job.max_attempts, job.retry_delay), (None, Some(1500), 4, 62_000));
        }
    }

    #[pg_test]
    fn a_jobs_own_values_win() {
        let found = jobs(
            r#"["b", {"query": "a", "name": "é", "timeout": 0, "max_attempts": 2, "retry_delay": 0.0001},
                {"query": "c", "timeout": null}]"#,
            r#"{"timeout": "1d", "max_attempts": 3, "retry_delay": 5}"#,
        );
        let rest = JobSpec { timeout: Some(86_400_000), max_attempts: 3, retry_delay: 5000, ..plain("b") };
        let own = JobSpec { name: Some("é".into()), max_attempts: 2, retry_delay: 1, ..plain("a") };
        assert_eq!(found.unwrap(), [rest.clone(), own, JobSpec { query: b"c".to_vec(), ..rest }]);
    }

    #[pg_test]
    fn intervals() {
        for (value, milliseconds) in [
            ("0.25", Some(250)),
            ("0", None),
            ("\"0\"", None),
            ("1e3", Some(1_000_000)),
            ("\"90\"", Some(90_000)),
            ("\"250ms\"", Some(250)),
            ("\"1us\"", Some(1)),
            ("\"1 month 1 day 01:00\"", Some(31 * 86_400_000 + 3_600_000)),
            ("\"P1DT1S\"", Some(86_401_000)),
        ] {
            let batch = batch(&format!(r#"{{"timeout": {value}}}"#)).unwrap();
            assert_eq!(batch.jobs[0].timeout, milliseconds, "{value}");
        }
    }

    #[pg_test]
    fn a_bad_option_is_named() {
        for (options, message) in [
            ("[]", "p_options must be a JSON object"),
            ("\"mode\"", "p_options must be a JSON object"),
            (r#"{"mod": 1}"#, "unrecognized key \"mod\" in p_options"),
            (r#"{"query": "select 1"}"#, "unrecognized key \"query\" in p_options"),
            (r#"{"é\"": 1}"#, "unrecognized key \"é\"\" in p_options"),
            (r#"{"name": 1}"#, "invalid value for key \"name\" in p_options"),
            (r#"{"mode": "Parallel"}"#, "invalid value for key \"mode\" in p_options"),
            (r#"{"mode": ["parallel"]}"#, "invalid value for key \"mode\" in p_options"),
            (r#"{"on_error": true}"#, "invalid value for key \"on_error\" in p_options"),
            (r#"{"max_workers": 0}"#, "invalid value for key \"max_workers\" in p_options"),
            (r#"{"max_workers": 1.5}"#, "invalid value for key \"max_workers\" in p_options"),
            (r#"{"max_workers": "1"}"#, "invalid value for key \"max_workers\" in p_options"),
            (r#"{"max_workers": 2147483648}"#, "invalid value for key \"max_workers\" in p_options"),
            (r#"{"max_attempts": -1}"#, "invalid value for key \"max_attempts\" in p_options"),
            (r#"{"timeout": -0.1}"#, "invalid value for key \"timeout\" in p_options"),
            (r#"{"timeout": "-1s"}"#, "invalid value for key \"timeout\" in p_options"),
            (r#"{"timeout": {}}"#, "invalid value for key \"timeout\" in p_options"),
            (r#"{"timeout": true}"#, "invalid value for key \"timeout\" in p_options"),
            (r#"{"retry_delay": ""}"#, "invalid value for key \"retry_delay\" in p_options"),
        ] {
            let (state, found, detail) = refusal(batch(options));
            assert_eq!((state, found.as_str()), (INVALID, message), "{options}");
            assert_eq!(detail.is_empty(), !message.starts_with("invalid"), "{options}");
        }
        let huge = format!(r#"{{"timeout": {}}}"#, "9".repeat(400));
        assert_eq!(refusal(batch(&huge)).1, "invalid value for key \"timeout\" in p_options");
        let (_, _, detail) = refusal(batch(r#"{"timeout": "soon"}"#));
        assert_eq!(detail, "invalid input syntax for type interval: \"soon\"");
    }

    #[pg_test]
    fn a_bad_job_is_named_by_its_number() {
        for (json, state, message) in [
            ("{}", INVALID, "p_jobs must be a JSON array"),
            ("null", INVALID, "p_jobs must be a JSON array"),
            ("[]", INVALID, "there is no query to run"),
            (r#"["a", 1]"#, INVALID, "job 2 must be a text or a JSON object"),
            (r#"["a", null]"#, NULL, "SQL text of job 2 must not be null"),
            (r#"["a", {}]"#, INVALID, r#"job 2 has no key "query""#),
            (r#"["a", {"query": null}]"#, NULL, "SQL text of job 2 must not be null"),
            (r#"["a", " \n"]"#, INVALID, "SQL text of job 2 must not be empty"),
            (r#"[{"query": ""}]"#, INVALID, "SQL text of job 1 must not be empty"),
            (r#"["a", {"query": 1}]"#, INVALID, "invalid value for key \"query\" in job 2"),
            (r#"["a", {"query": "b", "mode": "parallel"}]"#, INVALID, "unrecognized key \"mode\" in job 2"),
            (r#"["a", {"query": "b", "timeout": "x"}]"#, INVALID, "invalid value for key \"timeout\" in job 2"),
        ] {
            let (found_state, found, _) = refusal(jobs(json, "{}"));
            assert_eq!((found_state, found.as_str()), (state, message), "{json}");
        }
        let array = |queries: Vec<Option<&str>>| {
            let queries = queries.into_iter().map(|query| query.map(|query| query.as_bytes().to_vec())).collect();
            BatchSpec::from_array(queries, None)
        };
        assert_eq!(refusal(array(vec![])).1, "there is no query to run");
        assert_eq!(refusal(array(vec![Some("a"), None])).1, "SQL text of job 2 must not be null");
        assert_eq!(refusal(array(vec![Some("a"), Some("\t")])).1, "SQL text of job 2 must not be empty");
        let long = "a".repeat(MAX_SQL_BYTES + 1);
        assert_eq!(refusal(array(vec![Some("a"), Some(&long)])).1, "SQL text of job 2 is too long");
        assert_eq!(refusal(array(vec![Some("a"), Some(&long)])).0, sqlstate(b"54000"));
    }

    #[pg_test]
    fn an_error_that_was_caught_leaves_the_transaction_usable() {
        refusal(batch(r#"{"timeout": "soon"}"#));
        refusal(BatchSpec::from_text(b"select 1 2 3", Some(b","), None));
        assert_eq!(Spi::get_one::<i32>("select 1").unwrap(), Some(1));
    }
}

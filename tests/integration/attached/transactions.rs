//! Implicit and explicit transactions of a job, and its independence from the caller's.

use crate::support::compare_with_client::assert_like_client;
use pg_background_mgr_tests::{case, wait_until, Db};

#[case]
fn several_statements_are_one_transaction(db: &Db) {
    assert_like_client(
        db,
        "create table t (a int)",
        "insert into t values (1); select 1 / 0; insert into t values (2)",
        "table t",
    );
    let text = "insert into t values (txid_current()); insert into t values (txid_current()); \
                select count(distinct a) from t";
    assert_like_client(db, "create table t (a bigint)", text, "select count(distinct a) from t");
}

#[case]
fn an_explicit_block_commits(db: &Db) {
    assert_like_client(
        db,
        "create table t (a int)",
        "begin; insert into t values (1); commit; select a from t",
        "table t",
    );
}

#[case]
fn an_explicit_block_rolls_back(db: &Db) {
    assert_like_client(
        db,
        "create table t (a int)",
        "begin; insert into t values (1); rollback; select count(*) from t",
        "table t",
    );
    assert_like_client(db, "create table t (a int)", "begin; insert into t values (1); abort", "table t");
}

#[case]
fn statements_around_a_block_behave_as_for_a_client(db: &Db) {
    let texts = [
        "insert into t values (1); begin; insert into t values (2); rollback; insert into t values (3)",
        "insert into t values (1); begin; insert into t values (2); commit; insert into t values (3); select 1 / 0",
        "begin; insert into t values (1); commit; begin; insert into t values (2); rollback; table t",
        "begin; begin; insert into t values (1); commit",
        "insert into t values (1); rollback; insert into t values (2)",
        "insert into t values (1); commit; insert into t values (2); rollback",
        "start transaction; insert into t values (1); end; insert into t values (2)",
    ];
    for text in texts {
        assert_like_client(db, "create table t (a int)", text, "table t");
    }
}

#[case]
fn savepoints_work_in_a_block(db: &Db) {
    let text = "begin; insert into t values (1); savepoint s; insert into t values (2); rollback to s; \
                insert into t values (3); release s; commit; table t";
    assert_like_client(db, "create table t (a int)", text, "table t");
}

#[case]
fn savepoints_outside_a_block_fail_as_for_a_client(db: &Db) {
    for text in ["savepoint s", "insert into t values (1); savepoint s", "release s", "rollback to s"] {
        assert_like_client(db, "create table t (a int)", text, "table t");
    }
}

#[case]
fn commit_and_chain_works(db: &Db) {
    let text = "begin isolation level serializable; insert into t values (1); commit and chain; \
                show transaction_isolation; rollback";
    assert_like_client(db, "create table t (a int)", text, "table t");
    assert_like_client(db, "create table t (a int)", "insert into t values (1); commit and chain", "table t");
}

#[case]
fn commit_without_a_block_warns(db: &Db) {
    for text in ["commit", "rollback", "insert into t values (1); commit", "set local work_mem = '5MB'"] {
        assert_like_client(db, "create table t (a int)", text, "table t");
    }
    let mut session = db.session();
    assert_eq!(session.job("commit", "result text"), ["COMMIT"]);
    assert_eq!(session.notice_texts(), ["WARNING: there is no transaction in progress"]);
}

#[case]
fn an_error_inside_a_block_undoes_it(db: &Db) {
    let text = "begin; insert into t values (1); select 1 / 0; commit";
    assert_like_client(db, "create table t (a int)", text, "table t");
}

#[case]
fn work_before_a_commit_stays_when_a_later_statement_fails(db: &Db) {
    let text = "begin; insert into t values (1); commit; begin; insert into t values (2); select 1 / 0; commit";
    assert_like_client(db, "create table t (a int)", text, "table t");
}

#[case]
fn an_unfinished_begin_is_rolled_back_and_an_error(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let texts = [
        "begin",
        "begin; insert into t values (1)",
        "start transaction read only",
        "begin; insert into t values (1); commit and chain",
        "begin; insert into t values (2); savepoint s; insert into t values (3)",
    ];
    for text in texts {
        let error = session.job_error(text);
        assert_eq!(error.brief(), ("25000".to_owned(), "job ended inside a transaction block".to_owned()), "{text}");
        assert_eq!(error.severity(), "ERROR");
    }
    // The chained block alone was left unfinished.
    assert_eq!(session.rows("table t"), ["1"]);
}

#[case]
fn an_unfinished_begin_with_rows_is_an_error_all_the_same(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    assert_eq!(session.job_error("begin; insert into t values (1) returning a").sqlstate(), "25000");
    assert_eq!(session.value("select count(*) from t"), "0");
}

#[case]
fn an_unfinished_begin_releases_its_locks(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let pid = session.launch("begin; lock table t in access exclusive mode");
    assert_eq!(session.result_error(pid).sqlstate(), "25000");
    session.run("set lock_timeout = '10s'; lock table t");
}

#[case]
fn a_deferred_constraint_fails_at_commit(db: &Db) {
    let setup = "create table p (a int primary key); \
                 create table c (a int references p deferrable initially deferred)";
    assert_like_client(db, setup, "insert into c values (1)", "table c");
    assert_like_client(db, setup, "insert into c values (1); insert into p values (1)", "table c");
    assert_like_client(db, setup, "begin; insert into c values (1); commit; select 1", "table c");
}

#[case]
fn a_deferred_trigger_fails_in_place_of_the_tag(db: &Db) {
    let mut session = db.session();
    session.run(
        "create table t (a int); create function refuse() returns trigger language plpgsql as \
         $$ begin raise exception 'refused %', new.a using errcode = 'ZZ001'; end $$; \
         create constraint trigger late after insert on t deferrable initially deferred \
         for each row execute function refuse()",
    );
    assert_eq!(
        session.job_error("insert into t values (4) returning a").brief(),
        ("ZZ001".to_owned(), "refused 4".to_owned())
    );
    assert_eq!(session.value("select count(*) from t"), "0");
}

#[case]
fn isolation_levels_can_be_set_in_the_text(db: &Db) {
    let texts = [
        "begin isolation level repeatable read; show transaction_isolation; commit",
        "set transaction isolation level serializable; show transaction_isolation",
        "set session characteristics as transaction isolation level serializable; begin; show \
         transaction_isolation; commit",
        "begin read only; insert into t values (1)",
        "select 1; set transaction isolation level serializable",
    ];
    for text in texts {
        assert_like_client(db, "create table t (a int)", text, "table t");
    }
}

#[case]
fn prepare_transaction_keeps_the_transaction(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let text = format!("begin; insert into t values (1); prepare transaction '{}'", db.name);
    assert_eq!(session.job(&text, "result text"), ["BEGIN", "INSERT 0 1", "PREPARE TRANSACTION"]);
    assert_eq!(session.value("select count(*) from t"), "0");
    let text = format!("commit prepared '{}'", db.name);
    assert_eq!(session.job(&text, "result text"), ["COMMIT PREPARED"]);
    assert_eq!(session.value("select count(*) from t"), "1");
}

const BATCHES: &str = "create table t (a int); create procedure batches(n int) language plpgsql as $$ \
    begin for i in 1 .. n loop insert into t values (i); \
    if i % 2 = 0 then rollback; else commit; end if; end loop; end $$";

#[case]
fn a_procedure_commits_and_rolls_back(db: &Db) {
    assert_like_client(db, BATCHES, "call batches(5)", "table t");
    let mut session = db.session();
    session.run(BATCHES);
    assert_eq!(session.job("call batches(5)", "result text"), ["CALL"]);
    assert_eq!(session.rows("table t"), ["1", "3", "5"]);
}

#[case]
fn a_do_block_commits_and_rolls_back(db: &Db) {
    let text = "do $$ begin for i in 1 .. 4 loop insert into t values (i); \
                if i % 2 = 0 then commit; else rollback; end if; end loop; end $$";
    assert_like_client(db, "create table t (a int)", text, "table t");
}

#[case]
fn a_procedure_that_commits_fails_in_a_block_as_for_a_client(db: &Db) {
    for text in ["begin; call batches(1); commit", "select 1; call batches(1)", "call batches(1); select 1"] {
        assert_like_client(db, BATCHES, text, "table t");
    }
}

#[case]
fn a_procedure_with_output_parameters_gives_a_row(db: &Db) {
    let setup = "create procedure swap(inout a int, inout b text) language plpgsql as $$ \
                 begin commit; a := a + 1; b := b || '!'; end $$";
    assert_like_client(db, setup, "call swap(1, 'x')", "");
}

#[case]
fn an_error_after_a_procedures_commit_keeps_what_was_committed(db: &Db) {
    let text = "do $$ begin insert into t values (1); commit; insert into t values (2); perform 1 / 0; end $$";
    assert_like_client(db, "create table t (a int)", text, "table t");
}

#[case]
fn the_job_runs_before_its_caller_commits(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin");
    session.launch("insert into t values (1)");
    let mut other = db.session();
    wait_until("the job's row", || other.value("select count(*) from t") == "1");
    session.run("rollback");
}

#[case]
fn the_callers_rollback_does_not_undo_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; insert into t values (1)");
    let pid = session.launch("insert into t values (2)");
    session.run("rollback");
    // The result outlives the transaction that launched the job.
    assert_eq!(session.result(pid, "result text"), ["INSERT 0 1"]);
    assert_eq!(session.rows("table t"), ["2"]);
}

#[case]
fn the_job_does_not_see_the_callers_uncommitted_rows(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; insert into t values (1)");
    assert_eq!(session.job("select count(*) from t", "n bigint"), ["0"]);
    session.run("commit");
    assert_eq!(session.job("select count(*) from t", "n bigint"), ["1"]);
}

#[case]
fn a_repeatable_read_caller_keeps_its_snapshot(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin isolation level repeatable read; table t");
    assert_eq!(session.job("insert into t values (1) returning a", "a int"), ["1"]);
    assert_eq!(session.value("select count(*) from t"), "0");
    assert_eq!(session.job("select count(*) from t", "n bigint"), ["1"], "the next job sees it");
    session.run("commit");
    assert_eq!(session.value("select count(*) from t"), "1");
}

#[case]
fn a_serializable_caller_reads_its_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin isolation level serializable; table t");
    let pid = session.launch("insert into t select generate_series(1, 1000) returning a");
    let query = format!("select count(*), sum(a) from pg_background_result({pid}) as (a int)");
    assert_eq!(session.rows(&query), ["1000|500500"]);
    assert_eq!(session.value("select count(*) from t"), "0");
    session.run("commit");
}

#[case]
fn the_callers_isolation_level_is_not_the_jobs(db: &Db) {
    let mut session = db.session();
    session.run("begin isolation level serializable");
    assert_eq!(session.job("show transaction_isolation", "level text"), ["read committed"]);
}

#[case]
fn the_callers_default_isolation_is_the_jobs(db: &Db) {
    let setup = "set default_transaction_isolation = 'repeatable read'";
    assert_like_client(db, setup, "show transaction_isolation", "");
}

#[case]
fn a_read_only_transaction_of_the_caller_does_not_bind_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin read only");
    assert_eq!(session.job("insert into t values (1)", "result text"), ["INSERT 0 1"]);
}

#[case]
fn default_transaction_read_only_binds_the_job(db: &Db) {
    let setup = "create table t (a int); set default_transaction_read_only = on";
    assert_like_client(db, setup, "insert into t values (1)", "table t");
}

#[case]
fn a_job_in_a_subtransaction_outlives_its_rollback(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    session.run("begin; savepoint s");
    let pid = session.launch("insert into t values (1)");
    session.run("rollback to s");
    assert_eq!(session.result(pid, "result text"), ["INSERT 0 1"]);
    session.run("rollback");
    assert_eq!(session.rows("table t"), ["1"]);
}

#[case]
fn a_failing_statement_does_not_undo_its_launches(db: &Db) {
    let mut session = db.session();
    session.run("create table t (a int)");
    let query =
        "select pg_background_launch(format('insert into t values (%s)', i)), 1 / (i - 3) from generate_series(1, 3) i";
    assert_eq!(session.error(query).sqlstate(), "22012");
    wait_until("the rows of the jobs", || session.value("select count(*) from t") == "3");
}

#[case]
fn an_exported_snapshot_of_the_caller_is_used_in_the_job(db: &Db) {
    let mut session = db.session();
    session.run("create table t as select 1 as a");
    session.run("begin isolation level repeatable read");
    let snapshot = session.value("select pg_export_snapshot()");
    db.session().run("insert into t values (2)");
    let text = format!(
        "begin isolation level repeatable read; set transaction snapshot '{snapshot}'; select count(*) from t; commit"
    );
    assert_eq!(session.job(&text, "n bigint"), ["1"]);
    assert_eq!(session.job("select count(*) from t", "n bigint"), ["2"]);
    session.run("commit");
}

#[case]
fn constraints_can_be_set_in_the_text(db: &Db) {
    let setup = "create table p (a int primary key); create table c (a int references p deferrable)";
    let text = "set constraints all deferred; insert into c values (1); insert into p values (1)";
    assert_like_client(db, setup, text, "table c");
    assert_like_client(db, setup, "insert into c values (1); insert into p values (1)", "table c");
}

-- From 0.1.0 to 0.2.0: the log moves into a schema of its own, with its rows; who may use the extension still may.

-- Operators have operands of the types that they are for in pg_catalog: who may create operators here has none that fits as
-- well. Whoever else has the log open ends first, and what is read below is all that there is.
DO $$
DECLARE
    dependents pg_catalog.text;
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'cannot update pg_background_mgr in a transaction with isolation level "%"', pg_catalog.current_setting('transaction_isolation')
            USING ERRCODE = '25001', HINT = 'Its snapshot may be older than rows of the log. Use READ COMMITTED.';
    END IF;
    -- Its columns come into another order, which a view that is replaced cannot have.
    SELECT pg_catalog.string_agg(DISTINCT r.ev_class::pg_catalog.regclass::pg_catalog.text, ', ') INTO dependents
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass::pg_catalog.oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
        AND d.refobjid = 'log_background'::pg_catalog.regclass::pg_catalog.oid AND r.ev_class <> d.refobjid;
    IF dependents IS NOT NULL THEN
        RAISE EXCEPTION 'other views depend on view log_background'
            USING ERRCODE = '2BP01', DETAIL = pg_catalog.format('They are %s.', dependents),
                HINT = 'Drop them, update the extension, and create them again: columns of log_background have another order.';
    END IF;
END
$$;
LOCK TABLE pg_background_log IN ACCESS EXCLUSIVE MODE;

-- What is copied and taken over below must be what 0.1.0 has made, and nobody's who is no superuser: an owner could have put
-- columns with casts, indexes with expressions or another table in its place, whose functions would run with the rights of
-- who updates.
DO $$
DECLARE
    log CONSTANT pg_catalog.oid := 'pg_background_log'::pg_catalog.regclass::pg_catalog.oid;
    extension pg_catalog.oid;
    found_columns pg_catalog.text;
    owner pg_catalog.name;
BEGIN
    SELECT e.oid INTO extension FROM pg_catalog.pg_extension AS e WHERE e.extname = 'pg_background_mgr'::pg_catalog.name;
    SELECT r.rolname INTO owner
    FROM pg_catalog.pg_depend AS d
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
    LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
    JOIN pg_catalog.pg_roles AS r ON r.oid = COALESCE(c.relowner, p.proowner)
    WHERE d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid AND d.refobjid = extension
        AND d.deptype = 'e'::pg_catalog."char" AND NOT r.rolsuper
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'objects of extension "pg_background_mgr" belong to role "%", which is no superuser', owner
            USING ERRCODE = '55000', HINT = pg_catalog.format('Give them to a superuser: REASSIGN OWNED BY %I TO CURRENT_USER.', owner);
    END IF;
    SELECT pg_catalog.string_agg(pg_catalog.format('%s %s', a.attname, a.atttypid::pg_catalog.int8), ',' ORDER BY a.attnum) INTO found_columns
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = log AND a.attnum > 0;
    IF found_columns IS DISTINCT FROM 'id 20,pid 23,status 25,ip_client 869,user_name 19,uuid_parent 2950,uuid_child 2950,query 25,result 25,'
            'start_time_exec 1184,end_time_exec 1184,name 25,batch_name 25,options 3802,queued_at 1184,attempts 23,row_count 20,'
            'command_tag 25,sqlstate 25,message 25,detail 25,hint 25,context 25,epoch 20,owner 26,login 26,database 26,is_started 16'
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid AND d.objid = log
                AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid AND d.refobjid = extension
                AND d.deptype = 'e'::pg_catalog."char")
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = log AND c.relkind = 'r'::pg_catalog."char")
        OR EXISTS (SELECT FROM pg_catalog.pg_index AS i
            WHERE i.indrelid = log AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
        OR EXISTS (SELECT FROM pg_catalog.pg_statistic_ext AS s WHERE s.stxrelid = log)
        OR EXISTS (SELECT FROM pg_catalog.pg_constraint AS k
            WHERE k.conrelid = log AND k.contype = 'c'::pg_catalog."char" AND pg_catalog.pg_get_constraintdef(k.oid) <>
                'CHECK ((status = ANY (ARRAY[''queued''::text, ''succeeded''::text, ''failed''::text, ''stopped''::text])))') THEN
        RAISE EXCEPTION 'table pg_background_log is not as version 0.1.0 of extension "pg_background_mgr" has made it'
            USING ERRCODE = '55000', HINT = 'Put its name and its columns back, and drop its indexes with expressions, its statistics and its checks.';
    END IF;
END
$$;

-- What users do not call, in a schema in which nobody else may look a name up.

CREATE SCHEMA background_mgr;

COMMENT ON SCHEMA background_mgr IS
'What pg_background_mgr keeps for itself: the log, and what its views are made of.';

-- Where it has a name that holds whatever the schema of the extension is called.
ALTER TABLE pg_background_log SET SCHEMA background_mgr;
ALTER VIEW log_background SET SCHEMA background_mgr;

CREATE FUNCTION background_mgr.log_rows()
RETURNS TABLE (
    id pg_catalog.int8, pid pg_catalog.int4, status pg_catalog.text, ip_client pg_catalog.inet, user_name pg_catalog.name,
    uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid, query pg_catalog.text, result pg_catalog.text,
    start_time_exec pg_catalog.timestamptz, end_time_exec pg_catalog.timestamptz, name pg_catalog.text,
    batch_name pg_catalog.text, options pg_catalog.jsonb, queued_at pg_catalog.timestamptz, attempts pg_catalog.int4,
    row_count pg_catalog.int8, result_truncated pg_catalog.bool, command_tag pg_catalog.text, sqlstate pg_catalog.text,
    message pg_catalog.text, detail pg_catalog.text, hint pg_catalog.text, context pg_catalog.text,
    epoch pg_catalog.int8, owner pg_catalog.oid, login pg_catalog.oid, database pg_catalog.oid,
    is_started pg_catalog.bool
)
LANGUAGE sql VOLATILE PARALLEL UNSAFE
AS $$ SELECT l.id, l.pid, l.status, l.ip_client, l.user_name, l.uuid_parent, l.uuid_child, l.query, l.result, l.start_time_exec,
    l.end_time_exec, l.name, l.batch_name, l.options, l.queued_at, l.attempts, l.row_count, NULL::pg_catalog.bool, l.command_tag,
    l.sqlstate, l.message, l.detail, l.hint, l.context, l.epoch, l.owner, l.login, l.database, l.is_started
FROM ONLY background_mgr.pg_background_log AS l $$;

COMMENT ON FUNCTION background_mgr.log_rows() IS
'The rows that the log begins with. Refuses to refresh a log that has rows.';

-- Not a key: where the log comes from another server, so do its numbers.
CREATE SEQUENCE background_mgr.log_id CYCLE;

COMMENT ON SEQUENCE background_mgr.log_id IS
'Numbers for the column id of the log.';

-- One row a job. Workers write it, without SQL. A materialized view, for of all that keeps rows it is what others can do least
-- with, whatever they are granted: no trigger, rule, check, default, policy, child or foreign key can be made for it; nobody
-- can insert, update, delete or truncate, lock it or its rows; and no publication takes it along.
CREATE MATERIALIZED VIEW background_mgr.log WITH (fillfactor = 70) AS
SELECT r.id, r.pid, r.status, r.ip_client, r.user_name, r.uuid_parent, r.uuid_child, r.query, r.result, r.start_time_exec,
    r.end_time_exec, r.name, r.batch_name, r.options, r.queued_at, r.attempts, r.row_count, r.result_truncated, r.command_tag,
    r.sqlstate, r.message, r.detail, r.hint, r.context, r.epoch, r.owner, r.login, r.database, r.is_started
FROM background_mgr.log_rows() AS r;

-- The rows are here: from now on the function is that of a log that has been made.
CREATE OR REPLACE FUNCTION background_mgr.log_rows()
RETURNS TABLE (
    id pg_catalog.int8, pid pg_catalog.int4, status pg_catalog.text, ip_client pg_catalog.inet, user_name pg_catalog.name,
    uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid, query pg_catalog.text, result pg_catalog.text,
    start_time_exec pg_catalog.timestamptz, end_time_exec pg_catalog.timestamptz, name pg_catalog.text,
    batch_name pg_catalog.text, options pg_catalog.jsonb, queued_at pg_catalog.timestamptz, attempts pg_catalog.int4,
    row_count pg_catalog.int8, result_truncated pg_catalog.bool, command_tag pg_catalog.text, sqlstate pg_catalog.text,
    message pg_catalog.text, detail pg_catalog.text, hint pg_catalog.text, context pg_catalog.text,
    epoch pg_catalog.int8, owner pg_catalog.oid, login pg_catalog.oid, database pg_catalog.oid,
    is_started pg_catalog.bool
)
AS 'MODULE_PATHNAME', 'pg_background_log_rows'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

CREATE UNIQUE INDEX log_uuid_child ON background_mgr.log (uuid_child);
CREATE INDEX log_uuid_parent ON background_mgr.log (uuid_parent);
CREATE INDEX log_queued_at ON background_mgr.log (queued_at);

COMMENT ON MATERIALIZED VIEW background_mgr.log IS
'One row a job of pg_background_launch_num, as workers write it. Read it through the view log_background, which knows what has become of the server since, and shows each role its own rows. It is never refreshed.';
COMMENT ON COLUMN background_mgr.log.options IS
'How the job and its batch are run, as p_options says it, for pg_background_retry. NULL: nothing was said.';
COMMENT ON COLUMN background_mgr.log.epoch IS
'Which life of the server accepted the job: another number after each restart and each crash.';
COMMENT ON COLUMN background_mgr.log.login IS
'Who launched the job: the role that its worker logs in as. Not the owner if SET ROLE was active.';
COMMENT ON COLUMN background_mgr.log.database IS
'Which database accepted the job: not this one, if it was copied from that.';
COMMENT ON COLUMN background_mgr.log.is_started IS
'Whether a worker was about to start the job: before that, it certainly did not run.';

-- What the registry in shared memory knows.

CREATE FUNCTION background_mgr.live(only_unrecorded pg_catalog.bool DEFAULT false, only_elsewhere pg_catalog.bool DEFAULT false)
RETURNS TABLE (uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid, status pg_catalog.text, is_recorded pg_catalog.bool,
    database pg_catalog.int8, owner pg_catalog.int8, user_name pg_catalog.text, ip_client pg_catalog.text,
    batch_name pg_catalog.text, name pg_catalog.text, query pg_catalog.text, queued_at pg_catalog.timestamptz,
    start_time_exec pg_catalog.timestamptz, end_time_exec pg_catalog.timestamptz, attempts pg_catalog.int4,
    pid pg_catalog.int4, queue_position pg_catalog.int8, progress pg_catalog.int4, progress_message pg_catalog.text,
    epoch pg_catalog.int8, options pg_catalog.text, result pg_catalog.text, row_count pg_catalog.int8,
    result_truncated pg_catalog.bool, command_tag pg_catalog.text,
    sqlstate pg_catalog.text, message pg_catalog.text, detail pg_catalog.text, hint pg_catalog.text,
    context pg_catalog.text, database_name pg_catalog.text)
AS 'MODULE_PATHNAME', 'pg_background_live'
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000;

COMMENT ON FUNCTION background_mgr.live(pg_catalog.bool, pg_catalog.bool) IS
'Jobs of all databases that have not ended, or whose end is not in the log yet, as far as the caller may see them: all, those of this one whose rows are not in the log, or those of other databases. For the views.';

CREATE FUNCTION background_mgr.spooled()
RETURNS TABLE (uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid, owner pg_catalog.int8, user_name pg_catalog.text,
    ip_client pg_catalog.text, batch_name pg_catalog.text, name pg_catalog.text, query pg_catalog.text,
    queued_at pg_catalog.timestamptz, epoch pg_catalog.int8, options pg_catalog.text, attempts pg_catalog.int4)
AS 'MODULE_PATHNAME', 'pg_background_spooled'
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION background_mgr.spooled() IS
'Jobs of this database that were accepted by a server that died before they could be written to the log. For the views.';

CREATE FUNCTION background_mgr.state(uuid_child pg_catalog.uuid, epoch pg_catalog.int8, database pg_catalog.oid, is_started pg_catalog.bool,
    is_running pg_catalog.bool)
RETURNS TABLE (status pg_catalog.text, pid pg_catalog.int4, start_time_exec pg_catalog.timestamptz,
    end_time_exec pg_catalog.timestamptz, attempts pg_catalog.int4, queue_position pg_catalog.int8,
    progress pg_catalog.int4, progress_message pg_catalog.text, result pg_catalog.text, row_count pg_catalog.int8,
    result_truncated pg_catalog.bool, command_tag pg_catalog.text, sqlstate pg_catalog.text, message pg_catalog.text,
    detail pg_catalog.text,
    hint pg_catalog.text, context pg_catalog.text)
AS 'MODULE_PATHNAME', 'pg_background_state'
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1;

COMMENT ON FUNCTION background_mgr.state(pg_catalog.uuid, pg_catalog.int8, pg_catalog.oid, pg_catalog.bool, pg_catalog.bool) IS
'What has become of a job whose row in the log is not final, as far as the caller may see it: what the server knows, or had noted before it died; a query sees all jobs of a batch at one moment. database: which one accepted it, NULL for this one. For the views.';

-- Whoever may create objects in this schema, before the extension is in it or later, can have functions and operators of
-- the same names here. So functions are called here alone, where they are bound for good, with arguments of exactly their
-- types, and operators have operands of the types that they are for in pg_catalog: nothing else fits as well.

-- What users read. A view shows its owner's table; who may see a row is asked for the caller. What the registry has and
-- the reader's snapshot of the table has not is taken from there: a batch that was accepted just now, or launched again.
-- Who reads statistics only sees neither rows nor what errors say: the functions keep that to themselves, too.
-- No view reads a table or view of the server: LOCK TABLE goes on to what a view reads, with the rights of its owner, and
-- whoever has DELETE on a view could keep everybody from logging in.
-- NOT IN is a hash table whatever the planner guesses; a join may be a loop when the statistics are from before.

CREATE VIEW background_mgr.all_jobs WITH (security_barrier) AS
WITH unrecorded AS MATERIALIZED (SELECT * FROM background_mgr.live(true, false)),
spooled AS MATERIALIZED (
    SELECT v.*
    FROM background_mgr.spooled() AS v
    WHERE v.uuid_child NOT IN (SELECT u.uuid_child FROM unrecorded AS u)
        AND NOT EXISTS (SELECT FROM background_mgr.log AS l WHERE l.uuid_child = v.uuid_child AND l.queued_at >= v.queued_at)
)
SELECT l.id, l.pid, l.status, l.ip_client, l.user_name, l.uuid_parent, l.uuid_child, l.query,
    CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.result END AS result, l.start_time_exec, l.end_time_exec,
    l.name, l.batch_name, l.queued_at, l.attempts, l.row_count, l.result_truncated, l.command_tag, l.sqlstate,
    CASE WHEN l.status = 'stopped' OR pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.message END AS message,
    CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.detail END AS detail,
    CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.hint END AS hint,
    CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.context END AS context, l.epoch,
    NULL::pg_catalog.int8 AS queue_position, NULL::pg_catalog.int4 AS progress, NULL::pg_catalog.text AS progress_message
FROM background_mgr.log AS l
WHERE l.status <> 'queued'
    AND (pg_catalog.pg_has_role(l.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'))
    AND l.uuid_child NOT IN (SELECT u.uuid_child FROM unrecorded AS u)
    AND l.uuid_child NOT IN (SELECT v.uuid_child FROM spooled AS v)
UNION ALL
SELECT l.id, COALESCE(s.pid, CASE WHEN s.status = 'lost' THEN l.pid END), s.status, l.ip_client, l.user_name, l.uuid_parent,
    l.uuid_child, l.query, s.result,
    COALESCE(s.start_time_exec, CASE WHEN s.status = 'lost' THEN l.start_time_exec END), s.end_time_exec, l.name,
    l.batch_name, l.queued_at, COALESCE(s.attempts, l.attempts), s.row_count, s.result_truncated, s.command_tag,
    COALESCE(s.sqlstate, l.sqlstate),
    COALESCE(s.message, CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.message END),
    COALESCE(s.detail, CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.detail END),
    COALESCE(s.hint, CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.hint END),
    COALESCE(s.context, CASE WHEN pg_catalog.pg_has_role(l.owner, 'USAGE') THEN l.context END), l.epoch, s.queue_position,
    s.progress, s.progress_message
FROM background_mgr.log AS l, LATERAL background_mgr.state(l.uuid_child, l.epoch, l.database, l.is_started, l.start_time_exec IS NOT NULL) AS s
WHERE l.status = 'queued'
    AND (pg_catalog.pg_has_role(l.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'))
    AND l.uuid_child NOT IN (SELECT u.uuid_child FROM unrecorded AS u)
    AND l.uuid_child NOT IN (SELECT v.uuid_child FROM spooled AS v)
UNION ALL
SELECT NULL, u.pid, u.status, u.ip_client::pg_catalog.inet, u.user_name::pg_catalog.name, u.uuid_parent, u.uuid_child,
    u.query, u.result, u.start_time_exec, u.end_time_exec, u.name, u.batch_name, u.queued_at, u.attempts, u.row_count,
    u.result_truncated, u.command_tag, u.sqlstate, u.message, u.detail, u.hint, u.context, u.epoch, u.queue_position, u.progress,
    u.progress_message
FROM unrecorded AS u
UNION ALL
SELECT NULL, s.pid, s.status, v.ip_client::pg_catalog.inet, v.user_name::pg_catalog.name, v.uuid_parent, v.uuid_child,
    v.query, s.result, s.start_time_exec, s.end_time_exec, v.name, v.batch_name, v.queued_at, COALESCE(s.attempts, v.attempts),
    s.row_count, s.result_truncated, s.command_tag, s.sqlstate, s.message, s.detail, s.hint, s.context, v.epoch,
    s.queue_position, s.progress, s.progress_message
FROM spooled AS v, LATERAL background_mgr.state(v.uuid_child, v.epoch, NULL::pg_catalog.oid, false, false) AS s;

COMMENT ON VIEW background_mgr.all_jobs IS
'Jobs of this database, as the log and the registry have them together. For the other views.';

CREATE VIEW log_background WITH (security_barrier) AS
SELECT j.id, j.pid, j.status, j.ip_client, j.user_name, j.uuid_parent, j.uuid_child, j.query, j.result, j.start_time_exec,
    j.end_time_exec, j.name, j.batch_name, j.queued_at,
    COALESCE(j.end_time_exec, CASE WHEN j.status = 'running' THEN pg_catalog.clock_timestamp() END) - j.start_time_exec AS elapsed,
    j.attempts, j.row_count, j.result_truncated, j.command_tag, j.sqlstate, j.message, j.detail, j.hint, j.context
FROM background_mgr.all_jobs AS j;

CREATE FUNCTION background_mgr.delete_job()
RETURNS pg_catalog.trigger
AS 'MODULE_PATHNAME', 'pg_background_delete_job'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION background_mgr.delete_job() IS
'Deletes the row of a job that has ended; one that has not stays.';

CREATE TRIGGER delete_job INSTEAD OF DELETE ON log_background
FOR EACH ROW EXECUTE FUNCTION background_mgr.delete_job();

COMMENT ON TRIGGER delete_job ON log_background IS
'DELETE deletes the rows of jobs that have ended.';

-- Who was granted TRIGGER on the view, as GRANT ALL does, can have a trigger for each DELETE, which runs with the rights of
-- who deletes. This is looked for when a DELETE is planned, before any trigger runs: so it is declared to be immutable.
CREATE FUNCTION background_mgr.has_triggers_of_others(relation pg_catalog.regclass)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'pg_background_has_triggers_of_others'
LANGUAGE c IMMUTABLE PARALLEL UNSAFE;

COMMENT ON FUNCTION background_mgr.has_triggers_of_others(pg_catalog.regclass) IS
'Refuses a DELETE on a view that has a trigger of others. For the rule on log_background.';

CREATE RULE refuse_triggers_of_others AS ON DELETE TO log_background WHERE background_mgr.has_triggers_of_others('log_background'::pg_catalog.regclass)
DO INSTEAD NOTHING;

COMMENT ON RULE refuse_triggers_of_others ON log_background IS
'Refuses a DELETE that would run triggers of others.';

COMMENT ON VIEW log_background IS
'One row a job of pg_background_launch_num, with its true state: also right after a crash. Each role sees its own rows; members of pg_read_all_stats see all, without results and what errors say.';
COMMENT ON COLUMN log_background.id IS
'Number of the row in the log; NULL until it is there.';
COMMENT ON COLUMN log_background.pid IS
'Process ID of the worker that runs the job or ran it; NULL between two attempts.';
COMMENT ON COLUMN log_background.status IS
'queued, running, succeeded, failed, stopped, or lost: the server died under it, or it is a job of the database that this one was copied from.';
COMMENT ON COLUMN log_background.ip_client IS
'Address of the client that launched the job; 127.0.0.1 also for Unix sockets and for launches by workers.';
COMMENT ON COLUMN log_background.user_name IS
'Role that launched the job, and whose rights it has.';
COMMENT ON COLUMN log_background.uuid_parent IS
'The call of pg_background_launch_num, with all of its jobs.';
COMMENT ON COLUMN log_background.uuid_child IS
'The job.';
COMMENT ON COLUMN log_background.query IS
'SQL text of the job.';
COMMENT ON COLUMN log_background.result IS
'Rows of the last statement that gave rows, as a JSON array of as many whole rows as fit in pg_background_mgr.log_result_limit; without rows, the command tags.';
COMMENT ON COLUMN log_background.start_time_exec IS
'When the attempt began that runs, or that was the last; NULL between two attempts.';
COMMENT ON COLUMN log_background.end_time_exec IS
'When the job ended; NULL if it is lost.';
COMMENT ON COLUMN log_background.name IS
'Name of the job, from p_jobs; without one, that of its call.';
COMMENT ON COLUMN log_background.batch_name IS
'Name of the call, from p_options.';
COMMENT ON COLUMN log_background.queued_at IS
'When the job was launched, or launched again.';
COMMENT ON COLUMN log_background.elapsed IS
'From start_time_exec to end_time_exec, or to now while the job runs; NULL if it is lost.';
COMMENT ON COLUMN log_background.attempts IS
'How often the job was begun.';
COMMENT ON COLUMN log_background.row_count IS
'Rows that the last statement gave or changed.';
COMMENT ON COLUMN log_background.result_truncated IS
'Whether the log has only the beginning of the rows, or of a text of the error.';
COMMENT ON COLUMN log_background.command_tag IS
'Command tag of the last statement.';
COMMENT ON COLUMN log_background.sqlstate IS
'SQLSTATE of the error.';
COMMENT ON COLUMN log_background.message IS
'Why the job did not succeed: its error; who stopped it; that another job of its batch failed; that the server went down, or the database was copied.';
COMMENT ON COLUMN log_background.detail IS
'Detail of the error.';
COMMENT ON COLUMN log_background.hint IS
'Hint of the error.';
COMMENT ON COLUMN log_background.context IS
'Context of the error.';

CREATE OR REPLACE VIEW pg_background_jobs WITH (security_barrier) AS
SELECT j.uuid_parent, j.uuid_child, j.name, j.user_name, j.database, j.status, j.queue_position, j.pid,
    a.wait_event_type, a.wait_event, j.progress, j.progress_message, j.attempts, j.queued_at, j.start_time_exec,
    j.end_time_exec,
    COALESCE(j.end_time_exec, CASE WHEN j.status = 'running' THEN pg_catalog.clock_timestamp() END) - j.start_time_exec AS elapsed,
    j.query, j.result, j.sqlstate, j.message
FROM (
    SELECT l.uuid_parent, l.uuid_child, l.name, l.user_name, pg_catalog.current_database() AS database,
        l.status, l.queue_position, l.pid, l.progress, l.progress_message, l.attempts, l.queued_at, l.start_time_exec,
        l.end_time_exec, l.query, l.result, l.sqlstate, l.message
    FROM background_mgr.all_jobs AS l
    UNION ALL
    SELECT v.uuid_parent, v.uuid_child, v.name, v.user_name::pg_catalog.name, v.database_name::pg_catalog.name, v.status, v.queue_position, v.pid,
        v.progress, v.progress_message, v.attempts, v.queued_at, v.start_time_exec, v.end_time_exec, v.query, v.result,
        v.sqlstate, v.message
    FROM background_mgr.live(false, true) AS v
    WHERE v.database_name IS NOT NULL AND v.end_time_exec IS NULL AND v.status IN ('queued', 'running')
) AS j
LEFT JOIN pg_catalog.pg_stat_get_activity(NULL::pg_catalog.int4) AS a ON a.pid = j.pid AND j.status = 'running';

COMMENT ON VIEW pg_background_jobs IS
'Jobs of pg_background_launch_num: those that are queued or run, of all databases, and those of this database that have ended. Each role sees its own.';
COMMENT ON COLUMN pg_background_jobs.uuid_parent IS
'The call of pg_background_launch_num, with all of its jobs.';
COMMENT ON COLUMN pg_background_jobs.uuid_child IS
'The job.';
COMMENT ON COLUMN pg_background_jobs.name IS
'Name of the job, from p_jobs; without one, that of its call.';
COMMENT ON COLUMN pg_background_jobs.user_name IS
'Role that launched the job, and whose rights it has.';
COMMENT ON COLUMN pg_background_jobs.database IS
'Database that the job runs in.';
COMMENT ON COLUMN pg_background_jobs.status IS
'queued, running, succeeded, failed, stopped, or lost.';
COMMENT ON COLUMN pg_background_jobs.queue_position IS
'Place among the queued jobs of the whole server, the oldest first, those that wait for another attempt among them; NULL if the job is not queued.';
COMMENT ON COLUMN pg_background_jobs.pid IS
'Process ID of the worker that runs the job or ran it; NULL between two attempts.';
COMMENT ON COLUMN pg_background_jobs.wait_event_type IS
'Type of the event that the worker waits for.';
COMMENT ON COLUMN pg_background_jobs.wait_event IS
'Event that the worker waits for.';
COMMENT ON COLUMN pg_background_jobs.progress IS
'How far the running job is, in percent, as pg_background_report_progress said it.';
COMMENT ON COLUMN pg_background_jobs.progress_message IS
'Message of pg_background_report_progress.';
COMMENT ON COLUMN pg_background_jobs.attempts IS
'How often the job was begun.';
COMMENT ON COLUMN pg_background_jobs.queued_at IS
'When the job was launched, or launched again.';
COMMENT ON COLUMN pg_background_jobs.start_time_exec IS
'When the attempt began that runs, or that was the last; NULL between two attempts.';
COMMENT ON COLUMN pg_background_jobs.end_time_exec IS
'When the job ended; NULL if it is lost.';
COMMENT ON COLUMN pg_background_jobs.elapsed IS
'From start_time_exec to end_time_exec, or to now while the job runs; NULL if it is lost.';
COMMENT ON COLUMN pg_background_jobs.query IS
'SQL text of the job.';
COMMENT ON COLUMN pg_background_jobs.result IS
'As in log_background.';
COMMENT ON COLUMN pg_background_jobs.sqlstate IS
'SQLSTATE of the error.';
COMMENT ON COLUMN pg_background_jobs.message IS
'Why the job did not succeed, as in log_background.';

CREATE OR REPLACE VIEW pg_background_batches WITH (security_barrier) AS
SELECT b.uuid_parent, b.name, b.user_name, b.queued, b.running, b.succeeded, b.failed, b.stopped, b.lost, b.total,
    pg_catalog.round(100::pg_catalog.numeric * b.ended::pg_catalog.numeric / b.total::pg_catalog.numeric, 1) AS percent,
    '[' || pg_catalog.repeat('#', (20 * b.ended / b.total)::pg_catalog.int4)
        || pg_catalog.repeat('-', 20 - (20 * b.ended / b.total)::pg_catalog.int4) || ']' AS progress_bar,
    b.queued_at,
    CASE WHEN b.ended < b.total THEN pg_catalog.clock_timestamp() ELSE b.ended_at END - b.queued_at AS elapsed,
    CASE WHEN b.ended > 0 AND b.ended < b.total AND b.queued_at = b.last_queued_at
        THEN (pg_catalog.clock_timestamp() - b.queued_at) * ((b.total - b.ended)::pg_catalog.float8 / b.ended::pg_catalog.float8) END AS estimate
FROM (
    SELECT l.uuid_parent, pg_catalog.min(l.batch_name) AS name, pg_catalog.min(l.user_name::pg_catalog.text)::pg_catalog.name AS user_name,
        pg_catalog.count(*) FILTER (WHERE l.status = 'queued') AS queued,
        pg_catalog.count(*) FILTER (WHERE l.status = 'running') AS running,
        pg_catalog.count(*) FILTER (WHERE l.status = 'succeeded') AS succeeded,
        pg_catalog.count(*) FILTER (WHERE l.status = 'failed') AS failed,
        pg_catalog.count(*) FILTER (WHERE l.status = 'stopped') AS stopped,
        pg_catalog.count(*) FILTER (WHERE l.status = 'lost') AS lost,
        pg_catalog.count(*) AS total,
        pg_catalog.count(*) FILTER (WHERE l.status NOT IN ('queued', 'running')) AS ended,
        pg_catalog.min(l.queued_at) AS queued_at, pg_catalog.max(l.queued_at) AS last_queued_at, pg_catalog.max(l.end_time_exec) AS ended_at
    FROM background_mgr.all_jobs AS l
    GROUP BY l.uuid_parent
) AS b;

COMMENT ON VIEW pg_background_batches IS
'One row for each call of pg_background_launch_num: how many of its jobs are in which state, how far it is, and how long the rest may take at the pace so far.';
COMMENT ON COLUMN pg_background_batches.uuid_parent IS
'The call of pg_background_launch_num.';
COMMENT ON COLUMN pg_background_batches.name IS
'Name of the call, from p_options.';
COMMENT ON COLUMN pg_background_batches.user_name IS
'Role that launched the jobs.';
COMMENT ON COLUMN pg_background_batches.queued IS
'Jobs that wait for a worker, or for another attempt.';
COMMENT ON COLUMN pg_background_batches.running IS
'Jobs that a worker runs now.';
COMMENT ON COLUMN pg_background_batches.succeeded IS
'Jobs that have succeeded.';
COMMENT ON COLUMN pg_background_batches.failed IS
'Jobs that have failed.';
COMMENT ON COLUMN pg_background_batches.stopped IS
'Jobs that were stopped.';
COMMENT ON COLUMN pg_background_batches.lost IS
'Jobs that ended with the server, or belong to the database that this one was copied from.';
COMMENT ON COLUMN pg_background_batches.total IS
'All jobs of the call.';
COMMENT ON COLUMN pg_background_batches.percent IS
'Share of the jobs that have ended.';
COMMENT ON COLUMN pg_background_batches.progress_bar IS
'The same as a bar of 20 characters.';
COMMENT ON COLUMN pg_background_batches.queued_at IS
'When the first of the jobs was launched, or launched again.';
COMMENT ON COLUMN pg_background_batches.elapsed IS
'From then until the last job ended, or until now; NULL if all are lost.';
COMMENT ON COLUMN pg_background_batches.estimate IS
'How long the rest takes if it takes as long, job by job, as what has ended; NULL before a job has ended, when all have, and after a retry.';

-- Who could read the views and call what they are made of. Nothing else of what is new is granted to PUBLIC, or to whom default
-- privileges name.

CREATE FUNCTION background_mgr.copy_rights(source pg_catalog.regclass, target pg_catalog.regclass)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_copy_relation_rights'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION background_mgr.copy_rights(source pg_catalog.regprocedure, target pg_catalog.regprocedure)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_copy_function_rights'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION background_mgr.take_back(schema pg_catalog.regnamespace)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_take_back'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

SELECT background_mgr.copy_rights('background_mgr.log_background'::pg_catalog.regclass, 'log_background'::pg_catalog.regclass);

SELECT background_mgr.take_back('background_mgr'::pg_catalog.regnamespace);

SELECT background_mgr.copy_rights('pg_background_live(bool,bool)'::pg_catalog.regprocedure, 'background_mgr.live(bool,bool)'::pg_catalog.regprocedure),
    background_mgr.copy_rights('pg_background_live(bool,bool)'::pg_catalog.regprocedure, 'background_mgr.has_triggers_of_others(regclass)'::pg_catalog.regprocedure),
    background_mgr.copy_rights('pg_background_spooled()'::pg_catalog.regprocedure, 'background_mgr.spooled()'::pg_catalog.regprocedure),
    background_mgr.copy_rights('pg_background_state(uuid,int8,oid,bool)'::pg_catalog.regprocedure, 'background_mgr.state(uuid,int8,oid,bool,bool)'::pg_catalog.regprocedure);

DROP FUNCTION background_mgr.take_back(pg_catalog.regnamespace);
DROP FUNCTION background_mgr.copy_rights(pg_catalog.regclass, pg_catalog.regclass);
DROP FUNCTION background_mgr.copy_rights(pg_catalog.regprocedure, pg_catalog.regprocedure);

SELECT pg_catalog.setval('background_mgr.log_id', pg_catalog.max(l.id)) FROM background_mgr.log AS l HAVING pg_catalog.count(*) > 0;

DROP VIEW background_mgr.log_background;
DROP VIEW pg_background_all_jobs;
DROP FUNCTION pg_background_live(pg_catalog.bool, pg_catalog.bool);
DROP FUNCTION pg_background_spooled();
DROP FUNCTION pg_background_state(pg_catalog.uuid, pg_catalog.int8, pg_catalog.oid, pg_catalog.bool);
DROP TABLE background_mgr.pg_background_log;

COMMENT ON FUNCTION pg_background_launch(pg_catalog.text, pg_catalog.int4) IS
'Starts a SQL text in a background worker, at once and in its own transactions; gives the worker''s process ID. queue_size: bytes of the result that shared memory holds; 0 = the default.';

COMMENT ON FUNCTION pg_background_retry(pg_catalog.text) IS
'Launches again the jobs of a batch that have failed, were stopped or lost, or one such job, with the options of their first launch; they keep their uuids.';

-- The manager: the log, what is known of jobs, and the functions that launch, follow and stop them.

-- What users do not call, in a schema in which nobody else may look a name up.

CREATE SCHEMA background_mgr;

COMMENT ON SCHEMA background_mgr IS
'What pg_background_mgr keeps for itself: the log, and what its views are made of.';

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
AS 'MODULE_PATHNAME', 'pg_background_log_rows'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

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

CREATE VIEW pg_background_jobs WITH (security_barrier) AS
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

CREATE VIEW pg_background_batches WITH (security_barrier) AS
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

-- Launching.

CREATE FUNCTION pg_background_launch_num(p_querys pg_catalog.text, p_delimiter pg_catalog.text DEFAULT ',',
    p_monitor pg_catalog.bool DEFAULT true, p_exec_type pg_catalog.text DEFAULT 'async',
    p_options pg_catalog.jsonb DEFAULT '{}')
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid)
AS 'MODULE_PATHNAME', 'pg_background_launch_text'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_launch_num(pg_catalog.text, pg_catalog.text, pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) IS
'Launches the queries of a text, cut at a delimiter where every piece is a complete SQL text. p_monitor: what finds no free worker waits in a queue. p_exec_type: async, or sync to wait for all of them. p_options: name, mode, max_workers, on_error, timeout, max_attempts, retry_delay.';

CREATE FUNCTION pg_background_launch_num(p_querys pg_catalog.text[], p_monitor pg_catalog.bool DEFAULT true,
    p_exec_type pg_catalog.text DEFAULT 'async', p_options pg_catalog.jsonb DEFAULT '{}')
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid)
AS 'MODULE_PATHNAME', 'pg_background_launch_array'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_launch_num(pg_catalog.text[], pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) IS
'Launches the queries of an array. The other arguments are those of the form with one text.';

CREATE FUNCTION pg_background_launch_num(p_jobs pg_catalog.jsonb, p_monitor pg_catalog.bool DEFAULT true,
    p_exec_type pg_catalog.text DEFAULT 'async', p_options pg_catalog.jsonb DEFAULT '{}')
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid)
AS 'MODULE_PATHNAME', 'pg_background_launch_json'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_launch_num(pg_catalog.jsonb, pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) IS
'Launches the queries of a JSON array of texts or of objects with query, name, timeout, max_attempts, retry_delay. The other arguments are those of the form with one text.';

-- Following.

CREATE FUNCTION pg_background_monitor(uuid_father pg_catalog.text DEFAULT NULL, p_show_verbose pg_catalog.bool DEFAULT true,
    p_timeout pg_catalog.interval DEFAULT NULL)
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid,
    name pg_catalog.text, query pg_catalog.text, result pg_catalog.text, message pg_catalog.text,
    queue_position pg_catalog.int8, start_time_exec pg_catalog.timestamptz, end_time_exec pg_catalog.timestamptz,
    elapsed pg_catalog.interval)
AS 'MODULE_PATHNAME', 'pg_background_monitor_text'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_monitor(pg_catalog.text, pg_catalog.bool, pg_catalog.interval) IS
'Without a uuid: the jobs that the caller may see, now. With the uuid of a batch or of a job: follows it until all has ended or p_timeout is over, with a notice for each change if p_show_verbose, and gives its jobs.';

CREATE FUNCTION pg_background_monitor(uuid_father pg_catalog.uuid, p_show_verbose pg_catalog.bool DEFAULT true,
    p_timeout pg_catalog.interval DEFAULT NULL)
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid,
    name pg_catalog.text, query pg_catalog.text, result pg_catalog.text, message pg_catalog.text,
    queue_position pg_catalog.int8, start_time_exec pg_catalog.timestamptz, end_time_exec pg_catalog.timestamptz,
    elapsed pg_catalog.interval)
AS 'MODULE_PATHNAME', 'pg_background_monitor_uuid'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_monitor(pg_catalog.uuid, pg_catalog.bool, pg_catalog.interval) IS
'As the form with a text.';

-- Stopping, launching again.

CREATE FUNCTION pg_background_stop(uuid_father_or_child pg_catalog.text, p_grace pg_catalog.interval DEFAULT '5s')
RETURNS TABLE (uuid_child pg_catalog.uuid, was pg_catalog.text, now pg_catalog.text)
AS 'MODULE_PATHNAME', 'pg_background_stop_text'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_stop(pg_catalog.text, pg_catalog.interval) IS
'Stops a job, or all jobs of a batch: queued ones at once; running ones are cancelled, and their worker is ended if they outlive p_grace. For the owner of the jobs, superusers, and members of pg_signal_backend.';

CREATE FUNCTION pg_background_stop(uuid_father_or_child pg_catalog.uuid, p_grace pg_catalog.interval DEFAULT '5s')
RETURNS TABLE (uuid_child pg_catalog.uuid, was pg_catalog.text, now pg_catalog.text)
AS 'MODULE_PATHNAME', 'pg_background_stop_uuid'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_stop(pg_catalog.uuid, pg_catalog.interval) IS
'As the form with a text.';

CREATE FUNCTION pg_background_retry(uuid pg_catalog.text)
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid)
AS 'MODULE_PATHNAME', 'pg_background_retry_text'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_retry(pg_catalog.text) IS
'Launches again the jobs of a batch that have failed, were stopped or lost, or one such job, with the options of their first launch; they keep their uuids.';

CREATE FUNCTION pg_background_retry(uuid pg_catalog.uuid)
RETURNS TABLE (pid pg_catalog.int4, status pg_catalog.text, uuid_parent pg_catalog.uuid, uuid_child pg_catalog.uuid)
AS 'MODULE_PATHNAME', 'pg_background_retry_uuid'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_retry(pg_catalog.uuid) IS
'As the form with a text.';

CREATE FUNCTION pg_background_report_progress(pct pg_catalog.int4, message pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_report_progress'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_report_progress(pg_catalog.int4, pg_catalog.text) IS
'Inside a job of pg_background_launch_num: shows in pg_background_jobs how far it is, at once. Elsewhere it does nothing.';

CREATE FUNCTION pg_background_prune(older_than pg_catalog.interval)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'pg_background_prune'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_prune(pg_catalog.interval) IS
'Deletes the log of jobs that ended longer ago; gives how many. The owner of the extension and superusers delete everybody''s, others their own.';

-- The classic interface.

CREATE FUNCTION pg_background_launch(sql pg_catalog.text, queue_size pg_catalog.int4 DEFAULT 65536)
RETURNS pg_catalog.int4
AS 'MODULE_PATHNAME', 'pg_background_launch'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_launch(pg_catalog.text, pg_catalog.int4) IS
'Starts a SQL text in a background worker, at once and in its own transactions; gives the worker''s process ID. queue_size: bytes of the result that shared memory holds; 0 = the default.';

CREATE FUNCTION pg_background_result(pid pg_catalog.int4)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'pg_background_result'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_result(pg_catalog.int4) IS
'Waits for a job of this session and gives its rows, or its command tags if it has none; raises its error and forwards its notices. A result can be read once.';

CREATE FUNCTION pg_background_detach(pid pg_catalog.int4)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_detach'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_detach(pg_catalog.int4) IS
'Gives up the result of a job of this session; the job runs on.';

CREATE FUNCTION background_launch(sql pg_catalog.text)
RETURNS pg_catalog.int4
AS 'MODULE_PATHNAME', 'pg_background_launch_default'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION background_launch(pg_catalog.text) IS
'Another name of pg_background_launch.';

-- Who may use it.

CREATE FUNCTION pg_background_grant(role_name pg_catalog.name)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_grant'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_grant(pg_catalog.name) IS
'Lets a role use the whole interface. For the owner of the extension and superusers.';

CREATE FUNCTION pg_background_revoke(role_name pg_catalog.name)
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_revoke'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION pg_background_revoke(pg_catalog.name) IS
'Takes the interface from a role again. For the owner of the extension and superusers.';

-- Nothing is granted to PUBLIC, nor to whom default privileges name.

CREATE FUNCTION background_mgr.take_back()
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'pg_background_take_back'
LANGUAGE c VOLATILE PARALLEL UNSAFE;

SELECT background_mgr.take_back();

DROP FUNCTION background_mgr.take_back();

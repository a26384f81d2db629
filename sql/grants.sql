-- Nothing is granted to PUBLIC.

REVOKE ALL ON FUNCTION pg_background_launch(pg_catalog.text, pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_result(pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_detach(pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION background_launch(pg_catalog.text) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_grant(pg_catalog.name) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_revoke(pg_catalog.name) FROM PUBLIC;

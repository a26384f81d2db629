-- Nothing is granted to PUBLIC.

REVOKE ALL ON FUNCTION pg_background_launch(pg_catalog.text, pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_result(pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_detach(pg_catalog.int4) FROM PUBLIC;
REVOKE ALL ON FUNCTION background_launch(pg_catalog.text) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_grant(pg_catalog.name) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_revoke(pg_catalog.name) FROM PUBLIC;
REVOKE ALL ON FUNCTION background_mgr.log_rows() FROM PUBLIC;
REVOKE ALL ON FUNCTION background_mgr.delete_job() FROM PUBLIC;
REVOKE ALL ON FUNCTION background_mgr.live(pg_catalog.bool, pg_catalog.bool) FROM PUBLIC;
REVOKE ALL ON FUNCTION background_mgr.spooled() FROM PUBLIC;
REVOKE ALL ON FUNCTION background_mgr.state(pg_catalog.uuid, pg_catalog.int8, pg_catalog.oid, pg_catalog.bool, pg_catalog.bool) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_launch_num(pg_catalog.text, pg_catalog.text, pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_launch_num(pg_catalog.text[], pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_launch_num(pg_catalog.jsonb, pg_catalog.bool, pg_catalog.text, pg_catalog.jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_monitor(pg_catalog.text, pg_catalog.bool, pg_catalog.interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_monitor(pg_catalog.uuid, pg_catalog.bool, pg_catalog.interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_stop(pg_catalog.text, pg_catalog.interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_stop(pg_catalog.uuid, pg_catalog.interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_retry(pg_catalog.text) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_retry(pg_catalog.uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_report_progress(pg_catalog.int4, pg_catalog.text) FROM PUBLIC;
REVOKE ALL ON FUNCTION pg_background_prune(pg_catalog.interval) FROM PUBLIC;

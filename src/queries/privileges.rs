//! Commands that give rights on what the extension consists of, or take them, and queries that return such commands.

/// Returns the command that lets a role use a schema. Names are quoted, here and below.
pub fn grant_usage(schema: &[u8], role: &[u8]) -> Vec<u8> {
    [b"GRANT USAGE ON SCHEMA ", schema, b" TO ", role].concat()
}

/// Returns the command that lets a role call functions: a list with commas.
pub fn grant_execute(functions: &[u8], role: &[u8]) -> Vec<u8> {
    [b"GRANT EXECUTE ON FUNCTION ", functions, b" TO ", role].concat()
}

/// Returns the command that lets a role read views: a list with commas.
pub fn grant_select(views: &[u8], role: &[u8]) -> Vec<u8> {
    [b"GRANT SELECT ON ", views, b" TO ", role].concat()
}

/// Returns the command that takes back [`grant_execute`].
pub fn revoke_execute(functions: &[u8], role: &[u8]) -> Vec<u8> {
    [b"REVOKE EXECUTE ON FUNCTION ", functions, b" FROM ", role].concat()
}

/// Returns the command that takes back [`grant_select`].
pub fn revoke_select(views: &[u8], role: &[u8]) -> Vec<u8> {
    [b"REVOKE SELECT ON ", views, b" FROM ", role].concat()
}

/// Returns a query for REVOKE commands: what others than the owners may do with the members of the extension.
pub fn of_others() -> String {
    members("")
}

/// Returns the same for the members in a schema, oid, and the schema itself.
pub fn of_others_in_schema(schema: u32) -> String {
    members(&format!("AND m.schema OPERATOR(pg_catalog.=) {schema}::pg_catalog.oid"))
}

/// Returns the same for one relation, oid.
pub fn of_others_on_relation(relation: u32) -> String {
    members(&format!(
        "AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND d.objid OPERATOR(pg_catalog.=) {relation}::pg_catalog.oid"
    ))
}

fn members(condition: &str) -> String {
    format!(
        "SELECT DISTINCT pg_catalog.concat('REVOKE ALL ON ', m.kind, ' ', m.name, ' FROM ', \
         CASE WHEN r.rolname IS NULL THEN 'PUBLIC'::pg_catalog.text \
             ELSE pg_catalog.quote_ident(r.rolname::pg_catalog.text) END, \
         ' CASCADE') \
     FROM pg_catalog.pg_extension AS e \
     JOIN pg_catalog.pg_depend AS d ON d.refobjid OPERATOR(pg_catalog.=) e.oid \
     JOIN (SELECT p.tableoid AS catalog, p.oid, 'ROUTINE'::pg_catalog.text AS kind, p.proowner AS owner, \
             pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, \
                 pg_catalog.pg_get_function_identity_arguments(p.oid)) AS name, \
             COALESCE(p.proacl, pg_catalog.acldefault('f'::pg_catalog.\"char\", p.proowner)) AS rights, \
             p.pronamespace AS schema \
         FROM pg_catalog.pg_proc AS p \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
         UNION ALL \
         SELECT c.tableoid, c.oid, CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'S'::pg_catalog.\"char\" \
                 THEN 'SEQUENCE'::pg_catalog.text ELSE 'TABLE'::pg_catalog.text END, c.relowner, \
             pg_catalog.format('%I.%I', n.nspname, c.relname), c.relacl, c.relnamespace \
         FROM pg_catalog.pg_class AS c \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         UNION ALL \
         SELECT n.tableoid, n.oid, 'SCHEMA'::pg_catalog.text, n.nspowner, \
             pg_catalog.quote_ident(n.nspname::pg_catalog.text), n.nspacl, n.oid \
         FROM pg_catalog.pg_namespace AS n) AS m \
         ON m.oid OPERATOR(pg_catalog.=) d.objid AND m.catalog OPERATOR(pg_catalog.=) d.classid \
     JOIN LATERAL pg_catalog.aclexplode(m.rights) AS a ON a.grantee OPERATOR(pg_catalog.<>) m.owner \
     LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) a.grantee \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_background_mgr'::pg_catalog.name \
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
     AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\" {condition}"
    )
}

/// Returns a query for GRANT commands that give others for one relation what they may do with another one, oids: read
/// it, delete from it, and read columns that both have.
pub fn of_relation(source: u32, target: u32) -> String {
    grants(&format!(
        "SELECT c.relacl AS rights, c.relowner AS owner, NULL::pg_catalog.text AS column_name, \
             pg_catalog.format('TABLE %I.%I', n.nspname, t.relname) AS target \
         FROM pg_catalog.pg_class AS c, pg_catalog.pg_class AS t \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace \
         WHERE c.oid OPERATOR(pg_catalog.=) {source}::pg_catalog.oid \
         AND t.oid OPERATOR(pg_catalog.=) {target}::pg_catalog.oid \
         UNION ALL \
         SELECT a.attacl, c.relowner, pg_catalog.quote_ident(a.attname::pg_catalog.text), \
             pg_catalog.format('TABLE %I.%I', n.nspname, t.relname) \
         FROM pg_catalog.pg_class AS c \
         JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
         JOIN pg_catalog.pg_attribute AS b ON b.attname OPERATOR(pg_catalog.=) a.attname \
         JOIN pg_catalog.pg_class AS t ON t.oid OPERATOR(pg_catalog.=) b.attrelid \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.relnamespace \
         WHERE c.oid OPERATOR(pg_catalog.=) {source}::pg_catalog.oid \
         AND t.oid OPERATOR(pg_catalog.=) {target}::pg_catalog.oid"
    ))
}

/// Returns the same for a function: call it.
pub fn of_function(source: u32, target: u32) -> String {
    grants(&format!(
        "SELECT p.proacl AS rights, p.proowner AS owner, NULL::pg_catalog.text AS column_name, \
             pg_catalog.format('FUNCTION %I.%I(%s)', n.nspname, t.proname, \
                 pg_catalog.pg_get_function_identity_arguments(t.oid)) AS target \
         FROM pg_catalog.pg_proc AS p, pg_catalog.pg_proc AS t \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) t.pronamespace \
         WHERE p.oid OPERATOR(pg_catalog.=) {source}::pg_catalog.oid \
         AND t.oid OPERATOR(pg_catalog.=) {target}::pg_catalog.oid"
    ))
}

fn grants(objects: &str) -> String {
    format!(
        "SELECT pg_catalog.concat('GRANT ', a.privilege_type, \
             CASE WHEN o.column_name IS NOT NULL THEN pg_catalog.concat(' (', o.column_name, ')') END, \
             ' ON ', o.target, ' TO ', \
             CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'::pg_catalog.text \
                 ELSE pg_catalog.quote_ident(r.rolname::pg_catalog.text) END, \
             CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION'::pg_catalog.text END) \
         FROM ({objects}) AS o \
         JOIN LATERAL pg_catalog.aclexplode(o.rights) AS a ON a.grantee OPERATOR(pg_catalog.<>) o.owner \
         LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) a.grantee \
         WHERE (r.rolname IS NOT NULL OR a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid) \
         AND a.privilege_type OPERATOR(pg_catalog.=) ANY ('{{SELECT,DELETE,EXECUTE}}'::pg_catalog.text[]) \
         AND (o.column_name IS NULL OR a.privilege_type OPERATOR(pg_catalog.=) 'SELECT'::pg_catalog.text)"
    )
}

//! The functions and views of the extension, as the catalogs have them.

use pg_background_mgr_tests::{literal, Session};

/// A function or a procedure.
#[derive(Debug, Clone)]
pub struct Function {
    /// Name with its schema.
    pub name: String,
    pub is_procedure: bool,
    /// Gives rows that have no columns of their own: a call names them.
    pub is_record: bool,
    /// The types of its arguments.
    pub types: Vec<String>,
    /// Count of the arguments that may be left out.
    pub defaults: usize,
}

impl Function {
    /// A call with these arguments, SQL expressions of its types.
    pub fn call(&self, arguments: &[String]) -> String {
        format!("{}({})", self.name, arguments.join(", "))
    }

    /// A statement that calls it with these arguments.
    pub fn statement(&self, arguments: &[String]) -> String {
        let call = self.call(arguments);
        match (self.is_procedure, self.is_record) {
            (true, _) => format!("call {call}"),
            (false, true) => format!("select * from {call} as (a text)"),
            (false, false) => format!("select * from {call}"),
        }
    }

    /// The arguments that may not be left out, or one: texts are `text`, uuids are `uuid`, integers are `pid`.
    pub fn least_arguments(&self, text: &str, uuid: &str, pid: i32) -> Vec<String> {
        let least = (self.types.len() - self.defaults).max(self.types.len().min(1));
        let value = |kind: &String| match kind.as_str() {
            "text" | "name" => format!("{}::{kind}", literal(text)),
            "uuid" => format!("'{uuid}'::uuid"),
            "uuid[]" => format!("array['{uuid}'::uuid]"),
            "boolean" => "false".to_owned(),
            "integer" | "bigint" | "\"any\"" => pid.to_string(),
            "oid" => "1::oid".to_owned(),
            "interval" => "'0'::interval".to_owned(),
            "text[]" => format!("array[{}]", literal(text)),
            "jsonb" => format!("jsonb_build_array({}::text)", literal(text)),
            other => format!("null::{other}"),
        };
        self.types[..least].iter().map(value).collect()
    }
}

/// The members of the extension in a catalog, by its name.
pub fn members(catalog: &str) -> String {
    format!(
        "pg_depend d join {catalog} m on d.classid = '{catalog}'::regclass and d.objid = m.oid \
         and d.deptype = 'e' and d.refclassid = 'pg_extension'::regclass \
         and d.refobjid = (select oid from pg_extension where extname = 'pg_background_mgr')"
    )
}

/// Returns all functions that the session's role may call.
#[track_caller]
pub fn functions(session: &mut Session) -> Vec<Function> {
    let rows = session.rows(&format!(
        "select format('%I.%I', n.nspname, m.proname), m.prokind = 'p', \
         m.prorettype = 'record'::regtype and m.proallargtypes is null and m.prokind = 'f', m.pronargdefaults, \
         array_to_string(array(select format_type(t, null) from unnest(m.proargtypes) with ordinality as u (t, i) \
         order by i), ';') from {} join pg_namespace n on n.oid = m.pronamespace \
         where has_function_privilege(m.oid, 'execute') and has_schema_privilege(n.oid, 'usage') order by m.oid",
        members("pg_proc")
    ));
    let function = |row: &String| {
        let parts: Vec<&str> = row.split('|').collect();
        let [name, is_procedure, is_record, defaults, types] = parts[..] else { panic!("five columns: {row}") };
        Function {
            name: name.to_owned(),
            is_procedure: is_procedure == "t",
            is_record: is_record == "t",
            types: types.split(';').filter(|kind| !kind.is_empty()).map(str::to_owned).collect(),
            defaults: defaults.parse().expect("a number"),
        }
    };
    let found: Vec<Function> = rows.iter().map(function).collect();
    assert!(found.len() > 10, "the functions of the extension: {found:?}");
    found
}

/// Returns all relations that the session's role may read, with their schemas.
#[track_caller]
pub fn relations(session: &mut Session) -> Vec<String> {
    let found = session.rows(&format!(
        "select format('%I.%I', n.nspname, m.relname) from {} join pg_namespace n on n.oid = m.relnamespace \
         where m.relkind in ('r', 'v', 'm', 'S') and has_table_privilege(m.oid, 'select') \
         and has_schema_privilege(n.oid, 'usage') order by m.oid",
        members("pg_class")
    ));
    assert!(found.len() > 1, "the views of the extension: {found:?}");
    found
}

//! The entry point of a SQL-callable function.

/// Defines the symbols that `CREATE FUNCTION … LANGUAGE c` looks for. `$body` is a
/// `fn(&Call) -> Result<Value, Error>`; it does not run where a setting of the extension was refused.
macro_rules! sql_function {
    ($name:ident, $finfo:ident, $body:path) => {
        #[doc(hidden)]
        #[no_mangle]
        pub extern "C" fn $finfo() -> &'static pgrx::pg_sys::Pg_finfo_record {
            static INFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }
        #[doc(hidden)]
        #[no_mangle]
        pub extern "C-unwind" fn $name(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            $crate::ffi::fmgr::call(fcinfo, |call| {
                $crate::guc::check()?;
                $body(call)
            })
        }
    };
}
pub(crate) use sql_function;

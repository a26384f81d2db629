//! The request of a session to a worker.

use crate::ids::{DatabaseId, RoleId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest text of a job in bytes. It lies in shared memory until the job ends, so it is bounded.
pub const MAX_SQL_BYTES: usize = 64 * 1024 * 1024;

/// Largest result queue in bytes. What does not fit is kept by the worker, so more buys nothing.
pub const MAX_QUEUE_BYTES: usize = 256 * 1024 * 1024;

/// Maximum number of running jobs that have launched each other. Each of them holds a worker, and servers have few.
pub const MAX_NESTING: usize = 16;

/// Packs a five character SQLSTATE as the server's `MAKE_SQLSTATE` does (elog.h): six bits a character.
pub const fn sqlstate(code: &[u8; 5]) -> i32 {
    let mut packed = 0;
    let mut i = 0;
    while i < 5 {
        packed |= ((code[i] as i32 - b'0' as i32) & 0x3F) << (6 * i);
        i += 1;
    }
    packed
}

/// Returns the five characters of a packed SQLSTATE (elog.c, `unpack_sql_state`).
pub fn sqlstate_text(packed: i32) -> Vec<u8> {
    (0..5).map(|location| ((packed >> (6 * location)) & 0x3F) as u8 + b'0').collect()
}

/// Tells who runs the job, where, and with which settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Database to connect to.
    pub database: DatabaseId,
    /// Role to log in as.
    pub login: RoleId,
    /// `SET ROLE` of the launcher.
    pub role: Option<RoleId>,
    /// The launcher had the rights of another role than its session (SECURITY DEFINER): the job must not set a role.
    pub is_confined: bool,
    /// The jobs that ran above this one when it was launched: the keys of their locks. Empty = launched by a client.
    pub ancestors: Vec<u64>,
    /// Settings of the launcher's session, in the order in which they are applied.
    pub settings: Vec<Setting>,
    /// Time when the launcher's session read the configuration last.
    pub configured: Timestamp,
    /// Libraries that own some of the settings: the server's own serialized list (dfmgr.c, `SerializeLibraryState`).
    pub libraries: Option<Vec<u8>>,
}

/// One setting that the launcher's session, or its client when it connected, made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
    /// `GucSource`
    pub source: i32,
    /// `GucContext` in which it was made
    pub context: i32,
    /// Role that made it. Servers before 15 do not know.
    pub role: RoleId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_is_packed_as_the_server_does() {
        // ERRCODE_SUCCESSFUL_COMPLETION and ERRCODE_DIVISION_BY_ZERO as the server's headers give them.
        assert_eq!(sqlstate(b"00000"), 0);
        assert_eq!(sqlstate(b"22012"), 33816706);
        assert_eq!(sqlstate_text(sqlstate(b"40P01")), b"40P01");
    }

    #[test]
    fn request_comes_back() {
        let request = Request {
            database: DatabaseId::of_oid(5),
            login: RoleId::of_oid(10),
            role: Some(RoleId::of_oid(16384)),
            is_confined: true,
            ancestors: vec![1, u64::MAX],
            settings: vec![Setting {
                name: b"work_mem".to_vec(),
                value: b"9MB".to_vec(),
                source: 13,
                context: 6,
                role: RoleId::of_oid(10),
            }],
            configured: Timestamp::of_micros(1_000_000),
            libraries: Some(b"$libdir/auto_explain\0\0".to_vec()),
        };
        assert_eq!(super::super::decode(&super::super::to_bytes(&request)), Ok(request));
    }
}

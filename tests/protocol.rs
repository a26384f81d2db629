//! Runs the unit tests of `src/protocol`, `src/sql_split`, `src/ids.rs` and `src/time.rs`, which need no server, and
//! checks properties of messages.

#[path = "../src/ids.rs"]
#[allow(dead_code, reason = "only its tests run here, and `protocol` needs a part of it")]
mod ids;
#[path = "../src/protocol/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only its tests run here")]
mod protocol;
#[path = "../src/sql_split/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only its tests run here")]
mod sql_split;
#[path = "../src/time.rs"]
#[allow(dead_code, reason = "only its tests run here, and `protocol` needs a part of it")]
mod time;

use proptest::prelude::*;
use protocol::{
    aligned, decode, encode, frame, split, Column, ColumnEncoding, Description, Done, Kind, Report, Request, RowsIter,
};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

fn optional_bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(bytes())
}

prop_compose! {
    fn report()(level in any::<i32>(), sqlstate in any::<i32>(), message in bytes(), detail in optional_bytes(),
                hint in optional_bytes(), context in optional_bytes(), constraint in optional_bytes(),
                position in any::<i32>(), internal_query in optional_bytes()) -> Report {
        let rest = Report::default();
        Report { level, sqlstate, message, detail, hint, context, constraint, position, internal_query, ..rest }
    }
}

prop_compose! {
    fn column()(name in bytes(), type_oid in any::<u32>(), typmod in any::<i32>(), fingerprint in any::<u64>(),
                wire in prop::sample::select(vec![
                    ColumnEncoding::Binary, ColumnEncoding::Text, ColumnEncoding::Both,
                ])) -> Column {
        Column { name, type_oid, typmod, wire, fingerprint }
    }
}

proptest! {
    #[test]
    fn a_report_comes_back(report in report()) {
        let frame = encode(Kind::Error, &report);
        let (kind, payload) = split(&frame).unwrap();
        prop_assert_eq!(kind, Kind::Error);
        prop_assert_eq!(decode::<Report>(payload), Ok(report));
    }

    #[test]
    fn a_description_comes_back(columns in prop::collection::vec(column(), 0..20)) {
        let description = Description { columns };
        let frame = encode(Kind::Describe, &description);
        prop_assert_eq!(decode::<Description>(split(&frame).unwrap().1), Ok(description));
    }

    #[test]
    fn rows_come_back(rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 0..20)) {
        let mut written = frame(Kind::Rows);
        let mut expected = Vec::new();
        for row in rows {
            let mut tuple = (row.len() as u32 + 4).to_ne_bytes().to_vec();
            tuple.extend_from_slice(&row);
            written.extend_from_slice(&tuple);
            written.resize(aligned(written.len()), 0);
            expected.push(tuple);
        }
        let iter = RowsIter::new(split(&written).unwrap().1);
        let read: Result<Vec<_>, _> = iter.map(|row| row.map(<[u8]>::to_vec)).collect();
        prop_assert_eq!(read, Ok(expected));
    }

    #[test]
    fn no_bytes_make_the_decoder_fall_over(noise in bytes()) {
        let _ = split(&noise);
        let _ = decode::<Report>(&noise);
        let _ = decode::<Request>(&noise);
        let _ = decode::<Description>(&noise);
        let _ = decode::<Done>(&noise);
        // Each step takes something off or ends, so this ends.
        prop_assert!(RowsIter::new(&noise).count() <= noise.len() / 8 + 1);
    }
}

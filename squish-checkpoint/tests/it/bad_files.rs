//! Files that lie: each fault has its own error, and no bytes make the parser panic.

use proptest::prelude::*;
use squish_checkpoint::{Dtype, Error, Limits, SafeTensors};

use crate::files::{entry, file, small_file};
use crate::walk::walk;

/// The error of a file with these entries and so many bytes of data.
fn refusal(entries: &[String], n_data: usize) -> Error {
    SafeTensors::parse(&file(&format!("{{{}}}", entries.join(",")), &vec![0; n_data])).unwrap_err()
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = $error;
        assert!(matches!(error.root(), $pattern $(if $guard)?), "{error:?}");
    };
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small_file();
    assert_eq!(SafeTensors::parse(&whole).unwrap().len(), 5);
    for len in 0..whole.len() {
        let error = SafeTensors::parse(&whole[..len]).unwrap_err();
        let data_start = whole.len() - 26;
        match error {
            Error::TooShort { len: actual } => assert!(len < 8 && actual == len as u64, "{len}"),
            Error::HeaderPastEnd { file, .. } => {
                assert!((8..data_start).contains(&len) && file == len as u64, "{len}");
            }
            Error::PastEnd { end, len: data, .. } => {
                assert!(
                    len >= data_start && data == (len - data_start) as u64 && end > data,
                    "{len}"
                );
            }
            other => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn trailing_bytes_are_an_error() {
    let mut longer = small_file();
    longer.push(0);
    assert_error!(
        SafeTensors::parse(&longer).unwrap_err(),
        Error::Trailing { covered: 26, len: 27 }
    );
}

#[test]
fn no_single_bit_flip_panics_or_disagrees_with_the_official_reader() {
    let whole = small_file();
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        walk(&flipped);
    }
}

#[test]
fn headers_that_one_reader_alone_accepts_differ_in_the_documented_ways() {
    let fields = r#""dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    // Fields that neither knows: skipped here, parsed there.
    for unknown in ["1e400", "\"\\ud800\"", &deep] {
        let file = file(&format!(r#"{{"a":{{{fields},"note":{unknown}}}}}"#), &[7]);
        assert!(safetensors::SafeTensors::deserialize(&file).is_err(), "{unknown}");
        assert!(walk(&file), "{unknown}");
    }
    for header in [
        r#"{"a":["U8",[1],[0,1]]}"#.to_owned(),
        r#"{"a":{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
        format!(r#"{{"a":["U8",[1],[0,1]],"a":{{{fields}}}}}"#),
        format!(r#"{{"a":{{{fields}}},"a":{{{fields}}}}}"#),
    ] {
        let file = file(&header, &[7]);
        assert!(safetensors::SafeTensors::deserialize(&file).is_ok(), "{header}");
        assert!(!walk(&file), "{header}");
    }
    // What is no UTF-8 is refused by both, even in a field that is skipped.
    let mut bytes = file(&format!(r#"{{"a":{{{fields},"note":"?"}}}}"#), &[7]);
    assert!(walk(&bytes));
    let at = bytes.iter().position(|&byte| byte == b'?').unwrap();
    bytes[at] = 0xff;
    assert!(!walk(&bytes));
}

#[test]
fn no_mutated_file_panics_or_disagrees_with_the_official_reader() {
    // The corpus is that of a fixed generator: cut, doubled and overwritten pieces of a valid file.
    let words: [&[u8]; 12] = [
        b"18446744073709551615",
        b"9223372036854775808",
        b"-1",
        b"0",
        b"{",
        b"]",
        b"null",
        b"\"F4\"",
        b"[[[[",
        b"\xff\xfe",
        b"\"dtype\":\"F6_E2M3\"",
        b"1e400",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % bound
    };
    let whole = small_file();
    let mut n_accepted = 0;
    for _ in 0..30_000 {
        let mut json = whole[8..whole.len() - 26].to_vec();
        for _ in 0..=next(4) {
            let (start, len) = (next(json.len()), next(12));
            let end = (start + len).min(json.len());
            match next(3) {
                0 => drop(json.drain(start..end)),
                1 => drop(json.splice(start..end, words[next(words.len())].iter().copied())),
                _ => {
                    let piece = json[start..end].to_vec();
                    let to = next(json.len());
                    json.splice(to..to, piece);
                }
            }
            json.push(b' ');
        }
        let mut mutated = (json.len() as u64).to_le_bytes().to_vec();
        mutated.extend(json);
        mutated.extend(0..26);
        n_accepted += usize::from(walk(&mutated));
    }
    // Else the corpus would say nothing about what comes out.
    assert!((100..20_000).contains(&n_accepted), "{n_accepted}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        walk(&bytes);
        walk(&file(&String::from_utf8_lossy(&bytes), &bytes));
    }
}

#[test]
fn a_header_above_the_limit_is_refused_before_it_is_looked_for() {
    for n in [100_000_001, u64::MAX, 1 << 63] {
        let error = SafeTensors::parse(&n.to_le_bytes()).unwrap_err();
        assert_error!(error, Error::Limit { what: "bytes of header", actual, max: 100_000_000 } if *actual == n);
    }
    let unlimited = Limits { header_bytes: u64::MAX, ..Limits::default() };
    for n in [1, u64::MAX] {
        let error = SafeTensors::parse_with(&n.to_le_bytes(), &unlimited).unwrap_err();
        assert_error!(error, Error::HeaderPastEnd { header, file: 8 } if *header == n);
    }
}

#[test]
fn limits_refuse_one_more_and_accept_their_number() {
    let whole = small_file();
    let default = Limits::default();
    let cases = [
        (Limits { tensors: 5, ..default }, Limits { tensors: 4, ..default }, "tensors"),
        (Limits { rank: 2, ..default }, Limits { rank: 1, ..default }, "dimensions of a tensor"),
        (
            Limits { name_bytes: 6, ..default },
            Limits { name_bytes: 5, ..default },
            "bytes of a tensor's name",
        ),
        (default, Limits { tensors: 0, ..default }, "entries of metadata"),
    ];
    for (enough, too_few, expected) in cases {
        SafeTensors::parse_with(&whole, &enough).unwrap();
        let error = SafeTensors::parse_with(&whole, &too_few).unwrap_err();
        assert_error!(error, Error::Limit { what, actual, max } if *what == expected && *actual == max + 1);
    }
}

#[test]
fn what_is_no_header_is_a_json_error() {
    for json in
        ["", "null", "[]", "{", "{}}", "{\"a\":1}", "{\"a\":[\"U8\",[1],[0,1]]}", "\u{feff}{}"]
    {
        let error = SafeTensors::parse(&file(json, &[])).unwrap_err();
        assert_error!(error, Error::Json { what: "header", reason } if !reason.is_empty());
    }
    let fields = r#""dtype":"U8","shape":[1],"data_offsets":[0,1]"#;
    SafeTensors::parse(&file(&format!("{{\"a\":{{{fields}}}}}"), &[0])).unwrap();
    for (from, to) in [
        (r#""dtype":"U8","#, ""),
        (r#""shape":[1],"#, ""),
        (r#","data_offsets":[0,1]"#, ""),
        ("[1]", "[1.0]"),
        ("[1]", "[-1]"),
        ("[1]", "1"),
        ("[0,1]", "[0,1,2]"),
        ("[0,1]", "[0]"),
        ("[0,1]", "[0,18446744073709551616]"),
        ("\"U8\"", "8"),
    ] {
        let json = format!("{{\"a\":{{{}}}}}", fields.replacen(from, to, 1));
        assert_error!(
            SafeTensors::parse(&file(&json, &[0])).unwrap_err(),
            Error::Json { what: "header", .. }
        );
    }
    for json in [r#"{"__metadata__":{"a":1}}"#, r#"{"__metadata__":"a"}"#, "{\"\u{0}\":{}}"] {
        assert_error!(SafeTensors::parse(&file(json, &[])).unwrap_err(), Error::Json { .. });
    }
    let mut not_utf8 = file("{\"a\":{}}", &[]);
    not_utf8[10] = 0xff;
    assert_error!(SafeTensors::parse(&not_utf8).unwrap_err(), Error::Json { .. });
}

#[test]
fn a_name_that_occurs_twice_is_an_error() {
    let twice =
        [entry("a", "U8", &[1], 0, 1), entry("b", "U8", &[1], 1, 2), entry("a", "U8", &[1], 2, 3)];
    assert_error!(refusal(&twice, 3), Error::DuplicateKey { key } if key == "a");
    let metadata = r#""__metadata__":{"k":"1"}"#.to_owned();
    assert_error!(refusal(&[metadata.clone(), metadata], 0), Error::DuplicateKey { key } if key == "__metadata__");
    let keys = r#""__metadata__":{"k":"1","k":"1"}"#.to_owned();
    assert_error!(refusal(&[keys], 0), Error::DuplicateKey { key } if key == "k");
    let fields = r#""a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}"#.to_owned();
    assert_error!(refusal(&[fields], 1), Error::DuplicateKey { key } if key == "dtype");
}

#[test]
fn unknown_dtypes_are_named() {
    let error = refusal(&[entry("a", "F7", &[1], 0, 1)], 1);
    assert_error!(error, Error::UnknownDtype { tensor, dtype } if tensor == "a" && dtype == "F7");
}

#[test]
fn sizes_that_overflow_are_an_error() {
    for shape in [&[usize::MAX, 2][..], &[usize::MAX / 16], &[1 << 32, 1 << 32, 0]] {
        let error = refusal(&[entry("a", "F64", shape, 0, 8)], 8);
        assert_error!(error, Error::Overflow { tensor, dtype: Dtype::F64, shape: actual } if tensor == "a" && actual == shape);
    }
}

#[test]
fn elements_that_end_inside_a_byte_are_an_error() {
    for (dtype, shape, n, width) in [
        ("F4", &[3][..], 3, 4),
        ("F4", &[3, 3], 9, 4),
        ("F4", &[], 1, 4),
        ("F6_E2M3", &[2], 2, 6),
        ("F6_E3M2", &[6], 6, 6),
    ] {
        let error = refusal(&[entry("a", dtype, shape, 0, 2)], 2);
        assert_error!(error, Error::PartialByte { n_elements, bits, .. } if (*n_elements, *bits) == (n, width));
    }
    for (dtype, shape, bytes) in
        [("F4", &[3, 2][..], 3), ("F6_E2M3", &[4], 3), ("F6_E3M2", &[2, 2], 3), ("F4", &[0], 0)]
    {
        let json = format!("{{{}}}", entry("a", dtype, shape, 0, bytes));
        SafeTensors::parse(&file(&json, &vec![0; bytes as usize])).unwrap();
    }
}

#[test]
fn lying_offsets_are_errors_with_their_numbers() {
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 4, 0)], 4),
        Error::Reversed { start: 4, end: 0, .. }
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 3)], 3),
        Error::ByteCount { dtype: Dtype::U8, expected: 4, actual: 3, shape, .. } if shape == &[4]
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 4), entry("b", "U8", &[4], 3, 7)], 8),
        Error::Overlap { tensor, start: 3, other, end: 4 } if tensor == "b" && other == "a"
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 4), entry("b", "U8", &[4], 0, 4)], 8),
        Error::Overlap { tensor, start: 0, other, end: 4 } if tensor == "b" && other == "a"
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 4), entry("b", "U8", &[3], 5, 8)], 8),
        Error::Gap { tensor, start: 5, expected: 4 } if tensor == "b"
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 1, 5)], 5),
        Error::Gap { start: 1, expected: 0, .. }
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 4)], 3),
        Error::PastEnd { end: 4, len: 3, .. }
    );
    assert_error!(
        refusal(&[entry("a", "U8", &[4], 0, 4)], 5),
        Error::Trailing { covered: 4, len: 5 }
    );
    assert_error!(refusal(&[], 5), Error::Trailing { covered: 0, len: 5 });
    let near_the_end = [entry("a", "U8", &[1], u64::MAX - 1, u64::MAX)];
    assert_error!(refusal(&near_the_end, 1), Error::Gap { expected: 0, .. });
}

#[test]
fn messages_say_the_numbers() {
    let messages = [
        refusal(&[entry("w", "BF16", &[4, 2], 0, 12)], 12),
        refusal(&[entry("a", "U8", &[4], 0, 4), entry("b", "U8", &[4], 3, 7)], 8),
        refusal(&[entry("w", "F4", &[3], 0, 2)], 2),
        SafeTensors::parse(&[1, 2, 3]).unwrap_err(),
    ]
    .map(|error| error.to_string());
    assert_eq!(
        messages,
        [
            "`w` has 12 bytes, BF16 [4, 2] needs 16",
            "data of `b` starts at 3, inside of `a` that ends at 4",
            "`w` has 3 elements of 4 bits, which do not fill whole bytes",
            "file has 3 bytes, fewer than the 8 of the header's length",
        ]
    );
}

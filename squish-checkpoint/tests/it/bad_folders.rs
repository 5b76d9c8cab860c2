//! Folders whose files do not fit together.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use squish_checkpoint::{Checkpoint, Error, Limits, Options, Source};
use tempfile::tempdir;

use crate::files::{entry, file, small_file, three_shards};
use crate::walk_index::{walk_index, write_three_shards};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";

/// The error of opening a folder, the same with both sources.
fn refusal(folder: &Path) -> Error {
    let mapped = Checkpoint::open(folder).unwrap_err();
    let read =
        Checkpoint::open_with(folder, Options { source: Source::Read, ..Options::default() })
            .unwrap_err();
    assert_eq!(mapped.to_string(), read.to_string());
    mapped
}

fn replace_in_index(folder: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(folder.join(INDEX)).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(folder.join(INDEX), text.replacen(from, to, 1)).unwrap();
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = $error;
        assert!(matches!(error.root(), $pattern $(if $guard)?), "{error:?}");
    };
}

#[test]
fn a_path_to_nothing_is_an_error() {
    let folder = tempdir().unwrap();
    assert_error!(refusal(folder.path()), Error::NoCheckpoint { path } if path == folder.path());
    assert_error!(refusal(&folder.path().join("none")), Error::Io { action: "open", .. });
    assert_error!(
        refusal(&folder.path().join("x.safetensors.index.json")),
        Error::Io { action: "open", .. }
    );
}

#[test]
fn a_bad_file_is_named() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for bytes in
        [Vec::new(), vec![1, 2, 3], small_file()[..40].to_vec(), [small_file(), vec![0]].concat()]
    {
        fs::write(&path, &bytes).unwrap();
        let error = refusal(folder.path());
        assert!(matches!(&error, Error::InFile { path: named, .. } if *named == path), "{error:?}");
        assert!(error.to_string().starts_with(&format!("`{}`: ", path.display())), "{error}");
        assert_error!(
            error,
            Error::TooShort { .. } | Error::HeaderPastEnd { .. } | Error::Trailing { .. }
        );
    }
}

#[test]
fn a_missing_shard_is_named_with_a_tensor_of_it() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    fs::remove_file(folder.path().join(SECOND)).unwrap();
    let error = refusal(folder.path());
    assert!(error.to_string().contains(INDEX), "{error}");
    assert_error!(error, Error::MissingShard { shard, tensor } if shard == SECOND && tensor == "y");
}

#[test]
fn a_tensor_that_its_shard_lacks_is_an_error() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    replace_in_index(folder.path(), "\"x\": ", &format!("\"other\": {FIRST:?}, \"x\": "));
    assert_error!(refusal(folder.path()), Error::NotInShard { tensor, shard } if tensor == "other" && shard == FIRST);
}

#[test]
fn a_tensor_that_the_index_lacks_or_misplaces_is_an_error() {
    for (from, to) in [("\"x\": ", "\"other\": "), (FIRST, SECOND)] {
        let folder = tempdir().unwrap();
        three_shards(folder.path());
        // The second shard's entry moves to the first file, or the first's has another name.
        match from {
            FIRST => replace_in_index(
                folder.path(),
                &format!("\"y\": {SECOND:?}"),
                &format!("\"y\": {FIRST:?}, \"q\": {SECOND:?}"),
            ),
            _ => replace_in_index(folder.path(), from, to),
        }
        let expected = if from == FIRST { ("y", SECOND) } else { ("x", FIRST) };
        assert_error!(refusal(folder.path()), Error::NotInIndex { tensor, shard } if (tensor.as_str(), shard.as_str()) == expected);
    }
}

#[test]
fn a_tensor_in_two_shards_is_an_error() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    let twice = file(
        &format!("{{{},{}}}", entry("x", "U8", &[1], 0, 1), entry("y", "U8", &[1], 1, 2)),
        &[0; 2],
    );
    fs::write(folder.path().join(SECOND), twice).unwrap();
    assert_error!(
        refusal(folder.path()),
        Error::DuplicateTensor { tensor, first, second } if tensor == "x" && first == FIRST && second == SECOND
    );
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let names = [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\\\\b",
        "C:model",
        "a\\u0000",
    ];
    for name in names {
        let folder = tempdir().unwrap();
        three_shards(folder.path());
        replace_in_index(folder.path(), FIRST, name);
        assert_error!(refusal(folder.path()), Error::FileName { name: refused } if refused.len() <= name.len());
    }
}

#[test]
fn an_index_of_another_form_is_an_error() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"weight_map":null}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":[]}"#,
        "{\"weight_map\":{}",
    ] {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join(INDEX), text).unwrap();
        assert_error!(refusal(folder.path()), Error::Json { what: "index", .. });
    }
    for text in [r#"{"weight_map":{"a":"b","a":"b"}}"#, r#"{"weight_map":{},"weight_map":{}}"#] {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join(INDEX), text).unwrap();
        assert_error!(refusal(folder.path()), Error::DuplicateKey { .. });
    }
}

#[test]
fn limits_hold_for_an_index_and_over_all_shards() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    let len = fs::metadata(folder.path().join(INDEX)).unwrap().len();
    let default = Limits::default();
    let open =
        |limits| Checkpoint::open_with(folder.path(), Options { limits, ..Options::default() });
    open(Limits { index_bytes: len, tensors: 3, name_bytes: 1, ..default }).unwrap();
    for (limits, expected) in [
        (Limits { index_bytes: len - 1, ..default }, "bytes of index"),
        (Limits { tensors: 2, ..default }, "tensors"),
        (Limits { name_bytes: 0, ..default }, "bytes of a tensor's name"),
    ] {
        assert_error!(open(limits).unwrap_err(), Error::Limit { what, .. } if *what == expected);
    }
    // The index is short and the shards are not.
    let two = file(
        &format!("{{{},{}}}", entry("x", "U8", &[1], 0, 1), entry("q", "U8", &[1], 1, 2)),
        &[0; 2],
    );
    fs::write(folder.path().join(FIRST), two).unwrap();
    assert_error!(
        open(Limits { tensors: 3, ..default }).unwrap_err(),
        Error::Limit { what: "tensors", actual: 4, max: 3 }
    );
}

#[test]
fn a_file_name_of_any_length_gives_a_message_that_can_be_shown() {
    let folder = tempdir().unwrap();
    let index = String::from_utf8(write_three_shards(folder.path())).unwrap();
    assert!(walk_index(folder.path(), index.as_bytes()));
    for n in [255, 4096, 4097, 1 << 20] {
        let long = index.replacen(FIRST, &"x".repeat(n), 1);
        assert!(!walk_index(folder.path(), long.as_bytes()), "{n}");
    }
}

#[test]
fn no_truncated_index_panics() {
    let folder = tempdir().unwrap();
    let index = write_three_shards(folder.path());
    for len in 0..index.len() - 2 {
        assert!(!walk_index(folder.path(), &index[..len]), "{len}");
    }
}

#[test]
fn no_changed_index_panics_or_leaves_the_folder() {
    let folder = tempdir().unwrap();
    let index = write_three_shards(folder.path());
    let words: [&[u8]; 8] =
        [b"../", b"\"", b"{", b"null", b"\xff", b"\"a\": ", b"model-00002", b"}"];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), 0..words.len()), 1..5);
    // One folder for all cases: making shards takes longer than reading an index.
    TestRunner::new(ProptestConfig::with_cases(1000))
        .run(&changes, |changes| {
            let mut index = index.clone();
            for (at, word) in changes {
                let at = at.index(index.len());
                let end = (at + words[word].len()).min(index.len());
                index.splice(at..end, words[word].iter().copied());
            }
            walk_index(folder.path(), &index);
            Ok(())
        })
        .unwrap();
}

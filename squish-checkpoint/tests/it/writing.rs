//! What is written, and what is left when it is not.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use squish_checkpoint::{
    Alignment, Checkpoint, CheckpointWriter, Dtype, Error, Options, Source, TensorInfo, TensorSpec,
    WriterOptions,
};
use tempfile::tempdir;

use crate::files::{bytes_of, listing, three, write};

/// Up to 12 tensors of any type, of whole bytes, some of them empty.
fn specs() -> impl Strategy<Value = Vec<TensorSpec>> {
    let tensor = (0..Dtype::ALL.len(), prop::collection::vec(0usize..5, 0..4));
    prop::collection::vec(tensor, 0..12).prop_map(|tensors| {
        let specs = tensors.into_iter().enumerate().map(|(i, (dtype, mut shape))| {
            let dtype = Dtype::ALL[dtype];
            if dtype.bits() < 8 {
                shape.push(4);
            }
            TensorSpec::new(format!("t{}.{i}", i * 7 % 5), dtype, shape)
        });
        specs.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_back(specs in specs(), max_shard_bytes in 0u64..200, source in 0usize..2) {
        let folder = tempdir().unwrap();
        let options = WriterOptions { max_shard_bytes, ..WriterOptions::default() };
        write(folder.path(), &specs, &options).unwrap();

        let source = [Source::Map, Source::Read][source];
        let checkpoint = Checkpoint::open_with(folder.path(), Options { source, ..Options::default() }).unwrap();
        prop_assert_eq!(checkpoint.len(), specs.len());
        prop_assert_eq!(checkpoint.metadata(), &options.metadata);
        for spec in &specs {
            let view = checkpoint.tensor(&spec.name).unwrap();
            prop_assert_eq!(&TensorSpec::from(view.info()), spec);
            prop_assert_eq!(view.bytes(), bytes_of(spec));
            prop_assert_eq!(view.info().file_offset() % spec.dtype.alignment() as u64, 0);
        }
        for (shard_idx, path) in checkpoint.paths().iter().enumerate() {
            let sizes: Vec<_> = checkpoint.iter().filter(|info| info.shard() == shard_idx).map(TensorInfo::n_bytes).collect();
            let total = sizes.iter().sum::<usize>() as u64;
            let n_filled = sizes.iter().filter(|&&size| size > 0).count();
            prop_assert!(total <= max_shard_bytes || n_filled == 1, "{}: {sizes:?}", path.display());
        }
        prop_assert!(!listing(folder.path()).iter().any(|name| name.ends_with(".partial")));
    }

    #[test]
    fn whole_lines_start_at_one(specs in specs(), lines in prop::collection::vec(0usize..4, 0..4), max_shard_bytes in 0u64..900) {
        let folder = tempdir().unwrap();
        let mut specs = specs;
        // Among others of all sizes, and before them in the order of types.
        specs.extend(lines.into_iter().enumerate().map(|(i, n)| TensorSpec::new(format!("lines{i}"), Dtype::U8, [64 * n])));
        let options = WriterOptions { max_shard_bytes, alignment: Alignment::Line, ..WriterOptions::default() };
        write(folder.path(), &specs, &options).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for spec in &specs {
            let view = checkpoint.tensor(&spec.name).unwrap();
            prop_assert_eq!(view.bytes(), bytes_of(spec));
            let n_bytes = spec.n_bytes().unwrap();
            let alignment = if n_bytes.is_multiple_of(64) { 64 } else { spec.dtype.alignment() };
            prop_assert_eq!(view.info().file_offset() % alignment as u64, 0, "{} of {} bytes", spec.name, n_bytes);
        }
    }

    #[test]
    fn pieces_make_the_same_files(specs in specs(), cuts in prop::collection::vec(1usize..9, 64)) {
        let (whole, pieces) = (tempdir().unwrap(), tempdir().unwrap());
        let options = WriterOptions { max_shard_bytes: 60, ..WriterOptions::default() };
        write(whole.path(), &specs, &options).unwrap();
        let mut writer = CheckpointWriter::create(pieces.path(), &specs, &options).unwrap();
        let mut cuts = cuts.into_iter().cycle();
        for spec in writer.layout().cloned().collect::<Vec<_>>() {
            let bytes = bytes_of(&spec);
            let mut rest = &bytes[..];
            loop {
                let (piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                writer.write_part(&spec.name, piece).unwrap();
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
        }
        writer.finish().unwrap();
        prop_assert_eq!(listing(whole.path()), listing(pieces.path()));
        for name in listing(whole.path()) {
            prop_assert_eq!(fs::read(whole.path().join(&name)).unwrap(), fs::read(pieces.path().join(&name)).unwrap());
        }
    }
}

#[test]
fn the_index_is_that_of_the_hugging_face_libraries() {
    let folder = tempdir().unwrap();
    write(
        folder.path(),
        &three(),
        &WriterOptions { max_shard_bytes: 24, ..WriterOptions::default() },
    )
    .unwrap();
    let expected = r#"{
  "metadata": {
    "total_size": 32
  },
  "weight_map": {
    "x": "model-00001-of-00002.safetensors",
    "y": "model-00001-of-00002.safetensors",
    "z": "model-00002-of-00002.safetensors"
  }
}
"#;
    assert_eq!(
        fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap(),
        expected
    );
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let folder = tempdir().unwrap();
    let options = WriterOptions { max_shard_bytes: 8, ..WriterOptions::default() };
    for n_written in 0..=3 {
        let mut writer =
            CheckpointWriter::create(folder.path().join("sub"), &three(), &options).unwrap();
        for spec in &three()[..n_written] {
            writer.write(&spec.name, &bytes_of(spec)).unwrap();
        }
        let files = listing(&folder.path().join("sub"));
        // The index is there from the start: it reserves the stem.
        assert_eq!(files.len(), (n_written + 1).min(3) + 1);
        assert!(files.iter().all(|name| name.ends_with(".partial")), "{files:?}");
        drop(writer);
        assert_eq!(listing(&folder.path().join("sub")), [""; 0]);
    }
}

#[test]
fn finishing_early_is_an_error_and_leaves_nothing() {
    let folder = tempdir().unwrap();
    let mut writer =
        CheckpointWriter::create(folder.path(), &three(), &WriterOptions::default()).unwrap();
    writer.write("x", &[0; 8]).unwrap();
    writer.write_part("y", &[0; 15]).unwrap();
    let error = writer.finish().unwrap_err();
    assert_eq!(error.to_string(), "2 tensors are not written, the first is `y`");
    assert_eq!(listing(folder.path()), [""; 0]);
}

#[test]
fn a_wrong_call_writes_nothing_and_the_right_one_can_follow() {
    let folder = tempdir().unwrap();
    let mut writer =
        CheckpointWriter::create(folder.path(), &three(), &WriterOptions::default()).unwrap();
    assert_eq!(writer.next_tensor().unwrap().name, "x");
    assert_eq!(
        writer.write("y", &[0; 16]).unwrap_err().to_string(),
        "`y` was written where the layout has `x`"
    );
    for n in [0, 7, 9] {
        let error = writer.write("x", &vec![0; n]).unwrap_err();
        assert!(
            matches!(error, Error::WrittenLength { expected: 8, actual, .. } if actual == n),
            "{error:?}"
        );
    }
    writer.write_part("x", &[1; 5]).unwrap();
    let error = writer.write_part("x", &[1; 4]).unwrap_err();
    assert!(matches!(error, Error::WrittenLength { expected: 3, actual: 4, .. }), "{error:?}");
    assert!(matches!(writer.write_part("z", &[]), Err(Error::OutOfOrder { .. })));
    writer.write_part("x", &[1; 3]).unwrap();
    writer.write("y", &[2; 16]).unwrap();
    writer.write("z", &[3; 8]).unwrap();
    assert!(writer.next_tensor().is_none());
    assert!(matches!(writer.write("z", &[3; 8]), Err(Error::Surplus { tensor }) if tensor == "z"));
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensor("x").unwrap().bytes(), [1; 8]);
    assert_eq!(checkpoint.tensor("z").unwrap().bytes(), [3; 8]);
}

#[test]
fn an_impossible_layout_is_refused_before_a_file_is_made() {
    let folder = tempdir().unwrap();
    let target = folder.path().join("new");
    let refusal = |specs: &[TensorSpec], stem: &str| {
        let options = WriterOptions { stem: stem.to_owned(), ..WriterOptions::default() };
        let error = CheckpointWriter::create(&target, specs, &options).unwrap_err();
        assert!(!target.exists());
        error
    };
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec::new(name, dtype, shape);
    let twice =
        [spec("a", Dtype::U8, &[1]), spec("b", Dtype::U8, &[1]), spec("a", Dtype::F32, &[1])];
    assert!(matches!(refusal(&twice, "model"), Error::DuplicateKey { key } if key == "a"));
    let reserved = [spec("__metadata__", Dtype::U8, &[1])];
    assert!(matches!(refusal(&reserved, "model"), Error::Reserved { .. }));
    let odd = [spec("a", Dtype::F4, &[3, 5])];
    assert!(matches!(refusal(&odd, "model"), Error::PartialByte { n_elements: 15, bits: 4, .. }));
    let huge = [spec("a", Dtype::U8, &[usize::MAX, 2])];
    assert!(matches!(refusal(&huge, "model"), Error::Overflow { .. }));
    let sum = [usize::MAX >> 3; 10].map(|n| TensorSpec::new(n.to_string(), Dtype::U8, [n]));
    let sum: Vec<_> =
        sum.into_iter().enumerate().map(|(i, s)| TensorSpec { name: i.to_string(), ..s }).collect();
    assert!(matches!(refusal(&sum, "model"), Error::Overflow { .. }));
    let deep = [spec("a", Dtype::U8, &[1; 65])];
    assert!(matches!(
        refusal(&deep, "model"),
        Error::Limit { what: "dimensions of a tensor", actual: 65, max: 64 }
    ));
    let long = [spec(&"a".repeat(4097), Dtype::U8, &[1])];
    assert!(matches!(
        refusal(&long, "model"),
        Error::Limit { what: "bytes of a tensor's name", .. }
    ));
    for stem in ["", "..", "a/b", "a\\b"] {
        assert!(matches!(refusal(&[], stem), Error::FileName { name } if name == stem), "{stem}");
    }
}

#[test]
fn a_header_above_the_limit_is_not_written() {
    let folder = tempdir().unwrap();
    let metadata = BTreeMap::from([("text".to_owned(), "x".repeat(100_000_000))]);
    let options = WriterOptions { metadata, ..WriterOptions::default() };
    let error = CheckpointWriter::create(folder.path(), &three(), &options).unwrap_err();
    assert!(
        matches!(error, Error::Limit { what: "bytes of header", max: 100_000_000, .. }),
        "{error:?}"
    );
}

#[test]
fn nothing_that_exists_is_overwritten() {
    for (name, max_shard_bytes) in [
        ("model.safetensors", 1000),
        ("model.safetensors", 8),
        ("model.safetensors.index.json", 1000),
        ("model-00002-of-00003.safetensors", 8),
        ("model-00003-of-00003.safetensors.partial", 8),
        ("model.safetensors.index.json.partial", 8),
    ] {
        let folder = tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, b"precious").unwrap();
        let options = WriterOptions { max_shard_bytes, ..WriterOptions::default() };
        let error = CheckpointWriter::create(folder.path(), &three(), &options).unwrap_err();
        assert!(matches!(&error, Error::Exists { path: named } if *named == path), "{error:?}");
        assert_eq!(listing(folder.path()), [name]);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}

#[test]
fn a_partial_file_that_appears_meanwhile_abandons_the_checkpoint() {
    let folder = tempdir().unwrap();
    let options = WriterOptions { max_shard_bytes: 8, ..WriterOptions::default() };
    let mut writer = CheckpointWriter::create(folder.path(), &three(), &options).unwrap();
    let other = folder.path().join("model-00002-of-00003.safetensors.partial");
    fs::write(&other, b"precious").unwrap();
    assert!(matches!(writer.write("x", &[0; 8]), Err(Error::Exists { path }) if path == other));
    assert!(matches!(writer.write("y", &[0; 16]), Err(Error::Abandoned { .. })));
    assert!(matches!(writer.finish(), Err(Error::Abandoned { .. })));
    assert_eq!(listing(folder.path()), ["model-00002-of-00003.safetensors.partial"]);
    assert_eq!(fs::read(other).unwrap(), b"precious");
}

#[test]
fn of_two_writers_of_one_stem_the_second_is_refused_however_many_files_it_has() {
    let sizes = [1000, 24, 8];
    for (first, second) in sizes.into_iter().flat_map(|a| sizes.map(|b| (a, b))) {
        let folder = tempdir().unwrap();
        let create = |max_shard_bytes, stem: &str| {
            let stem = stem.to_owned();
            let options = WriterOptions { max_shard_bytes, stem, ..WriterOptions::default() };
            CheckpointWriter::create(folder.path(), &three(), &options)
        };
        let mut writer = create(first, "model").unwrap();
        let files = listing(folder.path());
        let error = create(second, "model").unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{first} {second}: {error:?}");
        assert_eq!(listing(folder.path()), files, "{first} {second}");
        drop(create(second, "adapter_model").unwrap());
        for spec in &three() {
            writer.write(&spec.name, &bytes_of(spec)).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().len(), 3);
    }
}

#[test]
fn a_name_that_is_taken_meanwhile_stays_as_it_is_and_leaves_nothing_else() {
    for (taken, max_shard_bytes) in [
        ("model.safetensors", 1000),
        ("model.safetensors.index.json", 1000),
        ("model.safetensors", 8),
        ("model-00001-of-00003.safetensors", 8),
        ("model-00003-of-00003.safetensors", 8),
        ("model.safetensors.index.json", 8),
    ] {
        for is_folder in [false, true] {
            let folder = tempdir().unwrap();
            let options = WriterOptions { max_shard_bytes, ..WriterOptions::default() };
            let mut writer = CheckpointWriter::create(folder.path(), &three(), &options).unwrap();
            for spec in &three() {
                writer.write(&spec.name, &bytes_of(spec)).unwrap();
            }
            let path = folder.path().join(taken);
            if is_folder {
                fs::create_dir(&path).unwrap();
            } else {
                fs::write(&path, b"precious").unwrap();
            }
            let error = writer.finish().unwrap_err();
            assert!(matches!(&error, Error::Exists { path: named } if *named == path), "{error:?}");
            assert_eq!(listing(folder.path()), [taken]);
            assert!(is_folder || fs::read(&path).unwrap() == b"precious");
        }
    }
}

#[test]
fn metadata_and_stem_are_written() {
    let folder = tempdir().unwrap();
    let metadata = BTreeMap::from([
        ("recipe".to_owned(), "a \"quoted\" text\n".to_owned()),
        ("seed".to_owned(), "7".to_owned()),
    ]);
    let options = WriterOptions {
        metadata: metadata.clone(),
        stem: "adapter_model".to_owned(),
        ..WriterOptions::default()
    };
    write(folder.path(), &three(), &options).unwrap();
    assert_eq!(listing(folder.path()), ["adapter_model.safetensors"]);
    let checkpoint = Checkpoint::open(folder.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(*checkpoint.metadata(), metadata);
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::NoCheckpoint { .. })));
}

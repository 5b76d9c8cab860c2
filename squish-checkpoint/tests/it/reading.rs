//! What is read, from where, and as which numbers.

use std::borrow::Cow;
use std::fs;

use squish_checkpoint::{
    Checkpoint, Dtype, Error, MappedFile, Options, SafeTensors, Source, TensorSpec, WriterOptions,
};
use tempfile::tempdir;

use crate::files::{bytes_of, entry, file, small_file, three, three_shards, write};

const READ: Options = Options {
    source: Source::Read,
    limits: squish_checkpoint::Limits {
        header_bytes: 1000,
        index_bytes: 1000,
        tensors: 10,
        rank: 4,
        name_bytes: 10,
    },
};

#[test]
fn shards_read_as_one_map_from_every_kind_of_path() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors.index.json")] {
        for options in [Options::default(), READ] {
            let checkpoint = Checkpoint::open_with(&path, options).unwrap();
            assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x", "y", "z"]);
            assert_eq!(checkpoint.paths().len(), 3);
            for spec in three() {
                let view = checkpoint.tensor(&spec.name).unwrap();
                assert_eq!(TensorSpec::from(view.info()), spec);
                assert_eq!(view.bytes(), bytes_of(&spec));
                assert_eq!(view.borrowed().is_some(), options.source == Source::Map);
            }
        }
    }
    let one = Checkpoint::open(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert_eq!(one.names().collect::<Vec<_>>(), ["y"]);
}

#[test]
fn shared_bytes_outlive_their_checkpoint() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    for options in [Options::default(), READ] {
        let checkpoint = Checkpoint::open_with(folder.path(), options).unwrap();
        let kept: Vec<_> =
            three().iter().map(|spec| checkpoint.shared(&spec.name).unwrap()).collect();
        let error = checkpoint.shared("w").unwrap_err();
        assert!(matches!(&error, Error::Missing { tensor, .. } if tensor == "w"), "{error:?}");
        drop(checkpoint);
        for (bytes, spec) in kept.iter().zip(three()) {
            assert_eq!(bytes.as_ref(), bytes_of(&spec));
        }
    }
}

#[test]
fn the_single_file_wins_over_an_index() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    fs::write(folder.path().join("model.safetensors"), small_file()).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().len(), 5);
}

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let json = format!(
        "{{{},{},{}}}",
        entry("a", "U8", &[1], 2, 3),
        entry("b", "U8", &[2], 0, 2),
        entry("0", "U8", &[0], 2, 2)
    );
    let bytes = file(&json, &[1, 2, 3]);
    let tensors = SafeTensors::parse(&bytes).unwrap();
    let order: Vec<_> =
        tensors.iter().map(|view| (view.name().to_owned(), view.bytes().to_vec())).collect();
    assert_eq!(
        order,
        [("b".to_owned(), vec![1, 2]), ("0".to_owned(), vec![]), ("a".to_owned(), vec![3])]
    );
    assert_eq!(tensors.tensor("a").unwrap().info().file_offset(), bytes.len() as u64 - 1);
}

#[test]
fn numbers_are_little_endian_wherever_they_lie() {
    // Every alignment of the data, by headers of 8 lengths.
    for padding in 0..8 {
        let json = format!("{{{}}}{}", entry("a", "F32", &[3], 0, 12), " ".repeat(padding));
        let bytes = file(&json, &[0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 192]);
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let view = checkpoint.tensor("a").unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap(), [1.0, 2.0, -3.0]);
        let past = (json.len() + 8) % 4;
        if past == 0 && cfg!(target_endian = "little") {
            assert_eq!(view.as_slice::<f32>().unwrap(), [1.0, 2.0, -3.0]);
            assert!(matches!(view.to_cow::<f32>().unwrap(), Cow::Borrowed(_)));
        } else {
            let error = view.as_slice::<f32>().unwrap_err();
            assert!(
                matches!(&error, Error::Alignment { tensor, need: 4, past: actual } if tensor == "a" && *actual == past),
                "{error:?}"
            );
            assert!(
                matches!(view.to_cow::<f32>().unwrap(), Cow::Owned(copy) if copy == [1.0, 2.0, -3.0])
            );
        }
        // Bytes have no alignment, and memory of our own always has it.
        assert_eq!(view.as_slice::<u8>().unwrap(), &bytes[bytes.len() - 12..]);
        let read = Checkpoint::open_with(folder.path(), READ).unwrap();
        assert_eq!(read.tensor("a").unwrap().as_slice::<f32>().unwrap(), [1.0, 2.0, -3.0]);
    }
}

#[test]
fn a_type_of_another_width_is_refused() {
    let bytes = small_file();
    let tensors = SafeTensors::parse(&bytes).unwrap();
    let bf16 = tensors.tensor("b").unwrap();
    assert!(matches!(
        bf16.to_vec::<f32>(),
        Err(Error::ElementSize { dtype: Dtype::BF16, bits: 16, size: 4, tensor }) if tensor == "b"
    ));
    assert!(matches!(bf16.as_slice::<[u8; 3]>(), Err(Error::ElementSize { size: 3, .. })));
    assert!(matches!(bf16.as_slice::<()>(), Err(Error::ElementSize { size: 0, .. })));
    assert_eq!(bf16.to_vec::<u16>().unwrap(), [0x1110, 0x1312, 0x1514]);
    assert_eq!(bf16.to_vec::<u8>().unwrap(), [0x10, 0x11, 0x12, 0x13, 0x14, 0x15]);
    assert_eq!(bf16.to_vec::<[u8; 2]>().unwrap(), [[0x10, 0x11], [0x12, 0x13], [0x14, 0x15]]);
    let f4 = tensors.tensor("f4").unwrap();
    assert_eq!((f4.shape(), f4.as_slice::<u8>().unwrap()), (&[3, 2][..], &[22, 23, 24][..]));
    assert!(matches!(f4.to_cow::<u16>(), Err(Error::ElementSize { bits: 4, size: 2, .. })));
}

#[test]
fn complex_numbers_are_pairs() {
    let bytes =
        file(&format!("{{{}}}", entry("c", "C64", &[1], 0, 8)), &[0, 0, 128, 63, 0, 0, 0, 64]);
    let tensors = SafeTensors::parse(&bytes).unwrap();
    assert_eq!(tensors.tensor("c").unwrap().to_vec::<[f32; 2]>().unwrap(), [[1.0, 2.0]]);
}

#[test]
fn empty_tensors_and_single_numbers_are_tensors() {
    let bytes = small_file();
    let tensors = SafeTensors::parse(&bytes).unwrap();
    let empty = tensors.tensor("empty").unwrap();
    assert_eq!(
        (empty.shape(), empty.bytes().len(), empty.info().n_elements()),
        (&[0, 4][..], 0, 0)
    );
    assert_eq!(empty.as_slice::<i64>().unwrap(), [0i64; 0]);
    assert_eq!(empty.to_vec::<i64>().unwrap(), [0i64; 0]);
    let scalar = tensors.tensor("scalar").unwrap();
    assert_eq!(
        (scalar.shape(), scalar.bytes(), scalar.info().n_elements()),
        (&[][..], &[25][..], 1)
    );
    let nothing = file("{}", &[]);
    assert!(SafeTensors::parse(&nothing).unwrap().is_empty());
}

#[test]
fn a_tensor_that_is_not_as_expected_is_named_with_both_shapes() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let y = || checkpoint.tensor("y").unwrap();
    y().expect_shape(&[2, 4]).unwrap().expect_dtype(Dtype::BF16).unwrap();
    assert_eq!(
        y().expect_shape(&[4, 2]).unwrap_err().to_string(),
        "`y` has shape [2, 4], expected [4, 2]"
    );
    assert_eq!(y().expect_dtype(Dtype::F32).unwrap_err().to_string(), "`y` is BF16, expected F32");
    let missing = checkpoint.tensor("lm_head.weight").unwrap_err();
    assert_eq!(missing.to_string(), "no tensor `lm_head.weight` among 3");
    assert!(checkpoint.get("lm_head.weight").is_none());
    assert_eq!(checkpoint.get("y").unwrap().n_bytes(), 16);
}

#[test]
fn pieces_of_a_tensor_are_its_bytes() {
    let folder = tempdir().unwrap();
    three_shards(folder.path());
    let whole = bytes_of(&three()[1]);
    for options in [Options::default(), READ] {
        let checkpoint = Checkpoint::open_with(folder.path(), options).unwrap();
        for start in 0..=16 {
            for end in start..=16 {
                let mut piece = vec![0; end - start];
                checkpoint.read_into("y", start as u64, &mut piece).unwrap();
                assert_eq!(piece, whole[start..end]);
            }
        }
        let mut piece = [7; 4];
        for offset in [13, 17, u64::MAX] {
            let error = checkpoint.read_into("y", offset, &mut piece).unwrap_err();
            assert!(matches!(error, Error::Range { len: 4, n_bytes: 16, .. }), "{error:?}");
        }
        assert_eq!(piece, [7; 4]);
        assert!(matches!(checkpoint.read_into("q", 0, &mut piece), Err(Error::Missing { .. })));
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_of_positioned_reads() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, small_file()).unwrap();
    let checkpoint = Checkpoint::open_with(folder.path(), READ).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(small_file().len() as u64 - 20)
        .unwrap();
    assert!(matches!(checkpoint.tensor("b"), Err(Error::Io { action: "read", .. })));
    assert!(matches!(
        checkpoint.read_into("b", 0, &mut [0; 6]),
        Err(Error::Io { action: "read", .. })
    ));
}

#[test]
fn metadata_are_those_of_all_shards_and_the_first_wins() {
    let folder = tempdir().unwrap();
    let shard = |name: &str, text: &str| {
        file(&format!(r#"{{"__metadata__":{text},{}}}"#, entry(name, "U8", &[1], 0, 1)), &[0])
    };
    fs::write(folder.path().join("a.safetensors"), shard("x", r#"{"k":"1","l":"2"}"#)).unwrap();
    fs::write(folder.path().join("b.safetensors"), shard("y", r#"{"k":"3","m":"4"}"#)).unwrap();
    fs::write(folder.path().join("c.safetensors"), shard("z", "null")).unwrap();
    let index = r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors","z":"c.safetensors"},"metadata":null}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let metadata: Vec<_> =
        checkpoint.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(metadata, [("k", "1"), ("l", "2"), ("m", "4")]);
}

/// A sparse file: 64 GiB of tensor that would take minutes to read, and more memory than a test may have.
#[cfg(target_os = "linux")]
#[test]
fn opening_reads_no_tensor_data() {
    let (n_bytes, folder) = (1u64 << 36, tempdir().unwrap());
    let path = folder.path().join("model.safetensors");
    let head = file(&format!("{{{}}}", entry("w", "U8", &[n_bytes as usize], 0, n_bytes)), &[]);
    fs::write(&path, &head).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(head.len() as u64 + n_bytes)
        .unwrap();
    for source in [Source::Map, Source::Read] {
        let checkpoint =
            Checkpoint::open_with(folder.path(), Options { source, ..Options::default() }).unwrap();
        assert_eq!(checkpoint.get("w").unwrap().n_bytes() as u64, n_bytes);
        let mut last = [1];
        checkpoint.read_into("w", n_bytes - 1, &mut last).unwrap();
        assert_eq!(last, [0]);
    }
}

#[test]
fn a_checkpoint_is_shared_by_threads() {
    let folder = tempdir().unwrap();
    write(folder.path(), &three(), &WriterOptions::default()).unwrap();
    for options in [Options::default(), READ] {
        let checkpoint = Checkpoint::open_with(folder.path(), options).unwrap();
        std::thread::scope(|scope| {
            for spec in three() {
                let checkpoint = &checkpoint;
                scope.spawn(move || {
                    for _ in 0..100 {
                        assert_eq!(checkpoint.tensor(&spec.name).unwrap().bytes(), bytes_of(&spec));
                    }
                });
            }
        });
    }
}

#[test]
fn any_file_can_be_mapped() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("tokens.bin");
    for bytes in [&b""[..], b"x", &[7; 10_000]] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), bytes);
    }
    let error = MappedFile::open(folder.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::Io { action: "open", .. }), "{error:?}");
}

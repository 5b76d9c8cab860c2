//! Both ways against the `safetensors` crate, the format's own library.

use std::collections::HashMap;
use std::fs;

use proptest::prelude::*;
use safetensors::tensor::{Dtype as TheirDtype, TensorView as TheirView};
use squish_checkpoint::{Checkpoint, Dtype, SafeTensors, TensorSpec, WriterOptions};
use tempfile::tempdir;

use crate::files::{bytes_of, write};

fn theirs(dtype: Dtype) -> TheirDtype {
    serde_json::from_str(&format!("\"{dtype}\"")).unwrap()
}

/// A tensor of every type and of several ranks, out of order.
fn specs() -> Vec<TensorSpec> {
    let shapes: [&[usize]; 5] = [&[4], &[2, 6], &[3, 0], &[1, 2, 4], &[8]];
    let of_each = Dtype::ALL.into_iter().enumerate().map(|(i, dtype)| {
        TensorSpec::new(format!("layer.{}.{dtype}", i % 3), dtype, shapes[i % shapes.len()])
    });
    of_each.chain([TensorSpec::new("scalar \"quoted\" \u{1f40d}", Dtype::F32, [])]).collect()
}

fn by_them(specs: &[TensorSpec], metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let data: Vec<_> = specs.iter().map(bytes_of).collect();
    let views = specs.iter().zip(&data).map(|(spec, bytes)| {
        (spec.name.as_str(), TheirView::new(theirs(spec.dtype), spec.shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, metadata).unwrap()
}

#[test]
fn types_have_the_same_names_widths_and_order() {
    for dtype in Dtype::ALL {
        assert_eq!(theirs(dtype).to_string(), dtype.name());
        assert_eq!(theirs(dtype).bitsize(), dtype.bits());
    }
    assert!(Dtype::ALL.windows(2).all(|pair| theirs(pair[0]) < theirs(pair[1])));
}

#[test]
fn what_they_write_we_read() {
    let specs = specs();
    let metadata =
        HashMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
    let file = by_them(&specs, Some(metadata.clone()));
    let tensors = SafeTensors::parse(&file).unwrap();
    assert_eq!(tensors.metadata().clone().into_iter().collect::<HashMap<_, _>>(), metadata);
    assert_eq!(tensors.len(), specs.len());
    for spec in &specs {
        let view = tensors.tensor(&spec.name).unwrap();
        assert_eq!(TensorSpec::from(view.info()), *spec);
        assert_eq!(view.bytes(), bytes_of(spec));
    }
}

#[test]
fn what_we_write_they_read_shard_by_shard() {
    let (folder, specs) = (tempdir().unwrap(), specs());
    write(
        folder.path(),
        &specs,
        &WriterOptions { max_shard_bytes: 64, ..WriterOptions::default() },
    )
    .unwrap();
    let paths = Checkpoint::open(folder.path()).unwrap().paths().to_vec();
    assert!(paths.len() > 3);
    let files: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let mut found = HashMap::new();
    for file in &files {
        let (_, header) = safetensors::SafeTensors::read_metadata(file).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        found.extend(safetensors::SafeTensors::deserialize(file).unwrap().tensors());
    }
    assert_eq!(found.len(), specs.len());
    for spec in &specs {
        let view = &found[&spec.name];
        assert_eq!(
            (view.dtype(), view.shape(), view.data()),
            (theirs(spec.dtype), &spec.shape[..], &bytes_of(spec)[..])
        );
    }
}

proptest! {
    #[test]
    fn our_files_are_theirs_byte_for_byte(seed in 0usize..1000, n in 0usize..23, with_metadata in any::<bool>()) {
        let mut specs = specs();
        specs.rotate_left(seed % 23);
        specs.truncate(n);
        // With more entries the order of theirs is not defined: they stand in a hash map.
        let metadata: HashMap<_, _> = with_metadata.then(|| ("format".to_owned(), "pt".to_owned())).into_iter().collect();
        let options = WriterOptions { metadata: metadata.clone().into_iter().collect(), ..WriterOptions::default() };
        let folder = tempdir().unwrap();
        write(folder.path(), &specs, &options).unwrap();
        let ours = fs::read(folder.path().join("model.safetensors")).unwrap();
        prop_assert_eq!(ours, by_them(&specs, with_metadata.then_some(metadata)));
    }
}

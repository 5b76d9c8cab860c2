//! What must hold of the reader of indices on any bytes; the fuzz target `index` runs this same function.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use squish_checkpoint::{
    Checkpoint, CheckpointWriter, Dtype, Options, Source, TensorSpec, WriterOptions,
};

const INDEX: &str = "model.safetensors.index.json";

/// Writes a checkpoint of the tensors `a`, `b` and `c` in three shards, and returns its index.
///
/// # Panics
///
/// If that fails.
pub(crate) fn write_three_shards(folder: &Path) -> Vec<u8> {
    let specs = ["a", "b", "c"].map(|name| TensorSpec::new(name, Dtype::U8, [2]));
    let options = WriterOptions { max_shard_bytes: 2, ..WriterOptions::default() };
    let mut writer = CheckpointWriter::create(folder, &specs, &options).expect("an empty folder");
    for spec in &specs {
        writer.write(&spec.name, &[1, 2]).expect("two bytes");
    }
    writer.finish().expect("all tensors are written");
    fs::read(folder.join(INDEX)).expect("three shards have an index")
}

/// Whether the checkpoint of [`write_three_shards`] is accepted with `index` in place of its own.
///
/// # Panics
///
/// If the reader panics, leaves the folder, accepts an index that does not name all tensors and each in its file, or
/// complains at too great length.
pub(crate) fn walk_index(folder: &Path, index: &[u8]) -> bool {
    fs::write(folder.join(INDEX), index).expect("a file of the caller's own");
    let options = Options { source: Source::Read, ..Options::default() };
    match Checkpoint::open_with(folder, options) {
        Ok(checkpoint) => {
            assert!(checkpoint.paths().iter().all(|path| path.parent() == Some(folder)));
            let index: Value = serde_json::from_slice(index).expect("it was accepted");
            let map: BTreeMap<String, String> =
                serde_json::from_value(index["weight_map"].clone()).expect("it was accepted");
            let found = checkpoint.iter().map(|info| {
                let file = checkpoint.paths()[info.shard()].file_name().expect("a file has a name");
                (info.name().to_owned(), file.to_string_lossy().into_owned())
            });
            assert_eq!(found.collect::<BTreeMap<_, _>>(), map);
            true
        }
        Err(error) => {
            let n_bytes = error.to_string().len();
            assert!(n_bytes < 20_000, "a message of {n_bytes} bytes");
            false
        }
    }
}

//! Files and folders to test with.

use std::path::Path;

use squish_checkpoint::{CheckpointWriter, Dtype, Error, TensorSpec, WriterOptions};

/// A safetensors file of any header, padded or not, and any data.
pub(crate) fn file(json: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The header entry of one tensor.
pub(crate) fn entry(name: &str, dtype: &str, shape: &[usize], start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
}

/// A file of a few types with metadata: what truncation and mutation start from.
pub(crate) fn small_file() -> Vec<u8> {
    let entries = [
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        entry("a", "F32", &[2, 2], 0, 16),
        entry("b", "BF16", &[3], 16, 22),
        entry("empty", "I64", &[0, 4], 22, 22),
        entry("f4", "F4", &[3, 2], 22, 25),
        entry("scalar", "F8_E4M3", &[], 25, 26),
    ];
    file(&format!("{{{}}}", entries.join(",")), &(0..26).collect::<Vec<u8>>())
}

/// Distinct bytes for a tensor.
pub(crate) fn bytes_of(spec: &TensorSpec) -> Vec<u8> {
    let seed =
        spec.name.bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let words = (0u32..).map(|i| seed.wrapping_add(i).wrapping_mul(2_654_435_761));
    words.map(|word| (word >> 24) as u8).take(spec.n_bytes().unwrap()).collect()
}

/// Writes `specs` with the bytes of [`bytes_of`].
pub(crate) fn write(
    folder: &Path,
    specs: &[TensorSpec],
    options: &WriterOptions,
) -> Result<(), Error> {
    let mut writer = CheckpointWriter::create(folder, specs, options)?;
    while let Some(spec) = writer.next_tensor().cloned() {
        writer.write(&spec.name, &bytes_of(&spec))?;
    }
    writer.finish()
}

/// Three tensors of 8, 16 and 8 bytes.
pub(crate) fn three() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("x", Dtype::F32, [2]),
        TensorSpec::new("y", Dtype::BF16, [2, 4]),
        TensorSpec::new("z", Dtype::U8, [8]),
    ]
}

/// [`three`], each in a shard of its own.
pub(crate) fn three_shards(folder: &Path) {
    write(folder, &three(), &WriterOptions { max_shard_bytes: 16, ..WriterOptions::default() })
        .unwrap();
    assert_eq!(
        listing(folder),
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json"
        ]
    );
}

/// Names of all files of a folder, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

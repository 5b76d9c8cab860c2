//! Bytes of a tensor that outlive the checkpoint: what a model keeps of it.

use std::{ops::Range, sync::Arc};

use crate::mapping::MappedFile;

/// The bytes of a tensor as they are in the file, with a share in what holds them: the mapping of the whole file, or memory that they were
/// read into. Cloning copies nothing.
///
/// Of a mapping it has the contract, see [`MappedFile`]. The bytes start where they start in the file, which a page of memory starts
/// with; bytes that were read are aligned to 8.
#[derive(Clone, Debug)]
pub struct SharedBytes(Holder);

#[derive(Clone, Debug)]
enum Holder {
    Map { file: Arc<MappedFile>, range: Range<usize> },
    Read { words: Arc<[u64]>, n_bytes: usize },
}

impl SharedBytes {
    pub(crate) fn of_map(file: Arc<MappedFile>, range: Range<usize>) -> Self {
        Self(Holder::Map { file, range })
    }

    pub(crate) fn of_words(words: Vec<u64>, n_bytes: usize) -> Self {
        Self(Holder::Read { words: words.into(), n_bytes })
    }
}

impl AsRef<[u8]> for SharedBytes {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Holder::Map { file, range } => &file[range.clone()],
            Holder::Read { words, n_bytes } => &bytemuck::cast_slice(words)[..*n_bytes],
        }
    }
}

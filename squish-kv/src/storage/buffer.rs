//! Memory that starts on a cache line.

use std::ops::{Deref, DerefMut};

use squish_kernels::memory;

use crate::error::{Error, Result};

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE: usize = 64;

/// Elements whose first byte lies on a multiple of [`LINE`], in a vector with room for as many more as that takes.
///
/// All of them are written when it is made: memory that the system has not got is missed then, and not in the middle of a sequence.
pub(crate) struct Buffer<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Buffer<T> {
    /// `len` times zero, or an error that says how many bytes `what` would have taken.
    pub(crate) fn zeroed(what: &'static str, len: usize) -> Result<Self> {
        const { assert!(LINE.is_multiple_of(size_of::<T>())) };
        let slack = LINE / size_of::<T>();
        let bytes = len.saturating_mul(size_of::<T>());
        let with_slack = len.checked_add(slack).ok_or(Error::StorageMemory { what, bytes })?;
        let filled = memory::filled(with_slack, T::default());
        let storage: Vec<T> = filled.map_err(|_| Error::StorageMemory { what, bytes })?;
        let start = line_start(&storage, slack);
        Ok(Self { storage, start, len })
    }
}

/// Where the first line of `storage` starts, within its slack.
fn line_start<T>(storage: &[T], slack: usize) -> usize {
    storage.as_ptr().align_offset(LINE).min(slack)
}

/// A copy lies elsewhere, and starts on a line there.
impl<T: Clone> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut storage = Vec::with_capacity(self.storage.len());
        memory::prefer_huge_pages(&mut storage);
        storage.extend_from_slice(&self.storage);
        let start = line_start(&storage, storage.len() - self.len);
        // What lies before the start comes around to the end.
        storage.rotate_left(self.start);
        storage.rotate_right(start);
        Self { storage, start, len: self.len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_on_a_line_and_is_zero() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let (bytes, floats) =
                (Buffer::<i8>::zeroed("a", len).unwrap(), Buffer::<f32>::zeroed("b", len).unwrap());
            assert_eq!((bytes.as_ptr().addr() % LINE, floats.as_ptr().addr() % LINE), (0, 0));
            assert!(*bytes == vec![0; len] && *floats == vec![0.0; len]);
        }
    }

    #[test]
    fn a_copy_starts_on_a_line_too() {
        let mut buffer = Buffer::<f32>::zeroed("keys", 100).unwrap();
        buffer.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        // Of several copies hardly all have the place in a line that the first one has.
        let copies: Vec<_> = (0..16).map(|i| (vec![0_u8; 8 * i], buffer.clone())).collect();
        for (_, copy) in copies {
            assert!(copy.as_ptr().addr() % LINE == 0 && *copy == *buffer);
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error_with_its_bytes() {
        for len in [usize::MAX, usize::MAX / 8] {
            let error = Buffer::<f32>::zeroed("keys", len).err();
            let bytes = len.saturating_mul(4);
            assert_eq!(error, Some(Error::StorageMemory { what: "keys", bytes }));
        }
    }
}

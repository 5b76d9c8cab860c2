//! Buffers that start on a cache line: misaligned reads from the first-level cache are nearly half as fast, and where `Vec` puts a
//! buffer is chance.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use squish_kernels::memory;

/// Bytes of a cache line, and of the widest vector.
pub const LINE: usize = 64;

/// A slice of `len` elements whose first byte lies on a multiple of [`LINE`].
///
/// It over-allocates by one line and offsets, so it needs no unsafe code.
pub struct Aligned<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` times the default value, on huge pages as weights and caches are.
    ///
    /// # Panics
    ///
    /// If the size of `T` does not divide [`LINE`], or there is no memory for them.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let size = size_of::<T>();
        assert!(
            size > 0 && LINE.is_multiple_of(size),
            "elements of {size} bytes do not fill a line of {LINE}"
        );
        let storage = memory::filled(len + LINE / size, T::default()).expect("memory");
        let start = storage.as_ptr().align_offset(LINE);
        assert!(
            start < LINE / size,
            "the allocator returned a pointer that is not aligned to the element"
        );
        Self { storage, start, len }
    }

    /// The elements `f(0), f(1), …`.
    #[must_use]
    pub fn from_fn(len: usize, mut f: impl FnMut(usize) -> T) -> Self {
        let mut out = Self::zeroed(len);
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = f(i);
        }
        out
    }
}

impl<T: Copy + Default> From<&[T]> for Aligned<T> {
    fn from(values: &[T]) -> Self {
        let mut out = Self::zeroed(values.len());
        out.copy_from_slice(values);
        out
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl<T: fmt::Debug> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_on_a_line_and_has_its_length() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let (bytes, floats) = (Aligned::<u8>::zeroed(len), Aligned::from_fn(len, |i| i as f32));
            assert_eq!((bytes.as_ptr().addr() % LINE, floats.as_ptr().addr() % LINE), (0, 0));
            assert_eq!((bytes.len(), floats.len()), (len, len));
            assert_eq!(*floats.clone(), *floats);
            assert_eq!(floats.clone().as_ptr().addr() % LINE, 0);
        }
    }
}

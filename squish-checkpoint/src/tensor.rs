//! One tensor: what it is, and its bytes seen as numbers.
//!
//! The numbers of a file are little-endian, whatever the machine. On a little-endian machine bytes are numbers where
//! they lie, if the address suits the type ([`TensorView::as_slice`]); copies ([`TensorView::to_vec`]) work at any
//! address and on any machine.

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::Pod;

use crate::json::RawTensor;
use crate::{Dtype, Error};

/// Name, type, shape and place of a tensor, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In bytes from the start of the file.
    start: u64,
    n_bytes: usize,
    shard: usize,
}

impl TensorInfo {
    /// Of a tensor whose offsets have been checked, in a file whose data start at `data_start`.
    pub(crate) fn new(raw: RawTensor, data_start: u64, shard: usize) -> Self {
        let RawTensor { name, dtype, shape, start, end } = raw;
        Self {
            name,
            dtype,
            shape,
            start: data_start + start,
            n_bytes: (end - start) as usize,
            shard,
        }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions in elements, in row-major order; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The file that holds it, an index into [`Checkpoint::paths`](crate::Checkpoint::paths).
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Its first byte, in bytes from the start of that file.
    pub fn file_offset(&self) -> u64 {
        self.start
    }

    /// Checks its shape.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), Error> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::Shape {
            tensor: self.name.clone(),
            expected: expected.to_vec(),
            actual: self.shape.clone(),
        })
    }

    /// Checks the type of its elements.
    ///
    /// # Errors
    ///
    /// [`Error::Dtype`].
    pub fn expect_dtype(&self, expected: Dtype) -> Result<(), Error> {
        if self.dtype == expected {
            return Ok(());
        }
        Err(Error::Dtype { tensor: self.name.clone(), expected, actual: self.dtype })
    }

    /// Its data in memory of their own, filled by `read`: the first bytes of words.
    pub(crate) fn read_words(
        &self,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<Vec<u64>, Error> {
        let n_words = self.n_bytes.div_ceil(size_of::<u64>());
        let mut words = Vec::new();
        words
            .try_reserve_exact(n_words)
            .map_err(|_| Error::Memory { what: self.name.clone(), n_bytes: self.n_bytes as u64 })?;
        words.resize(n_words, 0u64);
        read(&mut bytemuck::cast_slice_mut(&mut words)[..self.n_bytes])?;
        Ok(words)
    }

    /// Where it lies in a file that is in memory as a whole, so that its offsets fit.
    pub(crate) fn file_range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.n_bytes
    }
}

/// A tensor with its data: borrowed from memory or from a mapped file, or read into memory of its own.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    info: &'a TensorInfo,
    data: Data<'a>,
}

#[derive(Clone, Debug)]
enum Data<'a> {
    Borrowed(&'a [u8]),
    /// The first `n_bytes` of the words' bytes. Words, because they are aligned for every dtype.
    Owned(Vec<u64>),
}

impl<'a> TensorView<'a> {
    pub(crate) fn borrowed_from(info: &'a TensorInfo, bytes: &'a [u8]) -> Self {
        debug_assert_eq!(bytes.len(), info.n_bytes, "bytes of `{}`", info.name);
        Self { info, data: Data::Borrowed(bytes) }
    }

    /// Reads the data with `read`, which fills the buffer it is given.
    pub(crate) fn read_from(
        info: &'a TensorInfo,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        Ok(Self { info, data: Data::Owned(info.read_words(read)?) })
    }

    /// Name, type, shape and place.
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Its dimensions in elements, in row-major order; empty for a single number.
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// Its bytes as they are in the file.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Borrowed(bytes) => bytes,
            Data::Owned(words) => &bytemuck::cast_slice(words)[..self.info.n_bytes],
        }
    }

    /// Its bytes for as long as the checkpoint lives, if they are borrowed from there: always of a mapped checkpoint
    /// and of [`SafeTensors`](crate::SafeTensors), never with [`Source::Read`](crate::Source::Read).
    pub fn borrowed(&self) -> Option<&'a [u8]> {
        match self.data {
            Data::Borrowed(bytes) => Some(bytes),
            Data::Owned(_) => None,
        }
    }

    /// The tensor itself, if it has the expected shape.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, Error> {
        self.info.expect_shape(expected).map(|()| self)
    }

    /// The tensor itself, if it has the expected element type.
    ///
    /// # Errors
    ///
    /// [`Error::Dtype`].
    pub fn expect_dtype(self, expected: Dtype) -> Result<Self, Error> {
        self.info.expect_dtype(expected).map(|()| self)
    }

    /// The elements where they lie, in row-major order; nothing is copied.
    ///
    /// `T` is any plain type as wide as an element (`f32` for `F32`, `half::bf16` or `u16` for `BF16`, `[f32; 2]` for
    /// `C64`), or `u8`. Elements narrower than a byte are seen as `u8` only.
    ///
    /// # Errors
    ///
    /// [`Error::ElementSize`] if `T` has another width; [`Error::Alignment`] if the data do not lie at a multiple of
    /// `T`'s alignment, as happens in files whose header is not padded; [`Error::ByteOrder`] on big-endian machines, for
    /// numbers of more than a byte.
    pub fn as_slice<T: Pod>(&self) -> Result<&[T], Error> {
        self.check_width::<T>()?;
        if cfg!(target_endian = "big") && self.info.dtype.alignment() > 1 && size_of::<T>() > 1 {
            return Err(Error::ByteOrder { tensor: self.info.name.clone() });
        }
        let bytes = self.bytes();
        if bytes.is_empty() {
            // Wherever an empty tensor lies, it has no element that could be out of place.
            return Ok(&[]);
        }
        bytemuck::try_cast_slice(bytes).map_err(|_| Error::Alignment {
            tensor: self.info.name.clone(),
            need: align_of::<T>(),
            past: bytes.as_ptr().addr() % align_of::<T>(),
        })
    }

    /// A copy of the elements, in row-major order and in the machine's byte order (of `u8`, the bytes of the file).
    ///
    /// # Errors
    ///
    /// [`Error::ElementSize`], as for [`as_slice`](Self::as_slice).
    pub fn to_vec<T: Pod>(&self) -> Result<Vec<T>, Error> {
        self.check_width::<T>()?;
        let mut elements = vec![T::zeroed(); self.info.n_bytes / size_of::<T>()];
        let bytes = bytemuck::cast_slice_mut(&mut elements);
        bytes.copy_from_slice(self.bytes());
        if cfg!(target_endian = "big") && size_of::<T>() > 1 {
            swap_bytes(bytes, self.info.dtype.alignment());
        }
        Ok(elements)
    }

    /// The elements where they lie if that is possible, else a copy.
    ///
    /// # Errors
    ///
    /// [`Error::ElementSize`], as for [`as_slice`](Self::as_slice).
    pub fn to_cow<T: Pod>(&self) -> Result<Cow<'_, [T]>, Error> {
        match self.as_slice() {
            Ok(elements) => Ok(Cow::Borrowed(elements)),
            Err(Error::Alignment { .. } | Error::ByteOrder { .. }) => self.to_vec().map(Cow::Owned),
            Err(other) => Err(other),
        }
    }

    fn check_width<T>(&self) -> Result<(), Error> {
        let (bits, size) = (self.info.dtype.bits(), size_of::<T>());
        if size == 1 || size * 8 == bits {
            return Ok(());
        }
        Err(Error::ElementSize {
            tensor: self.info.name.clone(),
            dtype: self.info.dtype,
            bits,
            size,
        })
    }
}

/// Turns little-endian numbers of `width` bytes into big-endian ones, or back.
fn swap_bytes(bytes: &mut [u8], width: usize) {
    for number in bytes.chunks_exact_mut(width) {
        number.reverse();
    }
}

/// Tensors in the order of their data, found by name.
#[derive(Clone, Debug)]
pub(crate) struct TensorTable {
    infos: Vec<TensorInfo>,
    /// Indices into `infos`, by ascending name: no second copy of the names, no dependence on a hash.
    by_name: Vec<usize>,
}

impl TensorTable {
    /// Of tensors with distinct names.
    pub(crate) fn new(infos: Vec<TensorInfo>) -> Self {
        let mut by_name: Vec<usize> = (0..infos.len()).collect();
        by_name.sort_unstable_by(|&a, &b| infos[a].name.cmp(&infos[b].name));
        Self { infos, by_name }
    }

    pub(crate) fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    pub(crate) fn find_opt(&self, name: &str) -> Option<&TensorInfo> {
        let place =
            self.by_name.binary_search_by(|&i| self.infos[i].name.as_str().cmp(name)).ok()?;
        Some(&self.infos[self.by_name[place]])
    }

    pub(crate) fn find(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.find_opt(name).ok_or_else(|| Error::Missing {
            tensor: Error::clip(name),
            n_tensors: self.infos.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_larger_than_the_memory_is_an_error() {
        let n_bytes = isize::MAX as usize - 7;
        let raw = RawTensor {
            name: "w".to_owned(),
            dtype: Dtype::U8,
            shape: vec![n_bytes],
            start: 0,
            end: n_bytes as u64,
        };
        let info = TensorInfo::new(raw, 8, 0);
        let error =
            TensorView::read_from(&info, |_| panic!("there is nothing to read into")).unwrap_err();
        assert!(
            matches!(&error, Error::Memory { what, n_bytes: n } if what == "w" && *n == n_bytes as u64),
            "{error:?}"
        );
    }

    #[test]
    fn swapping_reverses_each_number() {
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        swap_bytes(&mut bytes, 4);
        assert_eq!(bytes, [4, 3, 2, 1, 8, 7, 6, 5]);
        swap_bytes(&mut bytes, 1);
        assert_eq!(bytes, [4, 3, 2, 1, 8, 7, 6, 5]);
    }
}

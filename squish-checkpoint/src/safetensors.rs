//! The safetensors container: where each tensor of a file lies, checked before anything is handed out.
//!
//! ```text
//! u64, little-endian: n | n bytes of JSON, padded with spaces | data
//! ```
//!
//! The JSON gives each tensor a type, a shape and `data_offsets` counted from the first byte of data. A file is accepted
//! when its tensors, sorted by offset, tile the data: each starts where the one before ends, the first at 0, the last
//! ends with the file, and each is as long as its type and shape say. All arithmetic is checked.
//!
//! Source: the format's description and the reader of the `safetensors` crate 0.8. Ours departs from that reader in
//! three ways: a name that occurs twice is an error (there the last one wins), the limits are settable and there are
//! more of them ([`Limits`]), and a tensor's entry has to be an object with a text for its dtype (there a list of the values
//! passes too, and a dtype as the object `{"F32": null}`).

use std::collections::BTreeMap;

use crate::json::{self, RawHeader, RawTensor};
use crate::limits::{self, Limits};
use crate::tensor::TensorTable;
use crate::{Dtype, Error, TensorInfo, TensorView};

/// A safetensors file in memory.
///
/// # Examples
///
/// ```
/// use squish_checkpoint::{Dtype, SafeTensors};
///
/// let json = br#"{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
/// let mut file = (json.len() as u64).to_le_bytes().to_vec();
/// file.extend_from_slice(json);
/// file.extend_from_slice(&[1, 2, 3]);
///
/// let tensors = SafeTensors::parse(&file)?;
/// let x = tensors.tensor("x")?;
/// assert_eq!((x.dtype(), x.shape(), x.bytes()), (Dtype::U8, &[3][..], &[1, 2, 3][..]));
/// # Ok::<(), squish_checkpoint::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SafeTensors<'data> {
    table: TensorTable,
    metadata: BTreeMap<String, String>,
    file: &'data [u8],
}

impl<'data> SafeTensors<'data> {
    /// The tensors of a whole file, within the default limits.
    ///
    /// # Errors
    ///
    /// As [`parse_with`](Self::parse_with).
    pub fn parse(file: &'data [u8]) -> Result<Self, Error> {
        Self::parse_with(file, &Limits::default())
    }

    /// The tensors of a whole file, within `limits`.
    ///
    /// # Errors
    ///
    /// [`Error::TooShort`], [`Error::HeaderPastEnd`], [`Error::Limit`], [`Error::Json`], [`Error::DuplicateKey`],
    /// [`Error::UnknownDtype`]; of one tensor [`Error::Overflow`], [`Error::PartialByte`], [`Error::Reversed`],
    /// [`Error::ByteCount`], [`Error::Overlap`], [`Error::Gap`], [`Error::PastEnd`]; of the whole [`Error::Trailing`].
    pub fn parse_with(file: &'data [u8], limits: &Limits) -> Result<Self, Error> {
        let Header { tensors, metadata } = Header::of_bytes(file, 0, limits)?;
        Ok(Self { table: TensorTable::new(tensors), metadata, file })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.table.infos().len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.table.infos().is_empty()
    }

    /// The tensors in the order of their data.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.table.infos().iter().map(|info| self.view(info))
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        self.table.find(name).map(|info| self.view(info))
    }

    /// The texts under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn view<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        TensorView::borrowed_from(info, &self.file[info.file_range()])
    }
}

/// Bytes of the length that stands before a header.
pub(crate) const PREFIX: usize = 8;

/// A header that has passed all checks.
#[derive(Debug)]
pub(crate) struct Header {
    /// In the order of their data.
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Header {
    /// The header of `file`; `shard` is what its tensors will say that they belong to.
    pub(crate) fn of_bytes(file: &[u8], shard: usize, limits: &Limits) -> Result<Self, Error> {
        let file_len = file.len() as u64;
        let Some(prefix) = file.first_chunk() else {
            return Err(Error::TooShort { len: file_len });
        };
        let n = json_len(*prefix, file_len, limits)?;
        Self::of_json(&file[PREFIX..PREFIX + n], file_len, shard, limits)
    }

    /// The header with the text `json`, of a file of `file_len` bytes.
    pub(crate) fn of_json(
        json: &[u8],
        file_len: u64,
        shard: usize,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let RawHeader { metadata, mut tensors } = json::header(json, limits)?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::DuplicateKey { key: pair[0].name.clone() });
        }
        // Stable, so that empty tensors at one offset stay in the order of their names.
        tensors.sort_by_key(|tensor| (tensor.start, tensor.end));
        let data_start = (PREFIX + json.len()) as u64;
        check_tiling(&tensors, file_len - data_start)?;
        let tensors =
            tensors.into_iter().map(|raw| TensorInfo::new(raw, data_start, shard)).collect();
        Ok(Self { tensors, metadata })
    }
}

/// The length of the JSON that `prefix` announces, which fits into `file_len` bytes and into memory.
pub(crate) fn json_len(
    prefix: [u8; PREFIX],
    file_len: u64,
    limits: &Limits,
) -> Result<usize, Error> {
    let n = u64::from_le_bytes(prefix);
    limits::check("bytes of header", n, limits.header_bytes)?;
    match usize::try_from(n) {
        Ok(len) if n <= file_len.saturating_sub(PREFIX as u64) => Ok(len),
        _ => Err(Error::HeaderPastEnd { header: n, file: file_len }),
    }
}

/// Bytes of a tensor.
pub(crate) fn n_bytes(tensor: &str, dtype: Dtype, shape: &[usize]) -> Result<usize, Error> {
    let n_elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let n_bits = n_elements.and_then(|n| n.checked_mul(dtype.bits()));
    let (Some(n_elements), Some(n_bits)) = (n_elements, n_bits) else {
        return Err(Error::Overflow { tensor: tensor.to_owned(), dtype, shape: shape.to_vec() });
    };
    if !n_bits.is_multiple_of(8) {
        return Err(Error::PartialByte {
            tensor: tensor.to_owned(),
            n_elements,
            bits: dtype.bits(),
        });
    }
    Ok(n_bits / 8)
}

/// Checks that `tensors`, sorted by offset, cover `len` bytes of data without gap or overlap.
fn check_tiling(tensors: &[RawTensor], len: u64) -> Result<(), Error> {
    let mut covered = 0;
    let mut previous = "";
    for RawTensor { name, dtype, shape, start, end } in tensors {
        let (start, end, tensor) = (*start, *end, || name.clone());
        let expected = n_bytes(name, *dtype, shape)? as u64;
        let Some(actual) = end.checked_sub(start) else {
            return Err(Error::Reversed { tensor: tensor(), start, end });
        };
        if actual != expected {
            return Err(Error::ByteCount {
                tensor: tensor(),
                dtype: *dtype,
                shape: shape.clone(),
                expected,
                actual,
            });
        }
        if start < covered {
            return Err(Error::Overlap {
                tensor: tensor(),
                start,
                other: previous.to_owned(),
                end: covered,
            });
        }
        if start > covered {
            return Err(Error::Gap { tensor: tensor(), start, expected: covered });
        }
        if end > len {
            return Err(Error::PastEnd { tensor: tensor(), end, len });
        }
        (covered, previous) = (end, name);
    }
    if covered < len {
        return Err(Error::Trailing { covered, len });
    }
    Ok(())
}

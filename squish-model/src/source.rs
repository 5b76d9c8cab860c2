//! Where a model's tensors come from, as dense numbers of 32 or 16 bits.

use half::{bf16, f16};
use squish_checkpoint::{Checkpoint, Dtype, SharedBytes};
use squish_kernels::cast::widen_into;
use squish_quant::{Activation, Dense};

use crate::{Error, Packed};

/// Tensors by their names in a Hugging Face checkpoint.
pub trait TensorSource {
    /// The tensor called `name`, of `shape`.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] of one that is missing or has another shape; [`Error::Dtype`].
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error>;

    /// Whether there is one.
    fn has(&self, name: &str) -> bool;

    /// The weights of the linear layer `module`, of `shape` `[outputs, inputs]`, packed as the source has them, for inputs that are rounded
    /// to `activation` or, without one, to what their format has by default. None if they are dense, so that
    /// [`tensor`](Self::tensor) has all there is to know; none, too, unless a source says otherwise.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor); [`Error::Pack`]; [`Error::Panels`] of weights that are saved for other inputs.
    fn packed(
        &self,
        module: &str,
        shape: [usize; 2],
        activation: Option<Activation>,
    ) -> Result<Option<Packed>, Error> {
        let _ = (module, shape, activation);
        Ok(None)
    }
}

/// A tensor as little-endian numbers, with a share in what holds them.
#[derive(Clone, Debug)]
pub struct DenseTensor {
    dense: Dense,
    bytes: Bytes,
}

#[derive(Clone, Debug)]
enum Bytes {
    Shared(SharedBytes),
    Own(Vec<u8>),
}

impl DenseTensor {
    /// Numbers in memory of their own.
    pub fn new(dense: Dense, bytes: Vec<u8>) -> Self {
        Self { dense, bytes: Bytes::Own(bytes) }
    }

    /// Their type.
    pub fn dense(&self) -> Dense {
        self.dense
    }

    /// The numbers.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Shared(bytes) => bytes.as_ref(),
            Bytes::Own(bytes) => bytes,
        }
    }

    /// Bytes that are not those of a mapped file.
    pub fn n_own_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Shared(_) => 0,
            Bytes::Own(bytes) => bytes.len(),
        }
    }

    /// The values, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.bytes().len() / width(self.dense)];
        self.widen_from(0, &mut out);
        out
    }

    /// The values from element number `first` on, exactly, as many as `out` has room for.
    pub(crate) fn widen_from(&self, first: usize, out: &mut [f32]) {
        let width = width(self.dense);
        let bytes = &self.bytes()[first * width..(first + out.len()) * width];
        match self.dense {
            Dense::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Dense::Bf16 => widen(bytes, bf16::from_le_bytes, out),
            Dense::F16 => widen(bytes, f16::from_le_bytes, out),
        }
    }
}

/// Widens numbers at any alignment, a piece at a time.
fn widen<T>(bytes: &[u8], of: impl Fn([u8; 2]) -> T, out: &mut [f32])
where
    T: squish_kernels::Real + Default,
{
    let mut piece = [T::default(); 256];
    for (out, bytes) in out.chunks_mut(piece.len()).zip(bytes.chunks(2 * piece.len())) {
        for (number, bytes) in piece.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *number = of(*bytes);
        }
        widen_into(&piece[..out.len()], out);
    }
}

/// Bytes of a number.
pub(crate) const fn width(dense: Dense) -> usize {
    match dense {
        Dense::F32 => 4,
        Dense::Bf16 | Dense::F16 => 2,
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let bytes = Bytes::Shared(self.shared(name)?);
        let info = self.get(name).expect("it was just found");
        info.expect_shape(shape)?;
        let dense = match info.dtype() {
            Dtype::F32 => Dense::F32,
            Dtype::BF16 => Dense::Bf16,
            Dtype::F16 => Dense::F16,
            actual => return Err(Error::Dtype { tensor: name.to_owned(), actual }),
        };
        Ok(DenseTensor { dense, bytes })
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

//! A matrix that products read, packed by this process or saved by another one.
//!
//! | held by | made by | memory of its own |
//! |---|---|---|
//! | lines of this process | [`PackedMatrix::pack`] | all |
//! | a mapped file | [`Packed::from_saved`] | none |

use squish_checkpoint::{SharedBytes, bytemuck};
use squish_quant::{Activation, PackedMatrix, PackedView, Saved, Verify, packed::Line};

/// Weights `[outputs, inputs]`, packed for products.
#[derive(Clone, Debug)]
pub struct Packed(Holder);

#[derive(Clone, Debug)]
enum Holder {
    Own(PackedMatrix),
    Copied(PackedMatrix<Saved<Copied>>),
    Shared(PackedMatrix<Saved<SharedBytes>>),
}

impl From<PackedMatrix> for Packed {
    fn from(matrix: PackedMatrix) -> Self {
        Self(Holder::Own(matrix))
    }
}

impl Packed {
    /// The matrix that [`PackedMatrix::write`] wrote: where it lies, if it starts on a line of 64 bytes, else copied.
    ///
    /// # Errors
    ///
    /// Those of [`PackedView::from_bytes`].
    pub fn from_saved(bytes: SharedBytes, verify: Verify) -> Result<Self, squish_quant::Error> {
        let is_aligned = bytes.as_ref().as_ptr().addr().is_multiple_of(align_of::<Line>());
        let holder = if is_aligned {
            Holder::Shared(PackedMatrix::from_saved(bytes, verify)?)
        } else {
            Holder::Copied(PackedMatrix::from_saved(Copied::new(bytes.as_ref()), verify)?)
        };
        Ok(Self(holder))
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        self.view().shape()
    }

    /// What inputs are rounded to.
    pub fn activation(&self) -> Activation {
        self.view().activation()
    }

    /// The matrix.
    pub fn view(&self) -> PackedView<'_> {
        match &self.0 {
            Holder::Own(matrix) => matrix.view(),
            Holder::Copied(matrix) => matrix.view(),
            Holder::Shared(matrix) => matrix.view(),
        }
    }

    /// Bytes that a product reads.
    pub fn n_bytes(&self) -> usize {
        self.view().n_bytes()
    }

    /// Bytes of these that are not a mapped file's.
    pub fn n_own_bytes(&self) -> usize {
        match &self.0 {
            Holder::Own(_) | Holder::Copied(_) => self.n_bytes(),
            Holder::Shared(_) => 0,
        }
    }
}

/// Bytes that start on a line.
#[derive(Clone, Debug)]
struct Copied {
    lines: Vec<Line>,
    n_bytes: usize,
}

impl Copied {
    fn new(bytes: &[u8]) -> Self {
        let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(size_of::<Line>())];
        bytemuck::cast_slice_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
        Self { lines, n_bytes: bytes.len() }
    }
}

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.n_bytes]
    }
}

#[cfg(test)]
mod tests {
    use squish_checkpoint::{
        Checkpoint, CheckpointWriter, Dtype, Options, Source, TensorSpec, WriterOptions,
    };
    use squish_quant::{Dense, Error, Weights};

    use super::*;

    #[test]
    fn saved_bytes_are_used_where_they_lie_if_they_can_be() {
        let numbers: Vec<u8> = (0..70 * 32).flat_map(|i: i32| (i as f32).to_le_bytes()).collect();
        let weights = Weights::Dense { dense: Dense::F32, shape: [70, 32], bytes: &numbers };
        let matrix = PackedMatrix::pack(weights, Activation::F32).unwrap();
        let mut saved = Vec::new();
        matrix.write(&mut saved).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let spec = TensorSpec::new("w", Dtype::U8, [saved.len()]);
        let options = WriterOptions {
            alignment: squish_checkpoint::Alignment::Line,
            ..WriterOptions::default()
        };
        let mut writer = CheckpointWriter::create(folder.path(), &[spec], &options).unwrap();
        writer.write("w", &saved).unwrap();
        writer.finish().unwrap();

        let mapped = Checkpoint::open(folder.path()).unwrap().shared("w").unwrap();
        let mapped = Packed::from_saved(mapped, Verify::All).unwrap();
        assert_eq!((mapped.n_own_bytes(), mapped.shape()), (0, [70, 32]));
        assert_eq!(mapped.view(), matrix.view());
        // A panic here would be one of a clone that has lost its file.
        assert_eq!(mapped.clone().view().lines(), matrix.lines());

        let options = Options { source: Source::Read, ..Options::default() };
        let read = Checkpoint::open_with(folder.path(), options).unwrap().shared("w").unwrap();
        let read = Packed::from_saved(read, Verify::All).unwrap();
        assert_eq!(read.view(), matrix.view());
        let copied = Copied::new(&saved);
        assert_eq!(PackedMatrix::from_saved(copied, Verify::All).unwrap().view(), matrix.view());
        let short = PackedMatrix::from_saved(Copied::new(&saved[..200]), Verify::All);
        assert!(matches!(short, Err(Error::Length { .. })));

        let own = Packed::from(matrix.clone());
        assert_eq!((own.n_own_bytes(), own.n_bytes()), (matrix.n_bytes(), matrix.n_bytes()));
    }
}

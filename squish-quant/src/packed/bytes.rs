//! Packed matrices as bytes: saved once, and viewed from a mapped file without any work.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `SQUISHPM` |
//! | 8 | 4 | version, 1 |
//! | 12 | 1 | code of the weights |
//! | 13 | 1 | activation |
//! | 14 | 1 | scales |
//! | 16 | 8 | outputs |
//! | 24 | 8 | inputs |
//! | 32 | 8 | inputs of a group |
//! | 40 | 8 | bytes of the panels |
//! | 48 | 8 | checksum of the panels |
//! | 120 | 8 | checksum of the 120 bytes before |
//! | 128 | | panels, in the order that [`squish_kernels::panel`] describes |
//!
//! Numbers are little-endian, and all other bytes are zeros. The version is that of the order of bytes, in header and
//! panels.
//!
//! The checksum takes 64-bit words, word `i` in chain `i` modulo 8, by `hash = rotate((hash ^ word) · odd, 29)`, and then the
//! eight results. Every step is a bijection, so that a change within one word is always found; the rotation carries the
//! upper bits, which the product leaves where they are, to where the next one spreads them. It finds accidents, and is no
//! protection against whoever means to deceive.

use squish_kernels::panel::{Activation, Code, Line, PanelScale};

use super::{PackedMatrix, PackedView, layout_of, n_lines};
use crate::error::{Error, Result};

/// Bytes of the header, a multiple of a line.
const HEADER: usize = 128;
const MAGIC: [u8; 8] = *b"SQUISHPM";
const VERSION: u32 = 1;
const SCALES: [PanelScale; 5] =
    [PanelScale::Absent, PanelScale::F32, PanelScale::F32Zero, PanelScale::E8M0, PanelScale::E4M3];

impl<B: AsRef<[Line]>> PackedMatrix<B> {
    /// Bytes that [`write`](Self::write) makes.
    pub fn n_saved_bytes(&self) -> usize {
        HEADER + self.n_bytes()
    }

    /// The matrix as bytes for [`PackedView::from_bytes`], into `out`: the header, and then the panels where they lie.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        let panels: &[u8] = bytemuck::cast_slice(self.lines.as_ref());
        out.write_all(&self.header(panels))?;
        out.write_all(panels)
    }

    fn header(&self, panels: &[u8]) -> [u8; HEADER] {
        let layout = &self.layout;
        let place = |found: Option<usize>| found.expect("the lists are complete") as u8;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12] = place(Code::ALL.iter().position(|&code| code == layout.code()));
        header[13] = place(Activation::ALL.iter().position(|&x| x == layout.activation()));
        header[14] = place(SCALES.iter().position(|&scale| scale == layout.scale()));
        let sizes = [self.n_outputs, layout.n_inputs(), layout.group(), panels.len()];
        for (field, size) in header[16..48].chunks_exact_mut(8).zip(sizes) {
            field.copy_from_slice(&(size as u64).to_le_bytes());
        }
        header[48..56].copy_from_slice(&checksum(panels).to_le_bytes());
        let of_header = checksum(&header[..HEADER - 8]);
        header[HEADER - 8..].copy_from_slice(&of_header.to_le_bytes());
        header
    }
}

/// What of saved bytes is checked against its checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Header and panels: reads all bytes once.
    #[default]
    All,
    /// The header: touches no panel, for a mapped file that was verified before.
    Header,
}

impl<'a> PackedView<'a> {
    /// A matrix from the bytes that [`PackedMatrix::write`] made, where they lie. They start on a line of 64 bytes, as
    /// mapped files do.
    ///
    /// # Errors
    ///
    /// [`Error::Packed`] for bytes that are none of this version, or that have changed; [`Error::Length`] for too few or too
    /// many; [`Error::Alignment`]; [`Error::Unsupported`], [`Error::BlockAlign`] and [`Error::TooLarge`] for a header whose fields
    /// do not go together.
    pub fn from_bytes(bytes: &'a [u8], verify: Verify) -> Result<Self> {
        let Some((header, panels)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Error::Length { what: "bytes", expected: HEADER, actual: bytes.len() });
        };
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        check("magic number", u64::from_le_bytes(MAGIC), u64_at(0))?;
        check("version", VERSION.into(), u32_at(8).into())?;
        check("checksum of the header", checksum(&header[..HEADER - 8]), u64_at(HEADER - 8))?;
        let reserved = header[15..16].iter().chain(&header[56..HEADER - 8]);
        check("sum of the reserved bytes", 0, reserved.map(|&byte| u64::from(byte)).sum())?;
        let code = *field("code", &Code::ALL, header[12])?;
        let activation = *field("activation", &Activation::ALL, header[13])?;
        let scale = *field("kind of scales", &SCALES, header[14])?;
        let size = |at| usize::try_from(u64_at(at)).unwrap_or(usize::MAX);
        let shape = [size(16), size(24)];
        let layout = layout_of(code, activation, scale, shape, size(32))?;
        // A layout takes a group of more inputs than there are for one of all of them.
        check("group", layout.group() as u64, u64_at(32))?;
        let n_bytes = 64 * n_lines(&layout, shape[0])?;
        check("number of bytes", n_bytes as u64, u64_at(40))?;
        Error::check_length("panels", n_bytes, panels.len())?;
        let offset = panels.as_ptr().addr() % align_of::<Line>();
        let Ok(lines) = bytemuck::try_cast_slice(panels) else {
            return Err(Error::Alignment { what: "panels", line: align_of::<Line>(), offset });
        };
        if verify == Verify::All {
            check("checksum of the panels", checksum(panels), u64_at(48))?;
        }
        Ok(Self { layout, n_outputs: shape[0], lines })
    }

    /// The same matrix in memory of its own.
    #[must_use]
    pub fn to_matrix(&self) -> PackedMatrix {
        PackedMatrix { layout: self.layout, n_outputs: self.n_outputs, lines: self.lines.to_vec() }
    }
}

/// The bytes that [`PackedMatrix::write`] made, as what a matrix has its panels in: a share of a mapped file, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved<B>(B);

impl<B: AsRef<[u8]>> AsRef<[Line]> for Saved<B> {
    /// The panels. They were whole lines when the matrix was made of them.
    #[inline]
    fn as_ref(&self) -> &[Line] {
        bytemuck::cast_slice(&self.0.as_ref()[HEADER..])
    }
}

impl<B: AsRef<[u8]>> PackedMatrix<Saved<B>> {
    /// As [`PackedView::from_bytes`], of bytes that it keeps. They stay where they are: what `bytes` refers to is the same each
    /// time.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Examples
    ///
    /// ```
    /// use squish_quant::{Activation, Dense, PackedMatrix, Verify, Weights, packed::Line};
    /// # let floats: Vec<u8> = (0..64 * 32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    ///
    /// let weights = Weights::Dense { dense: Dense::F32, shape: [64, 32], bytes: &floats };
    /// let packed = PackedMatrix::pack(weights, Activation::F32)?;
    /// let mut file = Vec::new();
    /// packed.write(&mut file).expect("memory");
    ///
    /// // As a mapped file, which starts at a page.
    /// struct Page(Vec<Line>);
    /// impl AsRef<[u8]> for Page {
    ///     fn as_ref(&self) -> &[u8] {
    ///         bytemuck::cast_slice(&self.0)
    ///     }
    /// }
    /// let page = Page(file.as_chunks().0.iter().map(|&line| Line(line)).collect());
    /// let saved = PackedMatrix::from_saved(page, Verify::All)?;
    /// assert_eq!((saved.shape(), saved.lines()), (packed.shape(), packed.lines()));
    /// # Ok::<(), squish_quant::Error>(())
    /// ```
    pub fn from_saved(bytes: B, verify: Verify) -> Result<Self> {
        let PackedView { layout, n_outputs, .. } = PackedView::from_bytes(bytes.as_ref(), verify)?;
        Ok(Self { layout, n_outputs, lines: Saved(bytes) })
    }
}

/// The checksum of whole words; see the [module](self).
#[doc(hidden)]
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    // The fraction of the golden ratio, an odd number of mixed bits.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    // Eight chains hide the latency of a product.
    let mut chains = [BASIS; 8];
    for words in bytes.as_chunks::<8>().0.chunks(8) {
        for (chain, word) in chains.iter_mut().zip(words) {
            *chain = step(*chain, u64::from_le_bytes(*word));
        }
    }
    chains.into_iter().fold(BASIS, step)
}

fn check(what: &'static str, expected: u64, actual: u64) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::Packed { what, expected, actual }) }
}

/// Entry `idx` of a list, which is what a byte of the header is.
fn field<'a, T>(what: &'static str, list: &'a [T], idx: u8) -> Result<&'a T> {
    let most = list.len() as u64 - 1;
    list.get(usize::from(idx)).ok_or(Error::Packed { what, expected: most, actual: idx.into() })
}

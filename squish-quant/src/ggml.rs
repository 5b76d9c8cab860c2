//! ggml's blocks of MXFP4 and NVFP4, as GGUF files hold them (types 39 and 40): repacking, and encoding MXFP4 byte for byte.
//!
//! | type | elements | bytes | layout |
//! |---|---|---|---|
//! | MXFP4 | 32 | 17 | the E8M0 byte, then 16 bytes of codes: byte `j` holds element `j` in its low and element `j + 16` in its high half |
//! | NVFP4 | 64 | 36 | four E4M3 bytes, then 8 bytes of codes for each 16 elements: byte `j` holds element `j` and element `j + 8` of them |
//!
//! [`MxTensor`] and [`NvFp4Tensor`] hold neighbors in a byte.
//!
//! ggml's encoder of MXFP4 has the scales of [`ScaleRule::Floor`](crate::ScaleRule::Floor), but rounds ties toward zero and never
//! emits -0; [`encode_mxfp4_into`] does the same. Two differences remain at the edges: ggml reads the scale byte 255 as
//! 2^128, here it is NaN, as specified; and for a block whose largest magnitude is within half a unit in the last place
//! below a power of two, or subnormal, ggml's rounded logarithm gives another scale byte.
//!
//! ggml reads NVFP4's scale byte `0x7f` as zero, where E4M3 has NaN, and leaves the sign bit of scales out, where E4M3 has a
//! sign. Repacking moves bytes and changes none of them. The scale of the tensor is no part of the blocks: GGUF files
//! have it as a tensor of its own, a factor.
//!
//! Source: ggml's `block_mxfp4`, `quantize_row_mxfp4_ref`, `block_nvfp4` and `dequantize_row_nvfp4`, as measured through gguf
//! 0.19.

use squish_kernels::{blocks::abs_max_blocks_into, element::E8M0};

use crate::{
    band::first_non_finite,
    error::{Error, Result},
    mx::{MX_BLOCK, MxFormat, MxTensor},
    nvfp4::{self, GlobalScale, NVFP4_BLOCK, NvFp4Tensor},
};

/// Bytes of a block of 32 elements.
pub const MXFP4_BLOCK_BYTES: usize = 17;

/// Elements of a block of NVFP4, which are those of four scales.
pub const NVFP4_BLOCK_ELEMENTS: usize = 64;

/// Bytes of a block of 64 elements.
pub const NVFP4_BLOCK_BYTES: usize = 36;

const HALF: usize = MX_BLOCK / 2;

/// The bytes of a matrix as ggml's blocks, `[rows, cols / 32, 17]`.
///
/// # Errors
///
/// [`Error::Unsupported`] if its format is not [`MxFormat::MxFp4`].
pub fn mxfp4_to_blocks<C: AsRef<[u8]>, S: AsRef<[u8]>>(tensor: &MxTensor<C, S>) -> Result<Vec<u8>> {
    if tensor.format() != MxFormat::MxFp4 {
        return Err(Error::Unsupported {
            format: tensor.format().name(),
            what: "ggml's blocks of MXFP4",
        });
    }
    let mut out = Vec::with_capacity(tensor.scales().len() * MXFP4_BLOCK_BYTES);
    for (codes, &scale) in tensor.codes().as_chunks::<HALF>().0.iter().zip(tensor.scales()) {
        out.push(scale);
        out.extend((0..HALF).map(|j| nibble(codes, j) | nibble(codes, j + HALF) << 4));
    }
    Ok(out)
}

/// A matrix of `shape` from ggml's blocks, `[rows, cols / 32, 17]`.
///
/// # Errors
///
/// [`Error::BlockAlign`], [`Error::Length`] if `bytes` is too short or too long, [`Error::TooLarge`].
pub fn mxfp4_from_blocks(bytes: &[u8], shape: [usize; 2]) -> Result<MxTensor> {
    let [n_codes, n_scales] = MxFormat::MxFp4.lengths(shape)?;
    let n_bytes = n_scales.checked_mul(MXFP4_BLOCK_BYTES).ok_or(Error::TooLarge { shape })?;
    Error::check_length("bytes", n_bytes, bytes.len())?;
    let (mut codes, mut scales) = (Vec::with_capacity(n_codes), Vec::with_capacity(n_scales));
    for [scale, block @ ..] in bytes.as_chunks::<MXFP4_BLOCK_BYTES>().0 {
        scales.push(*scale);
        // Elements 0 to 15 are the low halves, 16 to 31 the high ones; neighbors go into one byte.
        let (pairs, _) = block.as_chunks::<2>();
        codes.extend(pairs.iter().map(|[a, b]| (a & 0xf) | b << 4));
        codes.extend(pairs.iter().map(|[a, b]| a >> 4 | (b & 0xf0)));
    }
    MxTensor::new(MxFormat::MxFp4, shape, codes, scales)
}

/// `x`, rows of whole blocks of 32, as the bytes that ggml's encoder makes of it: 17 per block.
///
/// # Errors
///
/// [`Error::BlockAlign`], [`Error::Length`], [`Error::NonFinite`], for which ggml has no rule. Then nothing is written.
pub fn encode_mxfp4_into(x: &[f32], out: &mut [u8]) -> Result<()> {
    let [_, n_blocks] = MxFormat::MxFp4.lengths([1, x.len()])?;
    Error::check_length("out", n_blocks * MXFP4_BLOCK_BYTES, out.len())?;
    if x.iter().any(|x| !x.is_finite()) {
        return Err(first_non_finite(0, x));
    }
    for (x, [scale, block @ ..]) in
        x.as_chunks::<MX_BLOCK>().0.iter().zip(out.as_chunks_mut::<MXFP4_BLOCK_BYTES>().0)
    {
        let mut largest = [0.0];
        abs_max_blocks_into(x, MX_BLOCK, &mut largest);
        *scale = ((largest[0].to_bits() >> 23) as u8).saturating_sub(2);
        let factor = E8M0::from_bits(254 - *scale).to_f32();
        for (j, byte) in block.iter_mut().enumerate() {
            *byte = code_toward_zero(x[j] * factor) | code_toward_zero(x[j + HALF] * factor) << 4;
        }
    }
    Ok(())
}

/// The bytes of a matrix as ggml's blocks, `[rows, cols / 64, 36]`. The scale of the tensor is not among them.
///
/// # Errors
///
/// [`Error::BlockAlign`] if rows are no multiple of 64 elements.
pub fn nvfp4_to_blocks<C: AsRef<[u8]>, S: AsRef<[u8]>>(
    tensor: &NvFp4Tensor<C, S>,
) -> Result<Vec<u8>> {
    let n_bytes = nvfp4_bytes(tensor.shape())?;
    let mut out = Vec::with_capacity(n_bytes);
    let codes = tensor.codes().as_chunks::<{ NVFP4_BLOCK_ELEMENTS / 2 }>().0;
    for (codes, scales) in codes.iter().zip(tensor.scales().as_chunks::<4>().0) {
        out.extend(scales);
        for codes in codes.as_chunks::<NVFP4_HALF>().0 {
            out.extend(
                (0..NVFP4_HALF).map(|j| nibble(codes, j) | nibble(codes, j + NVFP4_HALF) << 4),
            );
        }
    }
    Ok(out)
}

/// A matrix of `shape` from ggml's blocks, `[rows, cols / 64, 36]`, and the scale of the tensor, which ggml keeps as a factor.
///
/// # Errors
///
/// [`Error::BlockAlign`], [`Error::Length`] if `bytes` is too short or too long, [`Error::BadScale`] as
/// [`NvFp4Tensor::new`], [`Error::TooLarge`].
pub fn nvfp4_from_blocks(
    bytes: &[u8],
    shape: [usize; 2],
    global: GlobalScale,
) -> Result<NvFp4Tensor> {
    Error::check_length("bytes", nvfp4_bytes(shape)?, bytes.len())?;
    let [n_codes, n_scales] = nvfp4::lengths(shape)?;
    let (mut codes, mut scales) = (Vec::with_capacity(n_codes), Vec::with_capacity(n_scales));
    for [a, b, c, d, block @ ..] in bytes.as_chunks::<NVFP4_BLOCK_BYTES>().0 {
        scales.extend([a, b, c, d]);
        for packed in block.as_chunks::<NVFP4_HALF>().0 {
            let (pairs, _) = packed.as_chunks::<2>();
            codes.extend(pairs.iter().map(|[a, b]| (a & 0xf) | b << 4));
            codes.extend(pairs.iter().map(|[a, b]| a >> 4 | (b & 0xf0)));
        }
    }
    NvFp4Tensor::new(shape, codes, scales, global)
}

/// Bytes of the codes of a scale.
const NVFP4_HALF: usize = NVFP4_BLOCK / 2;

/// Bytes of the blocks of a matrix.
fn nvfp4_bytes(shape: [usize; 2]) -> Result<usize> {
    if !shape[1].is_multiple_of(NVFP4_BLOCK_ELEMENTS) {
        return Err(Error::BlockAlign { len: shape[1], block: NVFP4_BLOCK_ELEMENTS });
    }
    let [_, n_scales] = nvfp4::lengths(shape)?;
    Ok(n_scales / 4 * NVFP4_BLOCK_BYTES)
}

/// Element `i` of a block with neighbors in a byte.
fn nibble(codes: &[u8], i: usize) -> u8 {
    codes[i / 2] >> (4 * (i % 2)) & 0xf
}

/// Half way between neighboring magnitudes of E2M1.
const TIES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// The nearest E2M1 code, ties to the smaller magnitude, zero without sign.
fn code_toward_zero(x: f32) -> u8 {
    let magnitude = TIES.iter().filter(|&&tie| x.abs() > tie).count() as u8;
    if magnitude > 0 && x < 0.0 { magnitude | 0x8 } else { magnitude }
}

//! The tensors of one quantized layer: looked for, held against the shape of the layer, and handed on where they lie.

use squish_checkpoint::{Checkpoint, Dtype, TensorView};
use squish_quant::{
    Activation, Fp8Format, Fp8Tensor, Granularity, IntFormat, IntTensor, IntView, MxFormat, MxView,
    ScaleBytes, Verify, Weights,
    compressed_tensors::{IntQuantized, PackQuantized},
};

use crate::{Error, Packed};

/// Name of a tensor of panels, after that of its layer.
pub(crate) const PANELS: &str = "weight_panels";

/// How the weights of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// As floats.
    Dense,
    /// Codes of E4M3 with scales of a name of their own.
    Fp8 { granularity: Granularity, scales: &'static str },
    /// Integers in words of 32 bits.
    PackedInt { format: IntFormat, granularity: Granularity, has_zero_points: bool },
    /// Integers, a byte each.
    Int { granularity: Granularity, has_zero_points: bool },
    /// E2M1 with E8M0 scales.
    MxFp4,
    /// The same under other names, blocks on an axis of their own.
    MxFp4Blocks,
    /// What products read.
    Panels,
}

impl Scheme {
    /// Names of tensors that hold codes, after that of their layer.
    pub(super) const CODES: [&str; 4] = ["weight", "weight_packed", "weight_blocks", PANELS];
}

/// What is read of which layer.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) module: &'a str,
    /// Outputs and inputs.
    pub(super) shape: [usize; 2],
}

impl<'a> Reader<'a> {
    /// What `f` makes of the weights, which are not dense.
    pub(super) fn read<R>(
        self,
        scheme: Scheme,
        f: impl FnOnce(Weights<'_>) -> Result<R, squish_quant::Error>,
    ) -> Result<R, Error> {
        let [rows, cols] = self.shape;
        match scheme {
            Scheme::Dense => unreachable!("dense weights are read as they are"),
            Scheme::Fp8 { granularity, scales } => {
                let codes = self.tensor("weight", Dtype::F8E4M3, &[rows, cols])?;
                let view = self.scales(granularity, scales)?;
                let scales = scale_bytes(&view)?;
                let (format, codes) = (Fp8Format::E4M3, codes.bytes());
                Fp8Tensor::from_bytes(format, granularity, self.shape, codes, scales)
                    .and_then(|tensor| f((&tensor).into()))
                    .map_err(Error::pack(&self.name("weight")))
            }
            Scheme::PackedInt { format, granularity, has_zero_points } => {
                self.packed_int(format, granularity, has_zero_points, f)
            }
            Scheme::Int { granularity, has_zero_points } => {
                let codes = self.tensor("weight", Dtype::I8, &[rows, cols])?;
                let view = self.scales(granularity, "weight_scale")?;
                let zero_points = has_zero_points
                    .then(|| self.zero_points(granularity, view.shape()))
                    .transpose()?;
                let tensor = IntQuantized {
                    granularity,
                    shape: self.shape,
                    weight: codes.bytes(),
                    weight_scale: scale_bytes(&view)?,
                    scale_shape: self.scales_shape(granularity)?,
                    weight_zero_point: zero_points.as_ref().map(TensorView::bytes),
                };
                tensor
                    .read()
                    .and_then(|tensor| f((&tensor).into()))
                    .map_err(Error::pack(&self.name("weight")))
            }
            Scheme::MxFp4 => {
                let codes = self.tensor("weight_packed", Dtype::U8, &[rows, cols.div_ceil(2)])?;
                let scales = self.mx_scales("weight_scale")?;
                self.mx("weight_packed", codes.bytes(), scales.bytes(), f)
            }
            Scheme::MxFp4Blocks => {
                let blocks = [rows, cols.div_ceil(32), 16];
                let codes = self.tensor("weight_blocks", Dtype::U8, &blocks)?;
                let scales = self.mx_scales("weight_scales")?;
                self.mx("weight_blocks", codes.bytes(), scales.bytes(), f)
            }
            Scheme::Panels => Err(Error::Panels {
                tensor: self.name(PANELS),
                actual: "products".to_owned(),
                asked: "weights as numbers".to_owned(),
            }),
        }
    }

    /// The panels, where they lie.
    pub(super) fn panels(
        self,
        activation: Option<Activation>,
        verify: Verify,
    ) -> Result<Packed, Error> {
        let tensor = self.name(PANELS);
        let bytes = self.checkpoint.shared(&tensor)?;
        let info = self.checkpoint.get(&tensor).expect("it was just found");
        info.expect_dtype(Dtype::U8)?;
        let packed = Packed::from_saved(bytes, verify).map_err(Error::pack(&tensor))?;
        let (expected, actual) = (self.shape, packed.shape());
        if expected != actual {
            let error = squish_quant::Error::Shape { what: "panels", expected, actual };
            return Err(Error::Pack { tensor, error });
        }
        match activation {
            Some(asked) if asked != packed.activation() => {
                let inputs = |activation: Activation| format!("inputs in {}", activation.name());
                let (actual, asked) = (inputs(packed.activation()), inputs(asked));
                Err(Error::Panels { tensor, actual, asked })
            }
            _ => Ok(packed),
        }
    }

    fn packed_int<R>(
        self,
        format: IntFormat,
        granularity: Granularity,
        has_zero_points: bool,
        f: impl FnOnce(Weights<'_>) -> Result<R, squish_quant::Error>,
    ) -> Result<R, Error> {
        let order = self.name("weight_g_idx");
        if self.checkpoint.get(&order).is_some() {
            let (field, supported) = ("weight_g_idx", "groups in the order of the columns");
            return Err(Error::Unsupported { field, actual: order, supported });
        }
        let ([rows, cols], bits) = (self.shape, format.bits());
        self.check_shape()?;
        let words = [rows, (cols * bits).div_ceil(32)];
        let codes = self.tensor("weight_packed", Dtype::I32, &words)?;
        let view = self.scales(granularity, "weight_scale")?;
        let scale_shape = self.scales_shape(granularity)?;
        // The library packs no zero point of a whole tensor.
        let is_apart = has_zero_points && granularity == Granularity::Tensor;
        let zero_points = if is_apart {
            Some(self.zero_points(granularity, view.shape())?)
        } else if has_zero_points {
            let words = [(rows * bits).div_ceil(32), scale_shape[1]];
            Some(self.tensor("weight_zero_point", Dtype::I32, &words)?)
        } else {
            None
        };
        let packed = PackQuantized {
            format,
            granularity,
            shape: self.shape,
            weight_packed: codes.bytes(),
            weight_scale: scale_bytes(&view)?,
            scale_shape,
            weight_zero_point: zero_points.as_ref().filter(|_| !is_apart).map(TensorView::bytes),
        };
        let zero_point =
            zero_points.as_ref().filter(|_| is_apart).map(|view| view.bytes()[0] as i8);
        let use_tensor = |tensor: IntView<'_>| {
            let Some(zero_point) = zero_point else { return f(Weights::Int(tensor)) };
            let (codes, scales) = (tensor.codes(), tensor.scales());
            let zero_points = Some([zero_point]);
            IntTensor::new(format, granularity, self.shape, codes, scales, zero_points)
                .and_then(|tensor| f((&tensor).into()))
        };
        packed
            .read()
            .and_then(|tensor| use_tensor(tensor.view()))
            .map_err(Error::pack(&self.name("weight_packed")))
    }

    fn mx<R>(
        self,
        name: &str,
        codes: &[u8],
        scales: &[u8],
        f: impl FnOnce(Weights<'_>) -> Result<R, squish_quant::Error>,
    ) -> Result<R, Error> {
        MxView::new(MxFormat::MxFp4, self.shape, codes, scales)
            .and_then(|view| f(Weights::Mx(view)))
            .map_err(Error::pack(&self.name(name)))
    }

    fn name(self, part: &str) -> String {
        format!("{}.{part}", self.module)
    }

    fn view(self, part: &str) -> Result<TensorView<'a>, Error> {
        Ok(self.checkpoint.tensor(&self.name(part))?)
    }

    fn tensor(self, part: &str, dtype: Dtype, shape: &[usize]) -> Result<TensorView<'a>, Error> {
        Ok(self.view(part)?.expect_shape(shape)?.expect_dtype(dtype)?)
    }

    /// Scales of a granularity, of whatever type.
    fn scales(self, granularity: Granularity, part: &str) -> Result<TensorView<'a>, Error> {
        let view = self.view(part)?;
        let expected = match granularity {
            Granularity::Tensor if view.shape().is_empty() => return Ok(view),
            Granularity::Tensor => vec![1],
            _ => self.scales_shape(granularity)?.to_vec(),
        };
        Ok(view.expect_shape(&expected)?)
    }

    fn scales_shape(self, granularity: Granularity) -> Result<[usize; 2], Error> {
        let shape = granularity.scales_shape(self.shape);
        shape.map_err(Error::pack(&self.name("weight")))
    }

    /// Zero points of a byte each, as many as scales.
    fn zero_points(
        self,
        granularity: Granularity,
        scale_shape: &[usize],
    ) -> Result<TensorView<'a>, Error> {
        let shape = if granularity == Granularity::Tensor { &[1][..] } else { scale_shape };
        self.tensor("weight_zero_point", Dtype::I8, shape)
    }

    fn mx_scales(self, part: &str) -> Result<TensorView<'a>, Error> {
        let [rows, cols] = self.shape;
        let view = self.view(part)?.expect_shape(&[rows, cols.div_ceil(32)])?;
        match view.dtype() {
            Dtype::U8 | Dtype::F8E8M0 => Ok(view),
            _ => Ok(view.expect_dtype(Dtype::U8)?),
        }
    }

    /// What `weight_shape` says is what the model needs.
    fn check_shape(self) -> Result<(), Error> {
        let view = self.tensor("weight_shape", Dtype::I64, &[2])?;
        let numbers = view.bytes().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes));
        let actual: Vec<_> = numbers.map(|n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        if actual == self.shape {
            return Ok(());
        }
        let (tensor, expected) = (self.name("weight_shape"), self.shape.to_vec());
        Err(squish_checkpoint::Error::Shape { tensor, expected, actual }.into())
    }
}

fn scale_bytes<'a>(view: &'a TensorView<'_>) -> Result<ScaleBytes<'a>, Error> {
    let bytes = view.bytes();
    match view.dtype() {
        Dtype::F32 => Ok(ScaleBytes::F32(bytes)),
        Dtype::BF16 => Ok(ScaleBytes::Bf16(bytes)),
        Dtype::F16 => Ok(ScaleBytes::F16(bytes)),
        Dtype::F8E8M0 => Ok(ScaleBytes::E8M0(bytes)),
        actual => Err(Error::Dtype { tensor: view.name().to_owned(), actual }),
    }
}

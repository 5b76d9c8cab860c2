//! One scale for the inputs of each matrix: what a product with static scales rounds them to.
//!
//! ```text
//! x' = s · round(x / s)        saturating
//! ```
//!
//! Source: compressed-tensors 0.20, `input_scale` of strategy `tensor`.

use std::collections::HashMap;

use squish_quant::{Method, Target, ndarray::ArrayViewMut2};

use super::Calibration;
use crate::{Error, Rounding, Site};

/// A scale for each site, and the format that numbers are rounded to with it. As a [`Rounding`] it leaves the inputs of sites that it has no
/// scale for alone.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticScales {
    scales: HashMap<Site, f32>,
    target: Target,
}

impl StaticScales {
    /// The scales that `method` makes of what was recorded, all channels of a site as one.
    ///
    /// # Errors
    ///
    /// [`Error::Pack`] of a site whose inputs were never finite, or of a percentile or a search that is none.
    pub fn new(calibration: &Calibration, method: Method, target: Target) -> Result<Self, Error> {
        let scale = |(site, inputs): (&Site, &super::Inputs)| {
            let mut scale = [0.0];
            match inputs.all.scales_into(method, target, &mut scale) {
                Ok(()) => Ok((*site, scale[0])),
                Err(error) => Err(Error::pack(&site.projection.module(site.layer))(error)),
            }
        };
        let scales = calibration.sites.iter().map(scale).collect::<Result<_, _>>()?;
        Ok(Self { scales, target })
    }

    /// The scale of a site, of matrices that share an input that of the first; none of one that was not recorded.
    pub fn scale(&self, site: Site) -> Option<f32> {
        self.scales.get(&site).copied()
    }

    /// The format.
    pub fn target(&self) -> Target {
        self.target
    }
}

impl Rounding for StaticScales {
    fn round(&self, site: Site, mut x: ArrayViewMut2<'_, f32>) {
        if let Some(scale) = self.scale(site) {
            x.mapv_inplace(|x| scale * self.target.round(x / scale));
        }
    }
}

//! How many numbers a model has, and the memory that they will take, without loading them.

use squish_quant::Dense;

use crate::{Config, Error, LoadOptions, Projection, format::packed_sizes};

impl Config {
    /// Weights, biases and norms, the embedding included and counted once if it is the head, too.
    pub fn n_parameters(&self) -> usize {
        let size = |projection: Projection| projection.shape(self).into_iter().product::<usize>();
        let bias = |projection: Projection| {
            if projection.has_bias(self) { projection.shape(self)[0] } else { 0 }
        };
        let of_layer: usize = Projection::OF_LAYER
            .into_iter()
            .map(|projection| size(projection) + bias(projection))
            .sum();
        let norms = self.hidden_size * if self.post_norms { 4 } else { 2 };
        let head_norms = if self.qk_norm { 2 * self.head_dim } else { 0 };
        let n_embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.n_layers() * (of_layer + norms + head_norms)
            + self.hidden_size
            + n_embeddings * size(Projection::Head)
    }

    /// Bytes of all matrices as [`Model::load`](crate::Model::load) packs them from a checkpoint of type `stored`: the memory that a model
    /// takes, but for norms and biases.
    ///
    /// # Errors
    ///
    /// [`Error::Pack`] of a matrix that the format cannot hold.
    pub fn packed_bytes(&self, stored: Dense, options: &LoadOptions) -> Result<usize, Error> {
        let bytes = |projection: Projection| {
            let format =
                if projection == Projection::Head { options.head } else { options.weights };
            let sizes = packed_sizes(stored, projection.shape(self), format, options.activation);
            let [n_bytes, _] = sizes.map_err(Error::pack(&projection.module(0)))?;
            Ok::<_, Error>(n_bytes)
        };
        let of_layer = Projection::OF_LAYER.into_iter().map(bytes).sum::<Result<usize, _>>()?;
        Ok(self.n_layers() * of_layer + bytes(Projection::Head)?)
    }
}

//! Which tensors are written, and what each is made of: known before the first is.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use squish_checkpoint::TensorSpec;

use super::{
    QuantizeOptions, Report, SavedLayout, Source,
    matrix::{Matrix, Part, Sink},
};
use crate::{
    Config, Error, Projection, TensorSource, WeightFormat,
    model::{EMBEDDING, HEAD},
    quantized::VERSION,
};

/// What becomes of a checkpoint.
#[derive(Debug)]
pub(super) struct Plan {
    specs: Vec<TensorSpec>,
    /// Of each tensor that is not copied the matrix and which part of it that is.
    made: HashMap<String, (usize, Part)>,
    matrices: Vec<Matrix>,
    /// How the matrices of layers are described, one of each kind, and the head.
    schemes: Vec<(Projection, Value)>,
    report: Report,
}

impl Plan {
    pub(super) fn new(
        source: Source<'_>,
        config: &Config,
        options: QuantizeOptions,
    ) -> Result<Self, Error> {
        let mut plan = Self {
            specs: Vec::new(),
            made: HashMap::new(),
            matrices: Vec::new(),
            schemes: Vec::new(),
            report: Report::default(),
        };
        for layer in 0..config.n_layers() {
            for projection in Projection::OF_LAYER {
                let module = projection.module(layer);
                let tensor = format!("{module}.weight");
                let shape = projection.shape(config);
                let format = options.format;
                let matrix = Matrix::new(
                    source.tensors(),
                    module,
                    tensor,
                    shape,
                    format,
                    options,
                    source.input_scale(layer, projection),
                )?;
                plan.add(projection, matrix, layer == 0);
            }
        }
        let head = head(source.tensors(), config, options)?;
        plan.add(Projection::Head, head, true);

        let by_tensor: HashMap<&str, usize> =
            plan.matrices.iter().enumerate().map(|(i, matrix)| (&*matrix.tensor, i)).collect();
        let mut order: Vec<usize> = Vec::new();
        let is_squish = options.layout == SavedLayout::Squish;
        for info in source.checkpoint {
            plan.report.n_bytes_read += info.n_bytes() as u64;
            let matrix = by_tensor.get(info.name());
            if info.name() == HEAD && config.tie_word_embeddings && is_squish {
                // Nobody reads it, and the embedding as a head takes its name.
                continue;
            }
            // A tied head is made of the embedding, which stays.
            if matrix.is_none() || info.name() == EMBEDDING {
                plan.specs.push(source.spec(info)?);
            }
            order.extend(matrix);
        }
        for idx in order {
            let matrix = &plan.matrices[idx];
            plan.report.n_matrices += 1;
            plan.report.n_weights += matrix.shape.map(|n| n as u64).iter().product::<u64>();
            for (part, spec) in matrix.specs() {
                plan.report.n_matrix_bytes += spec.n_bytes()? as u64;
                plan.made.insert(spec.name.clone(), (idx, part));
                plan.specs.push(spec);
            }
        }
        plan.report.n_tensors = plan.specs.len();
        for spec in &plan.specs {
            plan.report.n_bytes += spec.n_bytes()? as u64;
        }
        Ok(plan)
    }

    fn add(&mut self, projection: Projection, matrix: Option<Matrix>, is_described: bool) {
        let Some(matrix) = matrix else { return };
        if let Some(scheme) = matrix.scheme().filter(|_| is_described) {
            self.schemes.push((projection, scheme));
        }
        self.matrices.push(matrix);
    }

    /// The tensors, those of a layer together.
    pub(super) fn specs(&self) -> Vec<TensorSpec> {
        self.specs.clone()
    }

    pub(super) fn report(&self) -> Report {
        self.report
    }

    /// Hands the bytes of a tensor to `sink`.
    pub(super) fn write(
        &self,
        source: Source<'_>,
        name: &str,
        sink: &mut Sink<'_>,
    ) -> Result<(), Error> {
        match self.made.get(name) {
            Some(&(idx, part)) => self.matrices[idx].write(source.tensors(), part, sink),
            None => source.write(name, sink),
        }
    }

    /// What `config.json` is to say about it; none of weights that are floats.
    pub(super) fn quantization_config(&self, options: QuantizeOptions) -> Option<Value> {
        if options.layout == SavedLayout::Squish {
            return Some(json!({
                "quant_method": "squish",
                "version": VERSION,
                "format": options.format.name(),
                "head": options.head.name(),
                "activation": options.activation.map(squish_quant::Activation::name),
            }));
        }
        let mut groups: Vec<(&Value, Vec<Projection>)> = Vec::new();
        for (projection, scheme) in &self.schemes {
            match groups.iter_mut().find(|(known, _)| known == &scheme) {
                Some((_, projections)) => projections.push(*projection),
                None => groups.push((scheme, vec![*projection])),
            }
        }
        // The largest group has the class as its target. It is the last one: names and patterns count before a class, and
        // compressed-tensors says of those behind it that they match nothing.
        groups.sort_by_key(|(_, projections)| projections.len());
        let n_groups = groups.len();
        let has = |head: bool| {
            self.schemes.iter().any(|(projection, _)| (*projection == Projection::Head) == head)
        };
        let first_format = groups.first()?.0["format"].clone();
        let is_mixed = groups.iter().any(|(scheme, _)| scheme["format"] != first_format);
        let named = groups.into_iter().enumerate().map(|(i, (scheme, projections))| {
            let mut group = scheme.clone();
            group["targets"] = if i + 1 == n_groups && has(false) {
                json!(["Linear"])
            } else {
                projections.into_iter().map(target).collect()
            };
            (format!("group_{i}"), group)
        });
        let ignore: &[&str] = if has(true) { &[] } else { &["lm_head"] };
        Some(json!({
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": if is_mixed { json!("mixed-precision") } else { first_format },
            "config_groups": named.collect::<Map<_, _>>(),
            "ignore": ignore,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        }))
    }
}

/// The head, unless it stays what it is.
fn head(
    source: &dyn TensorSource,
    config: &Config,
    options: QuantizeOptions,
) -> Result<Option<Matrix>, Error> {
    let (module, shape) = (Projection::Head.module(0), Projection::Head.shape(config));
    let format = options.head;
    if !config.tie_word_embeddings {
        return Matrix::new(source, module, HEAD.to_owned(), shape, format, options, None);
    }
    if options.layout == SavedLayout::Squish {
        return Matrix::new(source, module, EMBEDDING.to_owned(), shape, format, options, None);
    }
    if format == WeightFormat::Stored {
        return Ok(None);
    }
    let (field, actual) = ("head", format.name().to_owned());
    let supported = "`stored` of a head that is tied to the embedding, or the layout `squish`";
    Err(Error::Unsupported { field, actual, supported })
}

/// What means a projection of all layers, or the head.
fn target(projection: Projection) -> Value {
    let module = projection.module(0);
    match module.strip_prefix("model.layers.0.") {
        Some(part) => format!(r"re:.*\.{}$", part.replace('.', r"\.")).into(),
        None => module.into(),
    }
}

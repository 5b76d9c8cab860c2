//! Types of keys and values, and heads that share them.

use squish_bench::{Cell, Format, Section, alloc::held_bytes};
use squish_kv::{E4M3, E5M2, GqaCache, KvElement, KvShape, Scaling, bf16, f16};
use squish_model::{Config, DenseTensor, Error, KvType, Projection, TensorSource};

use crate::setup::{Kind, Setup, cells_of, load, ppl};

pub(crate) fn sections(setup: &Setup) -> Vec<Section> {
    vec![types(setup), heads(setup)]
}

fn types(setup: &Setup) -> Section {
    let note = format!(
        "Weights as stored, f32 inputs; keys and values in a type, 8-bit ones with a scale for each row of a head. Compared with f32 on \
         {}. Bytes per token are those that a cache of all layers holds more for a token more, counted by the allocator.",
        setup.texts_note(&Kind::ALL)
    );
    let mut section = Section::new(
        "kv",
        "Types of keys and values",
        note,
        &[
            ("text", Format::Text),
            ("type", Format::Text),
            ("bytes per token", Format::Count),
            ("perplexity", Format::Fixed(3)),
            ("difference", Format::Signed(4)),
            ("mean KL, nats", Format::Scientific),
            ("same top token, %", Format::Percent(2)),
        ],
    );
    let mut runners = KvType::ALL.map(|kv_type| {
        let runner = setup.runner(setup.exact_model(), kv_type);
        (kv_type, bytes_per_token(kv_type, shape(&setup.config)), runner)
    });
    for kind in Kind::ALL {
        let base = {
            let mut runner = setup.runner(setup.exact_model(), KvType::F32);
            setup.logits(&mut runner, kind)
        };
        for (kv_type, n_bytes, runner) in &mut runners {
            let report = setup.compare(runner, kind, &base);
            let kl = report.kl.mean.value;
            assert!(kl < 0.05, "{kv_type} keys and values: {kl} nats");
            let names: [Cell; 2] = [kind.name().into(), kv_type.name().into()];
            section.push(names.into_iter().chain([Cell::from(*n_bytes)]).chain(cells_of(&report)));
        }
    }
    section
}

fn heads(setup: &Setup) -> Section {
    let (few, kind) = (&setup.config, Kind::Prose);
    let mut many = few.clone();
    many.n_kv_heads = few.n_heads;
    let n_tokens = setup.effort.context;
    let note = format!(
        "The model as it is, with {} heads of keys and values for {} of queries, and the same model with a copy of its head of keys and \
         values for each head of queries, as a model without sharing would have them: the memory is what sharing saves, the perplexity \
         shows that both compute the same. Bytes as the allocator counts them, those of {n_tokens} tokens with what a cache has beside its \
         rows; bf16 keys and values. Perplexity on {}.",
        few.n_kv_heads,
        few.n_heads,
        setup.texts_note(&[kind])
    );
    let mut section = Section::new(
        "gqa",
        "Heads of queries that share keys and values",
        note,
        &[
            ("heads of keys and values", Format::Count),
            ("bytes per token", Format::Count),
            (&format!("bytes of {n_tokens} tokens"), Format::Count),
            ("times the bytes", Format::Fixed(2)),
            ("perplexity, prose", Format::Fixed(3)),
        ],
    );
    let kv_type = KvType::Bf16;
    let own_heads = OwnHeads { setup, config: &many };
    let sources: [(&Config, &dyn TensorSource); 2] = [(few, setup.source()), (&many, &own_heads)];
    let rows = sources.map(|(config, source)| {
        let mut runner = setup.runner(load(source, config), kv_type);
        let nll = setup.nll(&mut runner, kind);
        (config.n_kv_heads, cache_bytes(kv_type, shape(config), n_tokens), nll)
    });
    for ((n_heads, n_bytes, nll), config) in rows.into_iter().zip([few, &many]) {
        // Every score and every sum is over the same numbers in the same order.
        assert_eq!(nll, rows[0].2, "{n_heads} heads of keys and values");
        section.push([
            n_heads.into(),
            bytes_per_token(kv_type, shape(config)).into(),
            n_bytes.into(),
            (n_bytes as f64 / rows[0].1 as f64).into(),
            ppl(nll).into(),
        ]);
    }
    section
}

/// The checkpoint with a head of keys and values for each head of queries.
struct OwnHeads<'a> {
    setup: &'a Setup,
    config: &'a Config,
}

impl TensorSource for OwnHeads<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, Error> {
        let (source, shared) = (self.setup.source(), &self.setup.config);
        if !name.ends_with("k_proj.weight") && !name.ends_with("v_proj.weight") {
            return source.tensor(name, shape);
        }
        let tensor = source.tensor(name, &Projection::K.shape(shared))?;
        let n_copies = self.config.n_kv_heads / shared.n_kv_heads;
        let heads = tensor.bytes().chunks_exact(tensor.bytes().len() / shared.n_kv_heads);
        let bytes = heads.flat_map(|head| head.repeat(n_copies)).collect();
        Ok(DenseTensor::new(tensor.dense(), bytes))
    }

    fn has(&self, name: &str) -> bool {
        self.setup.source().has(name)
    }
}

fn shape(config: &Config) -> KvShape {
    KvShape::new(config.n_layers(), config.n_kv_heads, config.head_dim)
}

/// Bytes that a cache holds more for a token more.
fn bytes_per_token(kv_type: KvType, shape: KvShape) -> usize {
    let [few, many] = [1024, 2048].map(|capacity| cache_bytes(kv_type, shape, capacity));
    assert_eq!((many - few) % 1024, 0, "{kv_type}: a cache grows by whole tokens");
    (many - few) / 1024
}

/// Bytes of a cache with room for so many tokens.
fn cache_bytes(kv_type: KvType, shape: KvShape, capacity: usize) -> usize {
    fn of<E: KvElement>(shape: KvShape, capacity: usize) -> usize {
        let (cache, n_bytes) = held_bytes(|| GqaCache::<E>::new(shape, capacity, Scaling::Dynamic));
        drop(cache.expect("room"));
        usize::try_from(n_bytes).expect("a cache holds memory")
    }
    match kv_type {
        KvType::F32 => of::<f32>(shape, capacity),
        KvType::Bf16 => of::<bf16>(shape, capacity),
        KvType::F16 => of::<f16>(shape, capacity),
        KvType::Int8 => of::<i8>(shape, capacity),
        KvType::Fp8E4M3 => of::<E4M3>(shape, capacity),
        KvType::Fp8E5M2 => of::<E5M2>(shape, capacity),
        _ => panic!("{kv_type} is new here"),
    }
}

//! A transformer of two layers that knows where documents begin.

use tch::nn::{self, Module};
use tch::{Kind, Tensor};

use crate::{ROW, VOCABULARY};

const WIDTH: i64 = 96;
const HEADS: i64 = 4;
const LAYERS: usize = 2;

/// Token ids to logits of the next token.
pub(crate) struct Network {
    tokens: nn::Embedding,
    positions: nn::Embedding,
    layers: Vec<Layer>,
    norm: nn::LayerNorm,
    logits: nn::Linear,
}

struct Layer {
    norms: [nn::LayerNorm; 2],
    attend: nn::Linear,
    attended: nn::Linear,
    wide: nn::Linear,
    narrow: nn::Linear,
}

impl Network {
    pub(crate) fn new(path: &nn::Path) -> Self {
        let small = nn::EmbeddingConfig { ws_init: nn::Init::Randn { mean: 0.0, stdev: 0.02 }, ..Default::default() };
        Self {
            tokens: nn::embedding(path / "tokens", VOCABULARY, WIDTH, small),
            positions: nn::embedding(path / "positions", ROW as i64, WIDTH, small),
            layers: (0..LAYERS).map(|number| Layer::new(&(path / "layers" / number))).collect(),
            norm: norm(&(path / "norm")),
            logits: nn::linear(path / "logits", WIDTH, VOCABULARY, Default::default()),
        }
    }

    /// Ids, positions and segments `i64 [batch, length]` -> logits `f32 [batch, length, VOCABULARY]`.
    ///
    /// A token sees those before it that are of its document. Padding is a segment of its own, so no token is without any to see.
    pub(crate) fn forward(&self, ids: &Tensor, positions: &Tensor, segments: &Tensor) -> Tensor {
        let length = ids.size()[1];
        let before = Tensor::ones([length, length], (Kind::Bool, ids.device())).tril(0);
        let same = segments.unsqueeze(2).eq_tensor(&segments.unsqueeze(1));
        let seen = same.logical_and(&before).unsqueeze(1); // [batch, 1, from, to]
        let x = self.tokens.forward(ids) + self.positions.forward(positions);
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x, &seen));
        x.apply(&self.norm).apply(&self.logits)
    }
}

impl Layer {
    fn new(path: &nn::Path) -> Self {
        let linear = |name: &str, from, to| nn::linear(path / name, from, to, Default::default());
        Self {
            norms: ["norm_attend", "norm_wide"].map(|name| norm(&(path / name))),
            attend: linear("attend", WIDTH, 3 * WIDTH),
            attended: linear("attended", WIDTH, WIDTH),
            wide: linear("wide", WIDTH, 4 * WIDTH),
            narrow: linear("narrow", 4 * WIDTH, WIDTH),
        }
    }

    fn forward(&self, x: Tensor, seen: &Tensor) -> Tensor {
        let size = x.size();
        let heads = |part: &Tensor| part.view([size[0], size[1], HEADS, WIDTH / HEADS]).transpose(1, 2);
        let parts = x.apply(&self.norms[0]).apply(&self.attend).chunk(3, 2);
        let [query, key, value] = [0, 1, 2].map(|part| heads(&parts[part].contiguous()));
        let mixed = Tensor::scaled_dot_product_attention(&query, &key, &value, Some(seen), 0.0, false, None, false);
        let x = x + mixed.transpose(1, 2).reshape(&size).apply(&self.attended);
        let wide = x.apply(&self.norms[1]).apply(&self.wide).gelu("none");
        x + wide.apply(&self.narrow)
    }
}

fn norm(path: &nn::Path) -> nn::LayerNorm {
    nn::layer_norm(path, vec![WIDTH], Default::default())
}

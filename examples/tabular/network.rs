//! Embedded ids and scaled measurements, joined by two layers; what a user and an item have in common is a product.

use tch::Tensor;
use tch::nn::{self, Module};

use crate::Inputs;
use crate::visits::{IDS, MEASUREMENTS};

const WIDTH: i64 = 8;
const HIDDEN: i64 = 32;

/// Means and deviations of the measurements, `f32 [measurements]`.
pub(crate) struct Scale {
    pub(crate) mean: Tensor,
    pub(crate) deviation: Tensor,
}

pub(crate) struct Network {
    scale: Scale,
    embeddings: Vec<nn::Embedding>,
    hidden: nn::Linear,
    score: nn::Linear,
}

impl Network {
    pub(crate) fn new(path: &nn::Path, scale: Scale) -> Self {
        let to_device = |tensor: Tensor| tensor.to_device(path.device());
        let small = nn::EmbeddingConfig { ws_init: nn::Init::Randn { mean: 0.0, stdev: 0.3 }, ..Default::default() };
        let inputs = WIDTH * (IDS.len() as i64 + 1) + MEASUREMENTS.len() as i64 + 1;
        Self {
            scale: Scale { mean: to_device(scale.mean), deviation: to_device(scale.deviation) },
            embeddings: IDS.iter().map(|(name, ids)| nn::embedding(path / *name, *ids, WIDTH, small)).collect(),
            hidden: nn::linear(path / "hidden", inputs, HIDDEN, Default::default()),
            score: nn::linear(path / "score", HIDDEN, 1, Default::default()),
        }
    }

    /// Scores `f32 [batch]`: above 0 where buying is likelier than not.
    pub(crate) fn forward(&self, inputs: &Inputs) -> Tensor {
        let ids = inputs.ids.unbind(1);
        let mut parts: Vec<Tensor> = self.embeddings.iter().zip(&ids).map(|(table, ids)| table.forward(ids)).collect();
        parts.push(&parts[0] * &parts[1]);
        parts.push((&inputs.measurements - &self.scale.mean) / &self.scale.deviation);
        parts.push(inputs.is_present.unsqueeze(1));
        Tensor::cat(&parts, 1).apply(&self.hidden).relu().apply(&self.score).squeeze_dim(1)
    }
}

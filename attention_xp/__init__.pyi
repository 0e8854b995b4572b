from attention_xp import (
    biases as biases,
    cache as cache,
    distributed as distributed,
    interop as interop,
    linear as linear,
    masks as masks,
    viz as viz,
)
from attention_xp._alibi import alibi_slopes
from attention_xp._attention import flash_attention, scaled_dot_product_attention
from attention_xp._attention_scores import attention_scores
from attention_xp._explain import Explanation, explain
from attention_xp._gradients import attention_gradients
from attention_xp._merge import merge_attention
from attention_xp._multi_head import multi_head_attention, multi_head_self_attention
from attention_xp._multi_head_params import MultiHeadParams, init_multi_head_params
from attention_xp._normalization import layer_normalization
from attention_xp._positional import learned_positional_encoding, positional_encoding
from attention_xp._progress import progress
from attention_xp._random.draws import dropout
from attention_xp._rotary.axial import axial_rotary_embedding
from attention_xp._rotary.cache import RotaryCache, rotary_cache
from attention_xp._rotary.embedding import rotary_embedding
from attention_xp._rotary.long import Llama3Scaling, LongRopeScaling, YarnScaling
from attention_xp._rotary.scaling import DynamicNTKScaling, LinearScaling, NTKScaling
from attention_xp._rotary.weights import permute_rotary_weights
from attention_xp._self_attention import cross_attention, self_attention
from attention_xp._softmax import softmax
from attention_xp._statistics import AttentionStatistics, attention_statistics
from attention_xp._varlen import varlen_attention
from attention_xp._visualization import attention_score_visualization
from attention_xp._vjp import AttentionGradients, attention_vjp
from attention_xp.masks._arrays import create_causal_mask, create_look_ahead_mask, create_padding_mask

__version__: str

sdp_attention = scaled_dot_product_attention
mha = multi_head_attention
self_attn = self_attention
cross_attn = cross_attention
pos_encoding = positional_encoding
causal_mask = create_causal_mask
padding_mask = create_padding_mask

__all__ = [
    "AttentionGradients",
    "AttentionStatistics",
    "DynamicNTKScaling",
    "Explanation",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MultiHeadParams",
    "NTKScaling",
    "RotaryCache",
    "YarnScaling",
    "__version__",
    "alibi_slopes",
    "attention_gradients",
    "attention_score_visualization",
    "attention_scores",
    "attention_statistics",
    "attention_vjp",
    "axial_rotary_embedding",
    "biases",
    "cache",
    "causal_mask",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "cross_attention",
    "cross_attn",
    "distributed",
    "dropout",
    "explain",
    "flash_attention",
    "init_multi_head_params",
    "interop",
    "layer_normalization",
    "learned_positional_encoding",
    "linear",
    "masks",
    "merge_attention",
    "mha",
    "multi_head_attention",
    "multi_head_self_attention",
    "padding_mask",
    "permute_rotary_weights",
    "pos_encoding",
    "positional_encoding",
    "progress",
    "rotary_cache",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "sdp_attention",
    "self_attention",
    "self_attn",
    "softmax",
    "varlen_attention",
    "viz",
]

"""Functions that only move values: autograd carries relevance as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .call import Call
from .registry import kind


@kind(
    "routing",
    # shapes and views
    *"view reshape permute transpose t T.get mT.get H.get mH.get swapaxes swapdims movedim moveaxis flatten".split(),
    *"unflatten ravel squeeze unsqueeze view_as reshape_as expand expand_as broadcast_to broadcast_tensors".split(),
    *"atleast_1d atleast_2d atleast_3d as_strided contiguous clone alias _unsafe_view rename refine_names".split(),
    *"align_to names positive conj resolve_conj resolve_neg real.get imag.get view_as_real view_as_complex".split(),
    # joining and taking apart
    *"cat concat concatenate stack hstack vstack dstack row_stack column_stack split chunk tensor_split hsplit".split(),
    *"vsplit dsplit split_with_sizes unsafe_split unsafe_chunk unbind block_diag meshgrid cartesian_prod".split(),
    # indexing and copying
    *"__getitem__ __setitem__ select narrow index index_select gather take take_along_dim masked_select".split(),
    *"scatter index_put index_copy index_fill masked_fill masked_scatter slice_scatter select_scatter copy".split(),
    *"diagonal_scatter fill zero where tril triu diag diagonal diag_embed diagflat unfold im2col repeat".split(),
    *"repeat_interleave tile flip fliplr flipud roll rot90 pad constant_pad_nd channel_shuffle pixel_shuffle".split(),
    *"requires_grad_ pixel_unshuffle native_channel_shuffle __iter__ __reversed__ to_dense".split(),
    *"_pack_padded_sequence _pad_packed_sequence pad_sequence".split(),
    # type and device
    *"to type float double half bfloat16 type_as cuda cpu to_mkldnn".split(),
    # the winner takes all
    *"max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split(),
    *"max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d".split(),
    *"fractional_max_pool3d fractional_max_pool2d_with_indices max_unpool1d max_unpool2d max_unpool3d".split(),
    *"max min amax amin maximum minimum fmax fmin topk sort msort kthvalue median nanmedian mode cummax cummin".split(),
    # identity in eval mode
    *"dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout nan_to_num".split(),
    # a soft winner takes all: its gradient is a softmax, which sums to one
    "logsumexp",
)
def routing(call: Call) -> Any:
    if call.name == "logsumexp":
        call.interceptor.send_to_zeros("logsumexp")
    out = call.native()
    if call.interceptor.single_views and call.name in MULTIPLE_VIEWS:
        out = one_by_one(call, out)
    return call.interceptor.tag_routed(call, out)


#: Functions that return several views of one tensor.
MULTIPLE_VIEWS = frozenset("chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind".split())


def one_by_one(call: Call, views: Any) -> Sequence[Tensor]:
    """The same views, each made by a call of its own: autograd forbids writing into those of one call."""
    x = call.activations[0]
    made = [x.as_strided(v.shape, v.stride(), v.storage_offset()) for v in views]
    return tuple(made) if isinstance(views, tuple) else made


@kind(
    "constant",
    *"detach data.get detach_ argmax argmin argsort eq ne lt le gt ge isnan isinf isfinite sign signbit sgn".split(),
    *"floor ceil round trunc fix one_hot bincount histc searchsorted bucketize multinomial bernoulli".split(),
    *"zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full".split(),
    *"new_tensor size dim numel item tolist numpy __len__ __bool__ __int__ __float__ __index__ __contains__".split(),
    *"__array__ __format__ __repr__ __str__ __hash__ __deepcopy__ __reduce_ex__ is_floating_point is_complex".split(),
    *"is_contiguous stride storage_offset data_ptr element_size get_device is_cuda is_nonzero allclose equal".split(),
    *"isclose any all logical_and logical_or logical_not logical_xor nonzero count_nonzero unique __invert__".split(),
    *"is_signed is_same_size ndimension nelement type_check is_inference is_set_to untyped_storage is_neg".split(),
    *"floor_divide _is_view retain_grad register_hook is_shared is_pinned is_coalesced has_names is_conj".split(),
)
def constant(call: Call) -> Any:
    return call.constant()

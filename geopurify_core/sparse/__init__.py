"""Sparse tensors and submanifold convolution in plain torch, compatible with MinkowskiEngine's weights."""

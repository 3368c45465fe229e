"""Models on the meta device run the kernels that CUDA would."""
import pytest
import torch

from debzero.plan import meta_device


@pytest.mark.parametrize(("strides", "fused"), [("straight", True), ("permuted", False)])
def test_attention_is_fused_where_the_masks_strides_allow(strides, fused):
    """torch's own kernels keep nothing of s x s; with other strides it makes two products in fp32 (seen on an H200 with
    T5)."""
    def scaled_dot_product_attention():
        """Only the name counts."""

    query, key, value = (torch.rand(2, 4, 8, 16, requires_grad=True) for _ in range(3))
    mask = torch.rand(1, 4, 8, 8) if strides == "straight" else torch.rand(1, 8, 8, 4).permute(0, 3, 1, 2)
    attended: list = []
    output = meta_device.CudaOnMeta(None, attended.extend).__torch_function__(
        scaled_dot_product_attention, (), (query, key, value), {"attn_mask": mask, "dropout_p": 0.0})
    assert bool(attended) == fused and output.shape == value.shape
    if not fused:
        expected = torch.softmax(query @ key.transpose(-2, -1) / 4 + mask, -1) @ value
        torch.testing.assert_close(output, expected)

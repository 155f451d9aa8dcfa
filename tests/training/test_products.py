"""Products by oneDNN are the products torch gives, and so are their gradients."""

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from moaa_ray.training import products  # noqa: E402
from moaa_ray.training.student import Student  # noqa: E402
from tests.training.students import make_model  # noqa: E402

pytestmark = pytest.mark.skipif(not products._HAS_BOTH, reason="torch has no oneDNN or no MKL here")


def grads(linear, hidden: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    """The product and the gradients of what it is made of, in float64."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
    out = linear(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (2, 5, 3, 7), (1, 1, 4, 4), (3, 33, 64, 96)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, int, int, int], has_bias: bool) -> None:
    torch.manual_seed(0)
    batch, tokens, columns, rows = shape
    hidden, weight = torch.randn(batch, tokens, columns), torch.randn(rows, columns)
    bias = torch.randn(rows) if has_bias else None
    grad = torch.randn(batch, tokens, rows)
    found = grads(products.linear, hidden, weight, bias, grad)
    exact = None if bias is None else bias.double()
    expected = grads(nn.functional.linear, hidden.double(), weight.double(), exact, grad)
    assert len(found) == 3 + has_bias
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_gradient_is_computed_that_nobody_wants() -> None:
    hidden, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    products.linear(hidden, weight).sum().backward()  # the sum's gradient is one number, expanded
    torch.testing.assert_close(weight.grad, hidden.sum(0).expand(2, 3))
    assert hidden.grad is None


@pytest.mark.parametrize("block", [1, 10, 2**21])
def test_a_sum_is_the_same_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_BLOCK", block)
    torch.manual_seed(0)
    left, right, total = torch.randn(6, 11), torch.randn(6, 5), torch.randn(11, 5)
    expected = total + left.t() @ right
    products.add_outer(total, left, right)
    torch.testing.assert_close(total, expected)


def test_columns_of_a_larger_tensor_are_made_dense_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is a thousand times as slow with them; it was, for minutes a step."""
    seen = []
    real = torch.ops.mkldnn._linear_pointwise

    def watched(left: Tensor, right: Tensor, *others) -> Tensor:
        seen.append(right)
        return real(left, right, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", watched)
    left, wide = torch.randn(4, 8), torch.randn(8, 32)
    torch.testing.assert_close(products.product(left, wide[:, 3:9]), left @ wide[:, 3:9])
    torch.testing.assert_close(products.product(left, wide), left @ wide)
    assert [right.is_contiguous() or right.t().is_contiguous() for right in seen] == [True, True]


def test_half_precision_is_left_to_torch() -> None:
    hidden, weight = torch.randn(4, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(hidden, weight).dtype == torch.bfloat16
    assert products.linear(hidden.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16


def test_a_compiled_layer_trains_as_an_uncompiled_one() -> None:
    torch.manual_seed(0)
    layer = products.Linear(nn.Linear(6, 4))
    compiled = torch.compile(layer, dynamic=True)
    for tokens in (5, 9):
        hidden, grad = torch.randn(1, tokens, 6), torch.randn(1, tokens, 4)
        found = []
        for forward in (layer, compiled):
            layer.zero_grad(set_to_none=True)
            forward(hidden).backward(grad)
            found.append([parameter.grad for parameter in layer.parameters()])
        torch.testing.assert_close(found[0], found[1])


def test_every_linear_layer_of_a_student_is_exchanged_and_keeps_its_name() -> None:
    student = Student(make_model("llama"))
    left = [name for name, module in student.blocks.named_modules() if type(module) is nn.Linear]
    assert left == []
    assert isinstance(student.blocks[0].self_attn.q_proj, products.Linear)  # pyright: ignore
    assert "model.model.layers.0.self_attn.q_proj.weight" in dict(student.named_parameters())

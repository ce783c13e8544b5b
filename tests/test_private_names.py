"""What the package relies on beyond documented interfaces, each by name: what fails here is what a new version changed.

Names with an underscore are found in the source, so that none is relied on that is not checked here, and none is
checked that nothing relies on any more.
"""

import ast
import inspect
import weakref
from pathlib import Path

import joblib.externals.loky as loky
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from torch import nn
from torch._C import _autograd
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._dynamo.eval_frame import skip_code
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from inrun_bench.attribution.capture.compiled import graphs_made
from inrun_bench.attribution.capture.trees import modules_of, parameters_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("baselines", "inrun_bench", "tasks")
OF_NAMEDTUPLES = {"_asdict", "_fields", "_make", "_replace"}  # documented in spite of the underscore
DOCUMENTED = {"os._exit"}  # likewise
OF_ANOTHER = {"*._write_table"}  # of another object of the same class: Store.copy_to
CHECKED: set[str] = set()


def relied_on(*names):
    """Say which private names of the source a test is about."""
    CHECKED.update(names)
    return lambda test: test


# --- every name with an underscore that the source takes from elsewhere ---


def private_names(source):
    """Yield dotted names, as far as their first private part, and lines; ``*`` stands for an object of unknown type."""
    tree = ast.parse(source)
    imported = {}  # what a name of the file stands for
    own = {f"*.{name}" for name in defined(tree)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                root = name.partition(".")[0]
                imported |= {root: root} if name == alias.name and not alias.asname else {}
                imported[alias.asname or alias.name] = name
                if any(map(is_private, name.split("."))):
                    yield name, node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root, dot, rest = dotted(node.value).partition(".")
            if f"{root}{dot}{rest}" not in ("self", "cls") and not any(map(is_private, rest.split("."))):
                name = f"{imported[root]}{dot}{rest}.{node.attr}" if root in imported else f"*.{node.attr}"
                if name not in own:
                    yield name, node.lineno
        elif isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            of, name = node.args[:2]
            if isinstance(name, ast.Constant) and is_private(name.value) and dotted(of) != "self":
                yield f"*.{name.value}", node.lineno


def defined(tree):
    """Yield the attributes that the file gives to objects of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
            yield from (field.id for field in fields if isinstance(field, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
            yield node.attr


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in OF_NAMEDTUPLES


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_names_are_found_however_they_are_written():
    source = """
import torch, numpy as np
import scipy.linalg._misc
from torch import nn
from torch.utils._pytree import tree_map
from elsewhere import _hidden
class Own:
    _mine: int
def f(self, x):
    self._kept, x._kept, x._mine = 1, x._kept, x._mine
    torch._foreach_add(x), np._core.f, nn.modules._x.y, x.y._z, self._own, x()._w, x.__class__, x._fields
    getattr(x, "_v"), getattr(x, "v"), self.inner._q, torch._C._autograd.f
"""
    assert {name for name, _ in private_names(source)} == {
        *("scipy.linalg._misc", "torch.utils._pytree.tree_map", "elsewhere._hidden"),
        *("torch._foreach_add", "numpy._core", "torch.nn.modules._x", "torch._C"),
        *("*._z", "*._w", "*._v", "*._q"),
    }


def test_every_private_name_is_checked_here_and_no_other():
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, line in private_names(path.read_text(encoding="utf-8")):
                if name.partition(".")[0] not in PACKAGES and name not in DOCUMENTED | OF_ANOTHER:
                    found.setdefault(name, []).append(f"{path.relative_to(ROOT)}:{line}")
    unchecked = {name: where for name, where in found.items() if name not in CHECKED}
    assert not unchecked, "relied on, but checked by no test of this file"
    stale = CHECKED - found.keys()
    assert not stale, "checked in this file, but no longer relied on"


# --- torch: tensors and autograd ---


@relied_on("sklearn.utils._safe_indexing")
def test_rows_of_anything_are_picked_by_scikit_learn():
    from sklearn.utils import _safe_indexing

    for rows in (np.arange(6).reshape(3, 2), pd.DataFrame({"a": [1, 2, 3]}), csr_array(np.eye(3))):
        picked = _safe_indexing(rows, np.array([2, 0]))
        assert type(picked) is type(rows)
        assert picked.shape == (2, rows.shape[1])
    assert _safe_indexing(["a", "b", "c"], np.array([2, 0])) == ["c", "a"]


@relied_on(
    "torch._foreach_add_",
    "torch._foreach_lerp",
    "torch._foreach_max",
    "torch._foreach_mul",
    "torch._foreach_norm",
    "torch._foreach_sub",
)
def test_foreach_functions_work_on_lists_element_by_element():
    a, b = [torch.ones(2), torch.zeros(1, 3)], [torch.full((2,), 3.0), torch.ones(1, 3)]
    assert_equal(torch._foreach_sub(a, b), [x - y for x, y in zip(a, b, strict=True)])
    assert_equal(torch._foreach_mul(a, b), [x * y for x, y in zip(a, b, strict=True)])
    assert_equal(torch._foreach_mul(a, [2.0] * len(a)), [x * 2.0 for x in a])
    assert_equal(torch._foreach_max(a), [x.max() for x in a])
    assert_equal(torch._foreach_norm(a, 2, dtype=None), [x.norm() for x in a])
    assert_equal(torch._foreach_lerp(a, b, 0.25), [torch.lerp(x, y, 0.25) for x, y in zip(a, b, strict=True)])
    expected = [x + 2 * y for x, y in zip(a, b, strict=True)]
    torch._foreach_add_(a, b, alpha=2.0)
    assert_equal(a, expected)
    torch._foreach_add_(a, b)
    assert_equal(a, [x + y for x, y in zip(expected, b, strict=True)])


@relied_on("*._orig_mod")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, where it is first imported
def test_a_compiled_model_holds_the_model():
    model = nn.Linear(1, 1)
    assert torch.compile(model)._orig_mod is model


@relied_on("*._modules", "*._parameters")
def test_a_module_holds_its_parts_and_parameters_in_two_dicts():
    """What :mod:`inrun_bench.attribution.capture.trees` walks; shared parts are met once, in torch's own order."""
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared, "c": nn.Bilinear(2, 2, 2)})
    model.register_module("none", None)
    model.c.register_parameter("nothing", None)
    model.c.bias = model.a[0].bias
    assert modules_of(model) == list(model.modules())
    assert parameters_of(model) == set(model.parameters())
    assert model.c._parameters["bias"] is shared.bias
    model.c.bias = nn.Parameter(torch.zeros(2))
    assert model.c._parameters["bias"] is model.c.bias


@relied_on("*._post_accumulate_grad_hooks")
def test_hooks_on_accumulated_gradients_are_held_in_the_order_in_which_they_are_called():
    x, called = torch.ones(2, requires_grad=True), []
    first, second = (lambda _: called.append("first")), (lambda _: called.append("second"))
    x.register_post_accumulate_grad_hook(first)
    x.register_post_accumulate_grad_hook(second)
    assert list(x._post_accumulate_grad_hooks.values()) == [first, second]
    x.sum().backward()
    assert called == ["first", "second"]


@relied_on("*._version")
def test_tensors_count_their_changes_in_place_and_share_the_count_with_views():
    x = torch.zeros(3)
    before = x._version
    x + 1, x.clone().add_(1)
    assert x._version == before
    x[0].add_(1)
    assert x._version == x.detach()._version > before


@relied_on("torch._C")
@pytest.mark.parametrize("retain", [True, False])
def test_a_hook_learns_whether_the_backward_pass_retains_its_graph(retain):
    """``torch._C._autograd._get_current_graph_task_keep_graph``."""
    x, told = torch.ones(2, requires_grad=True), []
    y = x * 2
    y.register_hook(lambda _: told.append(torch._C._autograd._get_current_graph_task_keep_graph()))
    y.sum().backward(retain_graph=retain)
    assert told == [retain]


def test_a_function_s_node_gives_back_what_it_saved_through_the_hooks_on_saved_tensors():
    """``Tensor.grad_fn.saved_tensors``, without a backward pass through the node."""

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, flag, x):
            ctx.save_for_backward(x)
            return flag.new_empty(())

    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or 0, lambda _: packed[0] + 1):
        kept = Keep.apply(torch.zeros((), requires_grad=True), torch.ones(2))
    assert len(packed) == 1
    assert_equal(kept.grad_fn.saved_tensors, [torch.full((2,), 2.0)])


def test_operations_without_a_forward_mode_say_so_in_these_words():
    """Told from other errors by ``forward AD``, ``forward-mode`` or ``forward mode`` in the message."""
    with pytest.raises((NotImplementedError, RuntimeError), match=r"forward AD|forward-mode"):
        torch.func.jvp(lambda x: torch.cdist(x, x), (torch.ones(2, 2),), (torch.ones(2, 2),))

    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward AD"):
        torch.cdist(forward_ad.make_dual(torch.ones(2, 2), torch.ones(2, 2)), torch.ones(2, 2))

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode"):
        Same.apply(forward_ad.make_dual(torch.ones(2), torch.ones(2)))


def test_forward_mode_draws_the_mask_of_a_dropout_as_training_does():
    """Unlike ``torch.func.jvp``, which draws another for tensors that are not contiguous."""
    x = torch.rand(4, 5, 6).transpose(0, 1)
    state = torch.get_rng_state()
    expected = functional.dropout(x.clone().requires_grad_(), 0.5).detach()
    torch.set_rng_state(state)
    with torch.no_grad(), forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(functional.dropout(forward_ad.make_dual(x, x), 0.5))
    assert_equal([value, tangent], [expected, expected])


@relied_on("*._base")
def test_a_view_knows_its_base_and_the_gradient_of_what_is_written_into_it_is_the_base_s():
    x, seen = torch.ones(3, requires_grad=True) * 1, []
    view = x[1:]
    assert view._base is x
    assert x._base is None
    view.mul_(2)
    view._base.register_hook(seen.append)
    (3 * x + torch.cat([view, view[:1]])).sum().backward()
    assert_equal(seen, [torch.tensor([3.0, 5.0, 4.0])])


@relied_on("*._forward_cls")
def test_a_custom_function_is_known_by_its_node():
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

    w = nn.Parameter(torch.ones(1))
    y = 2 * w
    made = Same.apply(y)  # up to torch 2.11 a node lives no longer than what it made
    node = made.grad_fn
    assert isinstance(node, torch.autograd.function.BackwardCFunction)
    assert node._forward_cls is Same
    node.metadata["ours"] = True
    assert "ours" in node.metadata
    assert [before for before, _ in node.next_functions] == [y.grad_fn]
    alone = Same.apply(w)
    assert alone.grad_fn.next_functions[0][0].variable is w
    assert checkpoint(torch.tanh, y, use_reentrant=True).grad_fn._forward_cls.__module__.startswith("torch.")


@relied_on("*._optimizer_step_pre_hooks")
def test_an_optimiser_has_hooks_once_it_is_made():
    """``_optimizer_step_pre_hooks``, which tells a wrapper by class alone from an optimiser."""
    kind = torch.optim.SGD
    assert hasattr(kind([torch.zeros(1)], lr=0.1), "_optimizer_step_pre_hooks")
    assert not hasattr(kind.__new__(kind), "_optimizer_step_pre_hooks")


@relied_on("torch._C")
def test_modes_are_counted_as_they_are_entered_and_left():
    """``torch._C._len_torch_function_stack``, ``_get_function_stack_at`` from below, and what pushes and pops."""
    before, mode = torch._C._len_torch_function_stack(), TorchFunctionMode()
    with mode:
        assert torch._C._len_torch_function_stack() == before + 1
        assert torch._C._get_function_stack_at(before) is mode
        assert torch._C._pop_torch_function_stack() is mode
        assert torch._C._len_torch_function_stack() == before
        torch._C._push_on_torch_function_stack(mode)
    assert torch._C._len_torch_function_stack() == before


@relied_on("torch._C")
def test_a_mode_sees_nothing_of_what_is_done_without_it():
    """``torch._C.DisableTorchFunction``."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(1)
    with Watch():
        with torch._C.DisableTorchFunction():
            x + 1, x.requires_grad
        assert not seen
        x + 1
    assert len(seen) == 1


@relied_on("torch._C")
def test_what_governs_saved_tensors_is_one_function_as_long_as_it_does():
    """``torch._C._autograd._top_saved_tensors_default_hooks``: the innermost pair, or None."""
    top = torch._C._autograd._top_saved_tensors_default_hooks
    seen = []

    def segment(x):
        seen.extend([top(True)[0], top(True)[0]])
        return torch.tanh(x)

    assert top(True) is None
    checkpoint(segment, torch.ones(1, requires_grad=True), use_reentrant=False)
    assert seen[0] is seen[1]
    assert top(True) is None


@relied_on("torch._scaled_mm")
def test_scaled_products_take_these_arguments():
    names = [argument.name for argument in torch.ops.aten._scaled_mm.default._schema.arguments]
    assert names[:4] == ["self", "mat2", "scale_a", "scale_b"]
    assert "out_dtype" in names


# --- torch: modes and trees ---


@relied_on(
    "torch.utils._pytree.TreeSpec",
    "torch.utils._pytree.tree_flatten",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_unflatten",
)
def test_trees_are_flattened_in_order_with_none_as_a_leaf_and_put_together_again():
    x = torch.ones(1)
    tree = ((x, [1, None]), {"b": "c", "a": (2.5,)})
    leaves, spec = tree_flatten(tree)
    assert isinstance(spec, TreeSpec)
    assert leaves == tree_leaves(tree) == [x, 1, None, "c", 2.5]
    assert tree_unflatten(leaves, spec) == tree


@relied_on("torch.utils._python_dispatch.TorchDispatchMode")
def test_a_dispatch_mode_sees_each_operation_with_its_tags_those_of_the_backward_pass_included():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.overloadpacket, torch.Tag.nondeterministic_seeded in func.tags))
            return func(*args, **(kwargs or {}))

    x = torch.ones(4, requires_grad=True)
    with Watch():
        functional.dropout(x, 0.5).tanh().sum().backward()
    operations = dict(seen)
    assert not operations[torch.ops.aten.tanh]
    assert not operations[torch.ops.aten.tanh_backward]
    assert any(draws for draws in operations.values())


def test_a_storage_is_one_object_as_long_as_it_lives():
    """Memory is counted by ``id(tensor.untyped_storage())``, and given back when a weak reference to it dies."""
    x = torch.ones(4)
    assert x.untyped_storage() is x[1:].untyped_storage()
    freed = weakref.ref(x.untyped_storage())
    assert freed() is not None
    del x
    assert freed() is None


def test_a_function_mode_is_entered_and_left_by_hand_and_sees_methods_by_name():
    names = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    x, bits, watch = torch.ones(2), torch.ones(2, dtype=torch.int), Watch()
    watch.__enter__()
    x.mul_(2)
    x += 1
    bits |= 2
    functional.relu(x)
    watch.__exit__(None, None, None)
    x.add_(1)
    assert names == ["mul_", "add_", "__ior__", "relu"]
    assert all(hasattr(torch.Tensor, twin) for twin in ("mul", "add", "__or__"))


# --- torch: layers ---


@relied_on("torch.nn.modules.batchnorm._BatchNorm")
def test_batch_norms_and_no_other_norms_have_one_base():
    base = nn.modules.batchnorm._BatchNorm
    coupling = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm1d)
    assert all(issubclass(layer, base) for layer in coupling)
    assert not any(issubclass(layer, base) for layer in (nn.InstanceNorm1d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))


@relied_on("torch.nn.modules.dropout._DropoutNd")
def test_dropouts_have_one_base_and_a_p():
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    assert all(issubclass(kind, nn.modules.dropout._DropoutNd) and kind(0.25).p == 0.25 for kind in kinds)


@relied_on("*._conv_forward")
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_convolution_is_run_with_other_weights_in_its_own_padding_mode(mode):
    layer, other = (nn.Conv1d(2, 3, 3, padding=1, padding_mode=mode, bias=False) for _ in range(2))
    x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    assert_equal([layer._conv_forward(x, other.weight, None)], [other(x)])


def test_a_layer_runs_a_forward_of_its_instance_between_its_hooks():
    layer, calls = nn.Linear(1, 1), []
    layer.__dict__["forward"] = lambda x: calls.append("forward") or x
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer(torch.ones(1, 1))
    assert calls == ["before", "forward", "after"]


def test_attention_projects_with_a_linear_map_of_a_class_of_its_own_and_runs_as_a_function():
    """``NonDynamicallyQuantizableLinear``, and the arguments of ``functional.multi_head_attention_forward``."""
    layer = nn.MultiheadAttention(2, 1)
    assert type(layer.out_proj) is NonDynamicallyQuantizableLinear
    taken = inspect.signature(functional.multi_head_attention_forward).parameters
    own = inspect.signature(layer.forward).parameters
    named = {name.replace(".", "_") for name, _ in layer.named_parameters()}
    made = {"q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v", "use_separate_proj_weight"}
    assert taken.keys() >= own.keys() | named | made | {"embed_dim_to_check", "num_heads", "add_zero_attn", "dropout_p"}


def test_the_convolution_of_all_kinds_takes_these_arguments_in_this_order():
    names = [argument.name for argument in torch.ops.aten.convolution.default._schema.arguments]
    assert names == [
        *("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    ]


# --- torch: optimisers ---


def test_a_step_is_run_without_the_hooks_that_torch_puts_around_it():
    """``step.hooked`` and ``step.__wrapped__``."""
    w, hooked = nn.Parameter(torch.ones(1)), []
    optimizer = torch.optim.SGD([w], lr=0.5)
    w.grad = torch.ones(1)
    assert torch.optim.SGD.step.hooked
    handle = register_optimizer_step_pre_hook(lambda *_: hooked.append(True))
    try:
        torch.optim.SGD.step.__wrapped__(optimizer)
        assert not hooked
        optimizer.step()
        assert hooked
    finally:
        handle.remove()
    assert w.item() == 0.0


def test_hooks_of_an_optimiser_are_in_mappings_whose_names_end_in_hooks():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    before = {name: len(held) for name, held in vars(optimizer).items() if name.endswith("_hooks")}
    optimizer.register_step_pre_hook(print)
    optimizer.register_step_post_hook(print)
    after = {name: len(vars(optimizer)[name]) for name in before}
    assert sum(after.values()) == sum(before.values()) + 2
    assert all(len(type(vars(optimizer)[name])()) == 0 for name in before)


@pytest.mark.parametrize(
    ("kind", "settings", "state"),
    [
        (torch.optim.SGD, {"lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize"}, {"momentum_buffer"}),
        *(
            (
                kind,
                {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"},
                {"step", "exp_avg", "exp_avg_sq"},
            )
            for kind in (torch.optim.Adam, torch.optim.AdamW)
        ),
    ],
)
def test_closed_forms_read_these_settings_and_this_state(kind, settings, state):
    w = nn.Parameter(torch.ones(1))
    optimizer = kind([w], lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    w.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.param_groups[0].keys() >= settings
    assert optimizer.state[w].keys() == state
    assert optimizer.param_groups[0].get("decoupled_weight_decay", False) is (kind is torch.optim.AdamW)


def test_a_fused_step_under_a_gradient_scaler_finds_scale_and_overflow_on_the_optimiser():
    """``Optimizer.grad_scale`` and ``Optimizer.found_inf``: the gradients are still scaled then."""
    w, seen = nn.Parameter(torch.ones(1)), []
    optimizer = torch.optim.SGD([w], lr=0.5, fused=True)
    optimizer.register_step_pre_hook(lambda held, *_: seen.extend((held.grad_scale, held.found_inf, w.grad.clone())))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(w.sum()).backward()
    scaler.step(optimizer)
    assert [value.item() for value in seen] == [8.0, 0.0, 8.0]
    assert w.item() == 0.5
    assert getattr(optimizer, "grad_scale", None) is None


# --- Triton ---


def test_triton_compiles_ahead_of_time_from_these_arguments_and_brings_its_disassembler():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert list(inspect.signature(ASTSource).parameters)[:4] == ["fn", "signature", "constexprs", "attrs"]
    target = GPUTarget("cuda", 90, 32)
    assert (target.backend, target.arch, target.warp_size) == ("cuda", 90, 32)
    assert inspect.signature(triton.compile).parameters.keys() >= {"target", "options"}
    assert (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists()


def test_a_kernel_knows_its_arguments_by_name_and_descriptors_say_what_they_describe():
    triton = pytest.importorskip("triton")
    from triton.tools.tensor_descriptor import TensorDescriptor

    from inrun_bench.attribution.products.triton.norm import norm_kernel

    assert norm_kernel.arg_names[:2] == ["a_ptr", "b_ptr"]
    described = TensorDescriptor(torch.zeros(4, 16), [4, 16], [16, 1], [2, 16])
    assert (described.shape, described.strides, described.block_shape) == ([4, 16], [16, 1], [2, 16])
    assert issubclass(triton.OutOfResources, Exception)
    assert callable(triton.testing.do_bench)


# --- torch: what is counted ---


@relied_on("torch._C._autograd", "torch._C._autograd._get_sequence_nr")
def test_autograd_numbers_the_operations_that_it_notes():
    """From one number to the next for each operation on what is differentiated, and none for others."""
    w = torch.ones(3, requires_grad=True)
    before = _autograd._get_sequence_nr()
    (w * 2).sum()
    w.detach() * 2
    with torch.no_grad():
        w * 2
    assert _autograd._get_sequence_nr() - before == 2


@relied_on("torch._C._dynamo.eval_frame.set_eval_frame", "torch._dynamo.eval_frame.skip_code")
def test_a_hook_may_be_left_to_run_as_it_is_written_where_its_module_is_compiled():
    """And what it calls, once the compiler is taken off; there is none elsewhere."""
    seen = []

    class Model(nn.Linear):  # of torch's own, the hooks are traced with the layer
        def forward(self, x):
            return super().forward(x) + 1

    class Hook:
        def __call__(self, *_):
            if torch.compiler.is_compiling():
                return
            compiler = set_eval_frame(None)
            seen.append((compiler is not None, self.inner()))
            set_eval_frame(compiler)

        def inner(self):
            return torch.compiler.is_compiling()

    skip_code(Hook.__call__.__code__)
    model = Model(2, 2)
    model.register_forward_pre_hook(Hook())
    model(torch.ones(1, 2))
    torch.compile(model, backend="eager")(torch.ones(1, 2))
    torch._dynamo.reset()
    assert seen == [(False, False), (True, False)]


def test_dynamo_counts_the_graphs_that_it_makes():
    """``torch._dynamo.utils.counters``."""
    before = graphs_made()
    torch.compile(torch.tanh, backend="eager")(torch.ones(1))
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    torch._dynamo.reset()
    assert graphs_made() > before


# --- others ---


def test_loky_is_found_in_joblib_and_kills_its_workers_when_told_to():
    """``joblib.externals.loky``: joblib's own copy."""
    assert "kill_workers" in inspect.signature(loky.ProcessPoolExecutor.shutdown).parameters
    assert issubclass(loky.BrokenProcessPool, RuntimeError)


def test_hugging_face_s_linear_map_has_this_full_name_and_a_transposed_weight():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    assert f"{conv1d.__module__}.{conv1d.__qualname__}" == "transformers.pytorch_utils.Conv1D"
    assert conv1d(3, 2).weight.shape == (2, 3)  # 2 inputs, 3 outputs


def test_a_task_that_killed_its_dask_workers_says_how_many_deaths_were_allowed():
    """``distributed.KilledWorker.allowed_failures``."""
    killed = pytest.importorskip("distributed").KilledWorker
    assert killed("task", None, 3).allowed_failures == 3


def assert_equal(got, expected):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)

"""The dense weight of a layer, contracted once for as long as its cores keep their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .contraction import contract, core_gradients, full_precision, is_autocast_on

_unseen = [0]  # changes of any parameters; in a list, so that a compiled step does not take the number for a constant


def count_unseen_change(*_: Any) -> None:
    """Let no layer use a weight from before this moment."""
    _unseen[0] += 1


# Fused optimisers write into parameters without a trace: no version moves.
register_optimizer_step_post_hook(count_unseen_change)


class CoreState:
    """The cores that a weight was contracted from, and how to tell that they still have the same values."""

    def __init__(self, cores: Sequence[Tensor]) -> None:
        self.cores = tuple(cores)
        self.moment = _unseen[0]
        self.marks = [(core, core._version, core.data_ptr()) for core in cores]
        self._memory = [core.detach() for core in cores]  # an address that stays taken names no other values

    def is_that_of(self, cores: Sequence[Tensor]) -> bool:
        """Whether these are the same cores, and nothing that can be seen has written into them."""
        if self.moment != _unseen[0] or len(cores) != len(self.marks):
            return False
        for core, (known, version, address) in zip(cores, self.marks, strict=True):
            if core is not known or core._version != version or core.data_ptr() != address:
                return False
        return True

    def check_values(self, wanted: Sequence[bool]) -> None:
        """Refuse, as autograd does, gradients at values that have changed since the forward."""
        for site, ((core, version, _), memory) in enumerate(zip(self.marks, self._memory, strict=True)):
            is_needed = any(flag for other, flag in enumerate(wanted) if other != site)
            # a sharded core is gathered anew for the backward: at another address, but in the same storage
            if is_needed and (core._version != version or core.data_ptr() != memory.data_ptr()):
                raise RuntimeError(
                    f"backward: core {site} of shape {tuple(core.shape)}, needed for gradient computation, has been "
                    f"modified by an inplace operation: got version {core._version}, expected {version}; call backward "
                    "before the cores change, or forward again"
                )


class Written:
    """The moment when a CUDA stream has written tensors; readers on other streams wait for it, as no one else sees to.

    Elsewhere than on CUDA it does nothing.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda and type(tensor) is Tensor:  # not a tracer's, which needs no CUDA
            self._device = tensor.get_device()
            self._stream = torch._C._cuda_getCurrentRawStream(self._device)
            self._event = torch.cuda.current_stream(self._device).record_event()

    def read(self, *tensors: Tensor) -> None:
        """Let the current stream wait, and their memory not be given away while it works."""
        if self._event is None or torch._C._cuda_getCurrentRawStream(self._device) == self._stream:
            return
        here = torch.cuda.current_stream(self._device)  # an object, which takes ten times as long to get
        here.wait_event(self._event)
        for tensor in tensors:
            tensor.record_stream(here)


class WeightCache:
    """Holds the contracted weight of one layer, and its casts for autocast.

    While the cores keep their values, every use under gradients gets the same node of the autograd graph, so that
    their gradients meet there and go to the cores in one contraction. Copies begin empty.

    Attributes
    ----------
    reconstructions : int
        How often the cores were contracted.
    """

    def __init__(self) -> None:
        self.reconstructions = 0
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()

    def clear(self) -> None:
        """Forget the weight."""
        self._entry = None

    @property
    def nbytes(self) -> int:
        """The memory that is held."""
        return self._entry.nbytes if self._entry is not None else 0

    def weight(self, cores: Sequence[Tensor], weight_shape: tuple[int, int], *, keep: bool) -> Tensor:
        """The (I, J) weight, in the dtype that autocast asks for; ``keep`` it for the next call."""
        entry = self._entry
        if entry is None or not entry.state.is_that_of(cores):
            self.reconstructions += 1
            if not all(type(core) is nn.Parameter and not core.is_inference() for core in cores):
                return contract(cores, weight_shape)
            entry = _Entry(cores, weight_shape)
        self._entry = entry if keep and entry.is_real else None
        return entry.in_dtype(_dtype_here(cores[0]), torch.is_grad_enabled())


class _Entry:
    """A weight at one state of the cores: its values, and the nodes that link them to the cores, by dtype."""

    def __init__(self, cores: Sequence[Tensor], weight_shape: tuple[int, int]) -> None:
        self.state = CoreState(cores)
        # not an inference tensor, which no later backward could use
        with torch.inference_mode(False), torch.no_grad():
            values = contract(cores, weight_shape)
        self.dtype = values.dtype
        self.values = {values.dtype: values}
        self.written = {values.dtype: Written(values)}
        self.nodes: dict[torch.dtype, Tensor] = {}
        self.trained: list[bool] = []

    @property
    def is_real(self) -> bool:
        """Whether the values are numbers, not those of a tracer's tensors."""
        return type(self.values[self.dtype]) is Tensor

    @property
    def nbytes(self) -> int:
        storages = [tensor.untyped_storage() for tensor in (*self.values.values(), *self.nodes.values())]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def in_dtype(self, dtype: torch.dtype, grad: bool) -> Tensor:
        self.written[self.dtype].read(self.values[self.dtype])
        tensor = self._in_dtype(dtype, grad)
        if dtype is not self.dtype:
            self.written[dtype].read(tensor)
        return tensor

    def _in_dtype(self, dtype: torch.dtype, grad: bool) -> Tensor:
        if grad:
            trained = [core.requires_grad for core in self.state.cores]
            if trained != self.trained:
                self.nodes, self.trained = {}, trained
            if True in trained:
                return self.nodes[dtype] if dtype in self.nodes else self._linked(dtype)
        if dtype not in self.values:
            with torch.inference_mode(False), torch.no_grad():
                self._keep(dtype, self.values[self.dtype].to(dtype))
        return self.values[dtype]

    def _linked(self, dtype: torch.dtype) -> Tensor:
        if self.dtype not in self.nodes:
            self.nodes[self.dtype] = _Contraction.apply(self, *self.state.cores)
        if dtype not in self.nodes:
            node = self.nodes[self.dtype].to(dtype)
            self._keep(dtype, node.detach())  # one copy serves both
            self.nodes[dtype] = node  # last: another thread may look
        return self.nodes[dtype]

    def _keep(self, dtype: torch.dtype, values: Tensor) -> None:
        self.written[dtype] = Written(values)
        self.values[dtype] = values


class _Contraction(torch.autograd.Function):
    """Links the values of an entry to the cores.

    The cores are kept as attributes, not as saved tensors: these are freed by the first backward, but two losses may
    share the node; and checkpoints count them, cached or not.
    """

    @staticmethod
    def forward(ctx: Any, entry: _Entry, *_: Tensor) -> Tensor:
        ctx.state = entry.state
        return entry.values[entry.dtype].detach()

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        ctx.state.check_values(wanted)
        with full_precision(of_weight.device.type):
            return None, *core_gradients(ctx.state.cores, of_weight, wanted)


def is_traced(x: Tensor) -> bool:
    """Whether what happens now is recorded for later, or mapped: the values at hand are then not those of every use."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _dtype_here(core: Tensor) -> torch.dtype:
    """The dtype that autocast gives to a weight; it leaves double precision alone."""
    device = core.device.type
    if core.dtype is torch.float64 or not core.is_floating_point() or not is_autocast_on(device):
        return core.dtype
    return torch.get_autocast_dtype(device)

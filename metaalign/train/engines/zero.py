"""The engines that partition a model over the workers with ZeRO, for training or inference only.

Imports no data, loss or Ray.
"""

import contextlib
import io
import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metaalign.config.sections import OptimizerConfig, ZeroConfig
from metaalign.train.engines.deepspeed_settings import deepspeed_settings, optimizer_place
from metaalign.train.engines.interface import total_norm, trainable_parameters
from metaalign.train.engines.optimizers import (
    build_optimizer,
    full_shape,
    parameter_groups,
    prepare_state,
    set_learning_rate,
    state_keys,
)
from metaalign.train.model.policy import TensorRows


class ZeroEngine:
    """A DeepSpeed engine over all workers. `torch.distributed` must be initialized."""

    def __init__(
        self,
        policy: nn.Module,
        *,
        zero: ZeroConfig,
        optimizer: OptimizerConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        import deepspeed

        join_deepspeed()
        self.policy = policy
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._stage = zero.stage
        self._linked = False
        self._parameters = dict(trainable_parameters(policy))
        settings = deepspeed_settings(
            zero, max_grad_norm=optimizer.max_grad_norm, dtype=dtype, device_type=device.type
        )
        if zero.stage == 3:
            _gather_by_layer(policy)
        groups = parameter_groups(policy, optimizer.weight_decay)
        basic = build_optimizer(groups, optimizer, optimizer_place(zero, device.type))
        self._engine = deepspeed.initialize(
            model=policy, optimizer=basic, config=settings, dist_init_required=False
        )[0]
        self._zero: Any = self._engine.optimizer
        self.optimizer = basic

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        return self._engine(rows)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over the workers, but the workers' losses add up to the loss.
        self._engine.backward(loss * self.world_size)

    def step(self, learning_rate: float) -> Tensor:
        set_learning_rate(self._zero, learning_rate)
        # At stage 0 every worker holds whole gradients, and DeepSpeed does not return their norm.
        norm = total_norm(self._parameters.values()) if self._stage == 0 else None
        self._engine.step()
        self._link_states()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def shard(self, name: str, key: str | None) -> Tensor:
        from deepspeed.utils import (
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
            safe_get_local_fp32_param,
            safe_get_local_optimizer_state,
        )

        parameter = self._parameters[name]
        full: Any
        if self._stage == 3:
            if key is None:
                full = safe_get_local_fp32_param(parameter)
            else:
                full = safe_get_local_optimizer_state(parameter, key)
            return full.detach()[: self._extent(parameter)[1]].to(self.device)
        if self._stage == 0:
            full = parameter if key is None else self.optimizer.state[parameter][key]
        elif key is None:
            full = safe_get_full_fp32_param(parameter)
        else:
            full = safe_get_full_optimizer_state(parameter, key)
        return full.detach().flatten().narrow(0, *self._extent(parameter)).to(self.device)

    def load_shard(self, name: str, key: str | None, value: Tensor) -> None:
        parameter: Any = self._parameters[name]
        if self._stage == 3:
            self._load_local(parameter, key, value)
            return
        full = self._gather(parameter, value)
        if self._stage == 0:
            target = parameter if key is None else self.optimizer.state[parameter][key]
            target.data.copy_(full.view_as(target))
        elif parameter._hp_mapping is not None:
            parameter.set_full_hp_param(full.view(parameter.shape), key)

    def _load_local(self, parameter: Any, key: str | None, value: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        padded = torch.zeros(parameter.ds_tensor.ds_numel, device=self.device)
        padded[: len(value)] = value
        if key is not None:
            safe_set_local_optimizer_state(parameter, padded, key)
            return
        safe_set_local_fp32_param(parameter, padded)
        # The setter writes only the float32 master weights; the forward pass reads these.
        parameter.ds_tensor.data.copy_(padded)

    def _gather(self, parameter: Tensor, value: Tensor) -> Tensor:
        """The whole parameter, flat, from every worker's shard of it."""
        share = -(-parameter.numel() // self.world_size)
        padded = torch.zeros(share, device=self.device)
        padded[: len(value)] = value
        full = torch.empty(share * self.world_size, device=self.device)
        dist.all_gather_into_tensor(full, padded)
        return full[: parameter.numel()]

    def _extent(self, parameter: Tensor) -> tuple[int, int]:
        """Start and length, in elements, of this worker's shard without padding."""
        numel = full_shape(parameter).numel()
        share = -(-numel // self.world_size)
        start = min(self.rank * share, numel)
        return start, min(share, numel - start)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(full_shape(value)) for name, value in self._parameters.items()}

    def state_keys(self) -> tuple[str, ...]:
        return state_keys(self.optimizer)

    def prepare_state(self, steps: int) -> None:
        prepare_state(self.optimizer, self._flat_parameters(), steps)
        self._link_states()

    def _link_states(self) -> None:
        """At stages 1 and 2, link each parameter to its part of the optimizer states.

        DeepSpeed 0.19 links them only once, after the first step of the first parameter group,
        before the states of the other group exist.
        """
        if self._stage in (1, 2) and not self._linked:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()
            self._linked = True

    def _flat_parameters(self) -> list[Tensor]:
        """The tensors that the torch optimizer updates instead of the parameters."""
        if self._stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        if self._stage == 0:
            return list(self._parameters.values())
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def refresh(self) -> None:
        if self._stage == 3:
            # Small parameters stay whole between steps, so they still hold the old values.
            persistent = self._zero.persistent_parameters
            if persistent:
                persistent[0].partition(persistent, has_been_updated=False)
            # A gather prefers the hpZ partitions, which are old too; `partition` just made some.
            self._zero.invalidate_secondary_tensor()
            if persistent:
                persistent[0].all_gather(persistent)
        elif self._stage in (1, 2):
            self._zero.update_lp_params()


class FrozenEngine:
    """An engine for inference only, without gradients or an optimizer. At stage 3 the parameters
    are partitioned over the workers; at lower stages every worker holds all of them."""

    def __init__(
        self, policy: nn.Module, *, zero: ZeroConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        import deepspeed

        join_deepspeed()
        self.policy = policy.requires_grad_(False)
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._call: nn.Module = policy
        if zero.stage < 3:
            policy.to(device)
            return
        _gather_by_layer(policy)
        settings = deepspeed_settings(
            zero, max_grad_norm=None, dtype=dtype, device_type=device.type
        )
        self._call = deepspeed.initialize(model=policy, config=settings, dist_init_required=False)[
            0
        ]

    def forward(self, rows: TensorRows, *, last: bool = True) -> Tensor:  # noqa: ARG002
        return self._call(rows)

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def release(self) -> None:
        """Free the parameters' memory. DeepSpeed 0.19's hooks keep the modules themselves alive."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        FWD_MODULE_STACK[:] = [each for each in FWD_MODULE_STACK if each is not self.policy]
        for parameter in self.policy.parameters():
            for tensor in (parameter, getattr(parameter, "ds_tensor", None)):
                if tensor is not None:
                    tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def join_deepspeed() -> None:
    """Let DeepSpeed use the initialized process group. Further calls have no effect."""
    import deepspeed

    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints that it built an operator
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)


def quiet_deepspeed() -> None:
    """Switch off DeepSpeed's log of every setting, its NVTX ranges and a deprecation warning.

    The NVTX ranges take a tenth of the time of a small model's step. DeepSpeed 0.19 causes the
    warning on torch 2.13, at every collective.
    """
    from deepspeed.utils import nvtx

    nvtx.enable_nvtx = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    message = r"`torch\.distributed\.\w+` is deprecated"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)


def _gather_by_layer(policy: nn.Module) -> None:
    """Let ZeRO-3 gather a decoder layer at once instead of each of its modules.

    The collectives are fewer and larger, which halves DeepSpeed's own time on a small model.
    """
    from deepspeed.utils import set_z3_leaf_modules

    names = {name for m in policy.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    layers = {type(m) for m in policy.modules() if type(m).__name__ in names}
    if layers:
        set_z3_leaf_modules(policy, list(layers))

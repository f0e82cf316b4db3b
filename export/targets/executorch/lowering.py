"""Lower exported programs to one ExecuTorch file, for XNNPACK where it has the operators."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from seedmask.errors import MissingPackageError

if TYPE_CHECKING:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

NEEDS: Final = ("executorch", "torchao")
INSTALL: Final = "pip install 'seedmask[executorch]' (in a clone: '.[executorch]')"


def require() -> None:
    """Raise MissingPackageError unless programs can be made here."""
    if lacking := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise MissingPackageError(f"graphs for executorch need {', '.join(lacking)}: {INSTALL}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings that torch, torchao and ExecuTorch address to their own developers; errors still appear."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def training_partitioner() -> XnnpackPartitioner:
    """Return XNNPACK's partitioner for programs whose weights change from step to step."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    # XNNPACK copies to change a shape; ExecuTorch itself looks at the same memory in another way.
    views = {"ViewCopyConfig", "UnsqueezeCopyConfig"}
    configs = [config for config in ALL_PARTITIONER_CONFIGS if config.__name__ not in views]
    return XnnpackPartitioner(configs=configs, force_non_static_weights_for_f32_linear=True)


def lower(exported: dict[str, Any], partitioners: dict[str, XnnpackPartitioner]) -> bytes:
    """Return one file of the `exported` programs by method; without a partitioner, ExecuTorch's kernels run one."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    edge = to_edge_transform_and_lower(
        exported,
        partitioner={name: [partitioner] for name, partitioner in partitioners.items()},
        # Integer shifts are not in the core operator set; their kernels exist.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    # Inputs and outputs stay in the caller's memory, without a copy.
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer)

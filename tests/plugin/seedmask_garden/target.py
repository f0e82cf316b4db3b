"""Export target `text`: the model's tensors as a list that people can read."""

from seedmask.spec import ModelSpec


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the members of a bundle that this target adds, name to bytes."""
    lines = [f"{spec.name}, {batch} examples a step"]
    lines += [f"{tensor.name} {list(tensor.shape)}" for tensor in spec.tensors]
    return {"text/tensors.txt": "\n".join(lines).encode()}
